//! Typed error details: JSON inside `google.protobuf.Any`, in the standard status trailer.
//!
//! Type URLs are `github.com/moby/buildkit/<name>+json`. Details of unknown types are kept and passed on.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kiln_llb::pb;
use prost::Message as _;
use serde_json::{Map, Value, json};

use crate::rpc;

const PREFIX: &str = "github.com/moby/buildkit/";
const SUFFIX: &str = "+json";

/// One detail of an error.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Detail {
    /// The vertex that failed.
    Vertex {
        /// Its digest.
        digest: String,
    },
    /// A place in the input that belongs to the error.
    Source {
        /// The file.
        info: pb::SourceInfo,
        /// Lines of it.
        ranges: Vec<pb::Range>,
    },
    /// The frontend that failed.
    Frontend {
        /// Its name.
        name: String,
        /// Its image.
        source: String,
    },
    /// A frontend capability that is missing.
    FrontendCap {
        /// The capability.
        name: String,
    },
    /// A sub-request that is not supported.
    Subrequest {
        /// Its name.
        name: String,
    },
    /// How a process ended.
    Exit {
        /// Its exit code.
        code: u32,
    },
    /// Something else, as it came.
    Other(prost_types::Any),
}

impl Detail {
    /// As it travels.
    pub fn to_any(&self) -> prost_types::Any {
        let (name, value) = match self {
            Self::Other(any) => return any.clone(),
            Self::Vertex { digest } => ("errdefs.Vertex", json!({ "digest": digest })),
            Self::Source { info, ranges } => ("errdefs.Source", source_json(info, ranges)),
            Self::Frontend { name, source } => {
                ("errdefs.Frontend", texts(&[("name", name), ("source", source)]))
            }
            Self::FrontendCap { name } => ("errdefs.FrontendCap", texts(&[("name", name)])),
            Self::Subrequest { name } => ("errdefs.Subrequest", texts(&[("name", name)])),
            Self::Exit { code } => {
                ("gatewayapi.ExitMessage", if *code == 0 { json!({}) } else { json!({ "Code": code }) })
            }
        };
        prost_types::Any {
            type_url: format!("{PREFIX}{name}{SUFFIX}"),
            value: value.to_string().into_bytes(),
        }
    }

    /// From what travelled. What is not understood is kept as it is.
    pub fn from_any(any: prost_types::Any) -> Self {
        parse(&any).unwrap_or(Self::Other(any))
    }
}

/// A status with details, outermost first.
pub fn status(code: tonic::Code, message: impl Into<String>, details: &[Detail]) -> tonic::Status {
    let message = message.into();
    if details.is_empty() {
        return tonic::Status::new(code, message);
    }
    let wire = rpc::Status {
        code: code.into(),
        message: message.clone(),
        details: details.iter().map(Detail::to_any).collect(),
    };
    tonic::Status::with_details(code, message, wire.encode_to_vec().into())
}

/// The details of a status; none if the trailer has none, or is unreadable.
pub fn details(status: &tonic::Status) -> Vec<Detail> {
    let decoded = rpc::Status::decode(status.details()).unwrap_or_default();
    decoded.details.into_iter().map(Detail::from_any).collect()
}

fn parse(any: &prost_types::Any) -> Option<Detail> {
    let name = any.type_url.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
    let value: Value = serde_json::from_slice(&any.value).ok()?;
    let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    Some(match name {
        "errdefs.Vertex" => Detail::Vertex { digest: text("digest") },
        "errdefs.Frontend" => Detail::Frontend { name: text("name"), source: text("source") },
        "errdefs.FrontendCap" => Detail::FrontendCap { name: text("name") },
        "errdefs.Subrequest" => Detail::Subrequest { name: text("name") },
        "gatewayapi.ExitMessage" => Detail::Exit {
            code: value.get("Code").and_then(Value::as_u64).and_then(|c| u32::try_from(c).ok()).unwrap_or(0),
        },
        "errdefs.Source" => {
            let info = value.get("info");
            let info_text = |key: &str| {
                info.and_then(|i| i.get(key)).and_then(Value::as_str).unwrap_or_default().to_owned()
            };
            let ranges = value
                .get("ranges")
                .and_then(Value::as_array)
                .map(|r| r.iter().map(range_from).collect())
                .unwrap_or_default();
            let info = pb::SourceInfo {
                filename: info_text("filename"),
                data: STANDARD.decode(info_text("data")).ok()?,
                definition: None,
                language: info_text("language"),
            };
            Detail::Source { info, ranges }
        }
        _ => return None,
    })
}

