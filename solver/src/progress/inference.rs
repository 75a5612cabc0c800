//! Telling which steps below a started one were cached.

use std::sync::Arc;

use crate::progress::event::VertexEvent;
use crate::tables::HashMap;
use crate::vertex::VertexDigest;

/// Infers the vertices that did not have to run because one above them was known.
///
/// When a vertex starts, each of its inputs that is known and not completed is reported as cached, started and
/// completed at that very time, and so on downwards. The real completion may still follow.
#[derive(Debug, Default)]
pub struct CachedInference {
    open: HashMap<VertexDigest, Arc<VertexEvent>>,
}

impl CachedInference {
    /// Takes note of `event` and returns the events to send before it.
    pub fn observe(&mut self, event: &Arc<VertexEvent>) -> Vec<VertexEvent> {
        let mut inferred = Vec::new();
        if let Some(started) = event.started {
            let mut below = vec![Arc::clone(&event.inputs)];
            while let Some(inputs) = below.pop() {
                for input in inputs.iter() {
                    let Some(vertex) = self.open.remove(input) else { continue };
                    let mut vertex = Arc::unwrap_or_clone(vertex);
                    below.push(Arc::clone(&vertex.inputs));
                    vertex.started = Some(started);
                    vertex.completed = Some(started);
                    vertex.cached = true;
                    inferred.push(vertex);
                }
            }
        }
        if event.completed.is_some() {
            self.open.remove(&event.digest);
        } else {
            self.open.insert(event.digest, Arc::clone(event));
        }
        inferred
    }

    /// Returns whether the vertex is known and has not ended, as far as told or inferred.
    pub(crate) fn is_open(&self, vertex: &VertexDigest) -> bool {
        self.open.contains_key(vertex)
    }

    /// Returns the vertices that started and neither ended nor were seen cached.
    pub fn unfinished(&mut self) -> Vec<VertexEvent> {
        let open = self.open.drain().map(|(_, vertex)| vertex).filter(|vertex| vertex.started.is_some());
        let mut open: Vec<_> = open.map(Arc::unwrap_or_clone).collect();
        open.sort_by_key(|vertex| (vertex.started, vertex.digest));
        open
    }
}
