//! Progress events as the status stream carries them.

use std::sync::Arc;

use kiln_api::control::{StatusResponse, Vertex, VertexLog, VertexStatus, VertexWarning};
use kiln_api::pb;
use kiln_solver::{ProgressEvent, Stream};
use prost::Message;

use crate::convert::timestamp;
use crate::reason;

/// A response is ended after the entry that takes it over this many bytes. Clients take 16 MiB, and the largest entry
/// is a vertex with all inputs that it may have.
const MAX_BYTES: usize = 1 << 20;

/// Turns a batch of events into responses of bounded size. Vertices come by start time, unstarted ones first.
pub(crate) fn responses(events: &[Arc<ProgressEvent>]) -> Vec<StatusResponse> {
    let mut all = Vec::new();
    let mut response = StatusResponse::default();
    let mut bytes = 0;
    for event in events {
        bytes += match &**event {
            ProgressEvent::Vertex(event) => push(
                &mut response.vertexes,
                Vertex {
                    digest: event.digest.to_string(),
                    inputs: event.inputs.iter().map(ToString::to_string).collect(),
                    name: event.name.to_string(),
                    cached: event.cached,
                    started: event.started.map(timestamp),
                    completed: event.completed.map(timestamp),
                    error: event.error.clone().unwrap_or_default(),
                    progress_group: event.group.as_ref().map(|g| pb::ProgressGroup {
                        id: g.id.clone(),
                        name: g.name.clone(),
                        weak: g.weak,
                    }),
                    reason: reason::of(event),
                },
            ),
            ProgressEvent::Status(event) => push(
                &mut response.statuses,
                VertexStatus {
                    id: event.id.clone(),
                    vertex: event.vertex.to_string(),
                    name: event.name.clone(),
                    current: event.current,
                    total: event.total,
                    timestamp: Some(timestamp(event.timestamp)),
                    started: event.started.map(timestamp),
                    completed: event.completed.map(timestamp),
                },
            ),
            ProgressEvent::Log(event) => push(
                &mut response.logs,
                VertexLog {
                    vertex: event.vertex.to_string(),
                    timestamp: Some(timestamp(event.timestamp)),
                    stream: match event.stream {
                        Stream::Stdout => 1,
                        Stream::Stderr => 2,
                    },
                    msg: event.data.clone(),
                },
            ),
            ProgressEvent::Warning(event) => push(
                &mut response.warnings,
                VertexWarning {
                    vertex: event.vertex.to_string(),
                    level: event.level,
                    short: event.short.to_vec(),
                    detail: event.detail.iter().map(|d| d.to_vec()).collect(),
                    url: event.url.clone(),
                    info: (!event.file.is_empty()).then(|| pb::SourceInfo {
                        filename: event.file.clone(),
                        data: event.data.to_vec(),
                        definition: None,
                        language: event.language.clone(),
                    }),
                    ranges: event
                        .ranges
                        .iter()
                        .map(|r| {
                            let position =
                                |(line, character): (i32, i32)| Some(pb::Position { line, character });
                            pb::Range { start: position(r.start), end: position(r.end) }
                        })
                        .collect(),
                },
            ),
            _ => 0,
        };
        if bytes > MAX_BYTES {
            all.push(std::mem::take(&mut response));
            bytes = 0;
        }
    }
    all.push(response);
    all.retain(|r| *r != StatusResponse::default());
    all
}

/// Adds an entry; returns its size in bytes.
fn push<M: Message>(entries: &mut Vec<M>, entry: M) -> usize {
    let size = entry.encoded_len();
    entries.push(entry);
    size
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use kiln_solver::{LogEvent, StatusEvent, VertexDigest, VertexEvent, WarningEvent};

    use super::*;

    fn vertex() -> VertexDigest {
        VertexDigest(
            "sha256:0000000000000000000000000000000000000000000000000000000000000000".parse().unwrap(),
        )
    }

    fn check(what: &str, event: ProgressEvent) {
        let event = Arc::new(event);
        let one = responses(std::slice::from_ref(&event)).iter().map(Message::encoded_len).sum::<usize>();
        let many = vec![event; 4 * MAX_BYTES / one];
        let responses = responses(&many);
        assert!((3..=6).contains(&responses.len()), "{what}: {}", responses.len());
        for response in &responses {
            assert!(response.encoded_len() < 2 * MAX_BYTES, "{what}: {}", response.encoded_len());
        }
    }

    #[test]
    fn responses_are_bounded_whatever_is_large_in_them() {
        let text = "x".repeat(20_000);
        let event = VertexEvent::announced(vertex(), "");
        check(
            "name",
            ProgressEvent::Vertex(Arc::new(VertexEvent { name: text.as_str().into(), ..event.clone() })),
        );
        check(
            "error",
            ProgressEvent::Vertex(Arc::new(VertexEvent { error: Some(text.clone()), ..event.clone() })),
        );
        check(
            "inputs",
            ProgressEvent::Vertex(Arc::new(VertexEvent {
                inputs: vec![vertex(); 300].into(),
                ..event.clone()
            })),
        );
        let miss = kiln_solver::Miss::Differs {
            name: text.clone(),
            created_at: SystemTime::UNIX_EPOCH,
            differences: Vec::new(),
            further: 0,
        };
        check("reason", ProgressEvent::Vertex(Arc::new(VertexEvent { miss: Some(Arc::new(miss)), ..event })));
        let (vertex, timestamp) = (vertex(), SystemTime::UNIX_EPOCH);
        let data = bytes::Bytes::from(text.clone());
        let status = StatusEvent {
            vertex,
            id: text.clone(),
            name: text,
            current: 0,
            total: 0,
            timestamp,
            started: None,
            completed: None,
        };
        check("status", ProgressEvent::Status(status));
        check(
            "log",
            ProgressEvent::Log(LogEvent { vertex, stream: Stream::Stdout, timestamp, data: data.clone() }),
        );
        let warning = WarningEvent {
            vertex,
            level: 1,
            short: data.clone(),
            detail: vec![data.clone()],
            url: String::new(),
            file: "f".to_owned(),
            language: String::new(),
            data,
            ranges: Vec::new(),
        };
        check("warning", ProgressEvent::Warning(Box::new(warning)));
    }
}