/// Keys of empty texts are left out, as the reference's encoder does.
fn texts(fields: &[(&str, &String)]) -> Value {
    let fields = fields.iter().filter(|(_, v)| !v.is_empty());
    Value::Object(fields.map(|(k, v)| ((*k).to_owned(), Value::String((*v).clone()))).collect())
}

fn source_json(info: &pb::SourceInfo, ranges: &[pb::Range]) -> Value {
    let info = texts(&[
        ("filename", &info.filename),
        ("data", &STANDARD.encode(&info.data)),
        ("language", &info.language),
    ]);
    let mut source = Map::new();
    source.insert("info".to_owned(), info);
    if !ranges.is_empty() {
        source.insert("ranges".to_owned(), ranges.iter().map(range_json).collect());
    }
    Value::Object(source)
}

fn range_json(range: &pb::Range) -> Value {
    let position = |p: &pb::Position| {
        let mut json = Map::new();
        if p.line != 0 {
            json.insert("line".to_owned(), p.line.into());
        }
        if p.character != 0 {
            json.insert("character".to_owned(), p.character.into());
        }
        Value::Object(json)
    };
    let mut json = Map::new();
    for (key, value) in [("start", &range.start), ("end", &range.end)] {
        if let Some(value) = value {
            json.insert(key.to_owned(), position(value));
        }
    }
    Value::Object(json)
}

fn range_from(value: &Value) -> pb::Range {
    let position = |key: &str| {
        let position = value.get(key)?;
        let number = |key: &str| {
            position.get(key).and_then(Value::as_i64).and_then(|n| i32::try_from(n).ok()).unwrap_or(0)
        };
        Some(pb::Position { line: number("line"), character: number("character") })
    };
    pb::Range { start: position("start"), end: position("end") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_survive_the_way() {
        let source = Detail::Source {
            info: pb::SourceInfo {
                filename: "Dockerfile".into(),
                data: b"FROM x".to_vec(),
                definition: None,
                language: "Dockerfile".into(),
            },
            ranges: vec![pb::Range {
                start: Some(pb::Position { line: 1, character: 0 }),
                end: Some(pb::Position { line: 1, character: 3 }),
            }],
        };
        assert_eq!(
            String::from_utf8(source.to_any().value).unwrap(),
            r#"{"info":{"filename":"Dockerfile","data":"RlJPTSB4","language":"Dockerfile"},"ranges":[{"start":{"line":1},"end":{"line":1,"character":3}}]}"#
        );
        let other = Detail::Other(prost_types::Any {
            type_url: "github.com/moby/buildkit/stack.Stack+json".into(),
            value: b"{}".to_vec(),
        });
        let all = vec![
            Detail::Vertex { digest: "sha256:aa".into() },
            source,
            Detail::Exit { code: 3 },
            Detail::Frontend { name: "dockerfile.v0".into(), source: String::new() },
            other,
        ];
        assert_eq!(details(&status(tonic::Code::Unknown, "failed", &all)), all);
    }

    #[test]
    fn a_damaged_trailer_has_no_details() {
        let status =
            tonic::Status::with_details(tonic::Code::Unknown, "x", bytes::Bytes::from_static(&[0xff, 0xff]));
        assert_eq!(details(&status), []);
    }
}
