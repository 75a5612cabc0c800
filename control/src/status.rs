//! Progress events as the status stream carries them.

use std::sync::Arc;

use kiln_api::control::{StatusResponse, Vertex, VertexLog, VertexStatus, VertexWarning};
use kiln_api::pb;
use kiln_solver::{ProgressEvent, Stream};

use crate::convert::timestamp;
use crate::reason;

/// A response is ended after the entry that takes it over this many bytes. Clients take 16 MiB, and the largest entry
/// is a vertex with all inputs that it may have.
const MAX_BYTES: usize = 1 << 20;
/// About what an entry takes besides its texts.
const ENTRY_BYTES: usize = 120;

/// Turns a batch of events into responses of bounded size. Vertices come by start time, unstarted ones first.
pub(crate) fn responses(events: &[Arc<ProgressEvent>]) -> Vec<StatusResponse> {
    let mut all = Vec::new();
    let mut response = StatusResponse::default();
    let mut bytes = 0;
    for event in events {
        bytes += size(event);
        match &**event {
            ProgressEvent::Vertex(event) => response.vertexes.push(Vertex {
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
            }),
            ProgressEvent::Status(event) => response.statuses.push(VertexStatus {
                id: event.id.clone(),
                vertex: event.vertex.to_string(),
                name: event.name.clone(),
                current: event.current,
                total: event.total,
                timestamp: Some(timestamp(event.timestamp)),
                started: event.started.map(timestamp),
                completed: event.completed.map(timestamp),
            }),
            ProgressEvent::Log(event) => response.logs.push(VertexLog {
                vertex: event.vertex.to_string(),
                timestamp: Some(timestamp(event.timestamp)),
                stream: match event.stream {
                    Stream::Stdout => 1,
                    Stream::Stderr => 2,
                },
                msg: event.data.clone(),
            }),
            ProgressEvent::Warning(event) => response.warnings.push(VertexWarning {
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
                        let position = |(line, character): (i32, i32)| Some(pb::Position { line, character });
                        pb::Range { start: position(r.start), end: position(r.end) }
                    })
                    .collect(),
            }),
            _ => {}
        }
        if bytes > MAX_BYTES {
            all.push(std::mem::take(&mut response));
            bytes = 0;
        }
    }
    all.push(response);
    all.retain(|r| *r != StatusResponse::default());
    all
}

/// About what an event takes in a response.
fn size(event: &ProgressEvent) -> usize {
    let texts = match event {
        ProgressEvent::Vertex(event) => {
            event.inputs.len() * ENTRY_BYTES + event.name.len() + event.error.as_ref().map_or(0, String::len)
        }
        ProgressEvent::Status(event) => event.id.len() + event.name.len(),
        ProgressEvent::Log(event) => event.data.len(),
        ProgressEvent::Warning(event) => {
            event.short.len() + event.detail.iter().map(|d| d.len()).sum::<usize>() + event.data.len()
        }
        _ => 0,
    };
    texts + ENTRY_BYTES
}
