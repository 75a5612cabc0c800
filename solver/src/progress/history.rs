//! What one step has told, for jobs that join it later.

use std::collections::{HashMap, VecDeque};

use crate::progress::event::{ProgressEvent, StatusEvent};

/// Logs and warnings of a step that are kept; past that the oldest are forgotten, so that who joins late sees the rest.
const MAX_EVENTS: usize = 20_000;
/// Parts of a step that are told of; updates of further ones are dropped.
const MAX_PARTS: usize = 10_000;

/// The logs, the warnings and the latest state of each part of a step. Vertex digests in it mean nothing.
#[derive(Debug, Default)]
pub(crate) struct History {
    events: VecDeque<ProgressEvent>,
    parts: Vec<StatusEvent>,
    by_id: HashMap<String, usize>,
}

impl History {
    /// Keeps an event; returns whether it is to be told at all.
    pub(crate) fn keep(&mut self, event: &ProgressEvent) -> bool {
        let ProgressEvent::Status(status) = event else {
            if self.events.len() == MAX_EVENTS {
                self.events.pop_front();
            }
            self.events.push_back(event.clone());
            return true;
        };
        if let Some(part) = self.by_id.get(&status.id).and_then(|index| self.parts.get_mut(*index)) {
            part.clone_from(status);
            return true;
        }
        if self.parts.len() == MAX_PARTS {
            return false;
        }
        self.by_id.insert(status.id.clone(), self.parts.len());
        self.parts.push(status.clone());
        true
    }

    /// Hands out everything, parts in the order in which they began.
    pub(crate) fn each(&self, mut tell: impl FnMut(ProgressEvent)) {
        self.events.iter().cloned().for_each(&mut tell);
        self.parts.iter().cloned().map(ProgressEvent::Status).for_each(tell);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::event::WarningEvent;
    use crate::vertex::VertexDigest;

    fn status(id: usize, current: i64) -> ProgressEvent {
        ProgressEvent::Status(StatusEvent {
            vertex: VertexDigest(kiln_digest::Digest::of("v")),
            id: id.to_string(),
            name: String::new(),
            current,
            total: 0,
            timestamp: std::time::SystemTime::UNIX_EPOCH,
            started: None,
            completed: None,
        })
    }

    #[test]
    fn it_is_bounded_and_keeps_what_counts() {
        let mut history = History::default();
        for round in 0..3 {
            for part in 0..MAX_PARTS + 5 {
                assert_eq!(history.keep(&status(part, round)), part < MAX_PARTS);
            }
        }
        let warning = WarningEvent {
            vertex: VertexDigest(kiln_digest::Digest::of("v")),
            level: 1,
            short: bytes::Bytes::new(),
            detail: Vec::new(),
            url: String::new(),
            file: String::new(),
            language: String::new(),
            data: bytes::Bytes::new(),
            ranges: Vec::new(),
        };
        for level in 0..MAX_EVENTS as i64 + 7 {
            assert!(
                history.keep(&ProgressEvent::Warning(Box::new(WarningEvent { level, ..warning.clone() })))
            );
        }
        let mut all = Vec::new();
        history.each(|event| all.push(event));
        assert_eq!(all.len(), MAX_EVENTS + MAX_PARTS);
        assert!(matches!(&all[0], ProgressEvent::Warning(warning) if warning.level == 7));
        assert_eq!(all[MAX_EVENTS], status(0, 2));
    }
}
