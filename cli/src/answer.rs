//! Questions that a frontend answers about its input without building it.

use std::collections::BTreeMap;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kiln_client::SourceExcerpt;
use kiln_client::api::pb;
use serde::Deserialize;

use crate::error::{Error, Result};

/// A question, and the form in which the answer is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// The question.
    pub method: Method,
    /// The answer as JSON, for programs.
    pub json: bool,
}

/// What can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// What the linter finds.
    Check,
    /// What the target can be told: arguments, secrets, agents.
    Outline,
    /// Which stages there are.
    Targets,
    /// What can be asked.
    Describe,
}

impl Method {
    /// The name that frontends know it by.
    pub fn request(self) -> &'static str {
        match self {
            Self::Check => "frontend.lint",
            Self::Outline => "frontend.outline",
            Self::Targets => "frontend.targets",
            Self::Describe => "frontend.subrequests.describe",
        }
    }
}

impl FromStr for Call {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut fields = text.split(',');
        let method = match fields.next().unwrap_or_default() {
            "check" | "lint" => Method::Check,
            "outline" => Method::Outline,
            "targets" => Method::Targets,
            "subrequests.describe" | "describe" => Method::Describe,
            other => {
                return Err(Error::option(format!(
                    "unknown method `{other}`: use build, check, outline, targets or describe"
                )));
            }
        };
        let mut call = Self { method, json: false };
        for field in fields {
            call.json = match field {
                "format=json" => true,
                "format=text" => false,
                other => {
                    return Err(Error::option(format!("unknown `{other}`: use format=text or format=json")));
                }
            };
        }
        Ok(call)
    }
}

/// The parts of a check that are counted or shown. Lists may be null.
#[derive(Deserialize)]
struct Checked {
    #[serde(default)]
    warnings: Option<Vec<serde_json::Value>>,
    #[serde(default)]
    sources: Option<Vec<Source>>,
    #[serde(default, rename = "buildError")]
    broken: Option<Broken>,
}

#[derive(Deserialize)]
struct Source {
    #[serde(default)]
    filename: String,
    #[serde(default)]
    data: String,
}

#[derive(Deserialize)]
struct Broken {
    message: String,
    #[serde(default)]
    location: Location,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Location {
    source_index: usize,
    ranges: Vec<Range>,
}

#[derive(Deserialize)]
struct Range {
    start: Line,
    end: Line,
}

#[derive(Deserialize)]
struct Line {
    line: i32,
}

impl Call {
    /// The answer as it is to be printed.
    ///
    /// # Errors
    /// If the frontend's answer cannot be read.
    pub fn text(self, answer: &BTreeMap<String, Vec<u8>>) -> Result<String> {
        let part = |key: &str| answer.get(key).map(|value| String::from_utf8_lossy(value).into_owned());
        let broken = |what: &str| Error::option(format!("the frontend's answer {what}"));
        let json = part("result.json").ok_or_else(|| broken("has no `result.json`"))?;
        if self.json {
            let value: serde_json::Value =
                serde_json::from_str(&json).map_err(|error| broken(&format!("cannot be read: {error}")))?;
            return Ok(format!("{value:#}\n"));
        }
        let text = part("result.txt").unwrap_or_default();
        if self.method != Method::Check {
            return Ok(text);
        }
        let checked: Checked =
            serde_json::from_str(&json).map_err(|error| broken(&format!("cannot be read: {error}")))?;
        let warnings = checked.warnings.unwrap_or_default().len();
        let mut out = match (warnings, &checked.broken) {
            (0, None) => "Check complete, no warnings found.\n".to_owned(),
            (0, Some(_)) => String::new(),
            (1, _) => "Check complete, 1 warning has been found!\n".to_owned(),
            (many, _) => format!("Check complete, {many} warnings have been found!\n"),
        };
        out.push_str(&text);
        if let Some(broken) = checked.broken {
            if warnings > 0 {
                out.push('\n');
            }
            let sources = checked.sources.unwrap_or_default();
            if let Some(source) = sources.into_iter().nth(broken.location.source_index) {
                out.push_str(&excerpt(source, &broken.location.ranges).to_string());
            }
            out.push_str(&format!("error: {}\n", broken.message));
        }
        Ok(out)
    }

    /// Whether the answer is that all is well, which is what an exit code is made of.
    pub fn is_good(self, answer: &BTreeMap<String, Vec<u8>>) -> bool {
        answer.get("result.statuscode").is_none_or(|code| code.as_slice() == b"0")
    }
}

fn excerpt(source: Source, ranges: &[Range]) -> SourceExcerpt {
    let position = |line: &Line| Some(pb::Position { line: line.line, character: 0 });
    SourceExcerpt {
        info: pb::SourceInfo {
            filename: source.filename,
            data: STANDARD.decode(source.data).unwrap_or_default(),
            ..pb::SourceInfo::default()
        },
        ranges: ranges
            .iter()
            .map(|range| pb::Range { start: position(&range.start), end: position(&range.end) })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    #[track_caller]
    fn check(call: &str, parts: &[(&str, &str)], want: &Expect) {
        let answer =
            parts.iter().map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec())).collect();
        let shown = call
            .parse::<Call>()
            .and_then(|call| Ok(format!("{}good: {}", call.text(&answer)?, call.is_good(&answer))));
        want.assert_eq(&shown.unwrap_or_else(|error| error.to_string()));
    }

    #[test]
    fn answers() {
        check(
            "targets",
            &[("result.json", "{}"), ("result.txt", "TARGET\n")],
            &expect![[r"
            TARGET
            good: true"]],
        );
        check(
            "outline,format=json",
            &[("result.json", r#"{"name":"x"}"#)],
            &expect![[r#"
            {
              "name": "x"
            }
            good: true"#]],
        );
        check("describe", &[], &expect!["the frontend's answer has no `result.json`"]);
        check(
            "nonsense",
            &[],
            &expect!["unknown method `nonsense`: use build, check, outline, targets or describe"],
        );
        check("check,format=xml", &[], &expect!["unknown `format=xml`: use format=text or format=json"]);
    }

    #[test]
    fn checks() {
        check(
            "check",
            &[("result.json", r#"{"warnings":null}"#), ("result.statuscode", "0")],
            &expect![[r"
            Check complete, no warnings found.
            good: true"]],
        );
        check(
            "check",
            &[
                ("result.json", r#"{"warnings":[{},{}]}"#),
                ("result.txt", "\nWARNING: A\n\nWARNING: B\n"),
                ("result.statuscode", "1"),
            ],
            &expect![[r"
                Check complete, 2 warnings have been found!

                WARNING: A

                WARNING: B
                good: false"]],
        );
        let json = r#"{"warnings":null,"sources":[{"filename":"Dockerfile","data":"TEFCTEUgeA=="}],
            "buildError":{"message":"unknown instruction","location":{"ranges":[{"start":{"line":1},"end":{"line":1}}]}}}"#;
        check(
            "lint",
            &[("result.json", json), ("result.statuscode", "1")],
            &expect![[r"
            Dockerfile:1
            --------------------
               1 | >>> LABLE x
            --------------------
            error: unknown instruction
            good: false"]],
        );
    }
}
