//! What a job was told of its vertices: whether it makes sense.

use std::collections::BTreeMap;
use std::mem::discriminant;
use std::sync::Arc;
use std::time::SystemTime;

use futures::FutureExt as _;

use crate::outcome::Outcome;
use crate::progress::{ProgressEvent, ProgressStream, VertexEvent};
use crate::vertex::{Graph, VertexDigest};

/// The stories of all vertices of a job, as far as told.
pub(super) struct Stories {
    stream: ProgressStream,
    vertices: BTreeMap<VertexDigest, Story>,
    /// Whether a vertex may be there twice, once as one that ignores the cache.
    twins: bool,
}

#[derive(Debug, Default)]
struct Story {
    /// When it started, while it runs.
    open: Option<SystemTime>,
    /// When it started, if it was taken for cached while it ran: its end may follow.
    overtaken: Option<SystemTime>,
    last: Option<VertexEvent>,
}

impl Stories {
    pub(super) fn new(stream: ProgressStream, twins: bool) -> Self {
        Self { stream, vertices: BTreeMap::new(), twins }
    }

    /// Reads what has been told since.
    pub(super) fn read(&mut self) -> Result<(), String> {
        while let Some(events) = self.stream.next().now_or_never().flatten() {
            for event in events {
                if let ProgressEvent::Vertex(event) = &*event {
                    self.observe(event).map_err(|wrong| format!("`{}` {wrong}", event.name))?;
                }
            }
        }
        Ok(())
    }

    fn observe(&mut self, event: &VertexEvent) -> Result<(), String> {
        let known = self.vertices.contains_key(&event.digest);
        let story = self.vertices.entry(event.digest).or_default();
        match (event.started, event.completed) {
            (None, None) if known && !self.twins => return Err("is announced twice".to_owned()),
            (None, None) => return Ok(()),
            _ if !known => return Err("is not announced".to_owned()),
            (None, Some(_)) => return Err("ends without having started".to_owned()),
            (Some(started), None) => {
                if story.open.is_some_and(|open| open != started) && !self.twins {
                    return Err("starts while it runs".to_owned());
                }
                if event.cached || event.error.is_some() || event.outcome.is_some() {
                    return Err("starts with an end".to_owned());
                }
                story.open = Some(started);
            }
            (Some(started), Some(completed)) => {
                if completed < started {
                    return Err("ends before it starts".to_owned());
                }
                let open = story.open.take();
                let fits = open == Some(started) || story.overtaken.take() == Some(started);
                if !fits && !event.cached && event.error.is_none() && !self.twins {
                    return Err("ends as run, but did not start".to_owned());
                }
                if event.cached && open.is_some() && !fits {
                    story.overtaken = open;
                }
                let hit = matches!(event.outcome, Some(Outcome::Hit(_) | Outcome::Shared));
                let ran = matches!(event.outcome, Some(Outcome::Ran | Outcome::Forced));
                if (hit && !event.cached) || (ran && event.cached) {
                    return Err(format!("is cached: {}, with {:?}", event.cached, event.outcome));
                }
                if event.error.is_some() && (event.cached || event.outcome.is_some()) {
                    return Err("fails and has an outcome".to_owned());
                }
            }
        }
        story.last = Some(event.clone());
        Ok(())
    }

    /// After a build that gave results, `alone` in its job: everything below these vertices has ended well, and they
    /// themselves with these outcomes, where there is but a single output.
    pub(super) fn check_success(
        &self,
        graph: &Arc<Graph>,
        roots: &[(VertexDigest, Outcome, bool)],
        alone: bool,
    ) -> Result<(), String> {
        let vertices = graph.vertices();
        let mut needed: Vec<_> =
            vertices.iter().map(|v| roots.iter().any(|(d, ..)| *d == v.digest)).collect();
        for (index, vertex) in vertices.iter().enumerate().rev() {
            if !needed[index] {
                continue;
            }
            vertex.inputs.iter().for_each(|edge| needed[edge.vertex.0 as usize] = true);
            let last = self.vertices.get(&vertex.digest).and_then(|story| story.last.as_ref());
            // Another build of the job may go on with it.
            if !alone && last.is_some_and(|last| last.completed.is_none() || last.error.is_some()) {
                continue;
            }
            let Some(last) = last.filter(|last| last.completed.is_some()) else {
                return Err(format!("`{}` has not ended, though its build has: {last:?}", vertex.name));
            };
            let anew = matches!(last.outcome, None | Some(Outcome::Forced | Outcome::Shared));
            if vertex.options.ignore_cache && !anew {
                return Err(format!("`{}` ignores the cache, but ends with {:?}", vertex.name, last.outcome));
            }
            if let Some(error) = &last.error {
                return Err(format!("`{}` shows `{error}`, though its build succeeded", vertex.name));
            }
        }
        for (digest, outcome, single) in roots {
            let last = self.vertices.get(digest).and_then(|story| story.last.as_ref());
            let shown = last.and_then(|last| last.outcome.as_ref());
            // The outputs of one vertex may have come in different ways.
            let same = shown.is_some_and(|shown| !single || discriminant(shown) == discriminant(outcome));
            if !same && alone && !self.twins {
                return Err(format!("{digest} shows {shown:?}, its result says {outcome:?}"));
            }
        }
        Ok(())
    }

    /// After the job's end: nothing is left open.
    pub(super) fn check_end(&self) -> Result<(), String> {
        match self.vertices.values().find(|story| story.open.is_some()) {
            Some(story) => Err(format!("never ends: {:?}", story.last)),
            None => Ok(()),
        }
    }
}
