//! What one of those who call back through a bridge holds: a client that drives its build, or a frontend.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kiln_frontend::{FrontendResult, Reference};
use kiln_llb::pb;
use tokio::sync::oneshot;

use crate::container::Container;
use crate::error::{Error, Result};

/// References that one caller may hold.
const MAX_REFS: usize = 100_000;
/// Containers that one caller may hold.
const MAX_CONTAINERS: usize = 100;

/// One caller. Its references lead to the build, so whoever made it clears it at its end.
#[derive(Debug, Default)]
pub(crate) struct Caller {
    inputs: BTreeMap<String, pb::Definition>,
    /// How many frontends run around this one, each within the next.
    depth: u32,
    returned: Mutex<Option<oneshot::Sender<Result<FrontendResult>>>>,
    kept: Mutex<BTreeMap<String, Arc<dyn Reference>>>,
    /// Containers by the caller's ids; one that is being made is none yet.
    containers: Mutex<BTreeMap<String, Option<Arc<Container>>>>,
}

impl Caller {
    /// A caller with these inputs, within `depth` frontends; what it returns goes to `returned`.
    pub(crate) fn new(
        inputs: BTreeMap<String, pb::Definition>,
        depth: u32,
        returned: Option<oneshot::Sender<Result<FrontendResult>>>,
    ) -> Self {
        Self {
            inputs,
            depth,
            returned: Mutex::new(returned),
            kept: Mutex::default(),
            containers: Mutex::default(),
        }
    }

    pub(crate) fn inputs(&self) -> &BTreeMap<String, pb::Definition> {
        &self.inputs
    }

    pub(crate) fn depth(&self) -> u32 {
        self.depth
    }

    /// Takes the caller's result, once.
    pub(crate) fn finish(&self, result: Result<FrontendResult>) -> bool {
        let sender = self.returned.lock().unwrap_or_else(PoisonError::into_inner).take();
        sender.is_some_and(|s| s.send(result).is_ok())
    }

    /// Keeps a reference; its id, which begins with that of the build.
    pub(crate) fn keep(&self, build: &str, reference: Arc<dyn Reference>) -> Result<String> {
        let mut kept = self.kept();
        if kept.len() >= MAX_REFS {
            return Err(Error::request(format!("a build may hold at most {MAX_REFS} references")));
        }
        let id = format!("{build}-{}", kept.len());
        kept.insert(id.clone(), reference);
        Ok(id)
    }

    pub(crate) fn find(&self, id: &str) -> Result<Arc<dyn Reference>> {
        if id.is_empty() {
            return Err(Error::request("empty ref: "));
        }
        let kept = self.kept();
        kept.get(id).cloned().ok_or_else(|| {
            let all: Vec<&String> = kept.keys().take(10).collect();
            Error::request(format!("no such ref: {id}, all {all:?}"))
        })
    }

    /// Lets go of everything.
    pub(crate) fn clear(&self) {
        let kept = std::mem::take(&mut *self.kept());
        let containers = std::mem::take(&mut *self.containers());
        drop((kept, containers));
    }

    /// Takes an id for a container that is about to be made.
    pub(crate) fn reserve_container(self: &Arc<Self>, id: &str) -> Result<Place> {
        let mut containers = self.containers();
        if containers.contains_key(id) {
            return Err(Error::ContainerExists { id: id.to_owned() });
        }
        if containers.len() >= MAX_CONTAINERS {
            return Err(Error::request(format!("a frontend may hold at most {MAX_CONTAINERS} containers")));
        }
        containers.insert(id.to_owned(), None);
        Ok(Place { caller: self.clone(), id: id.to_owned() })
    }

    pub(crate) fn container(&self, id: &str) -> Option<Arc<Container>> {
        self.containers().get(id).cloned().flatten()
    }

    pub(crate) fn take_container(&self, id: &str) -> Option<Arc<Container>> {
        let mut containers = self.containers();
        let made = containers.get(id)?.is_some();
        if made { containers.remove(id).flatten() } else { None }
    }

    fn containers(&self) -> MutexGuard<'_, BTreeMap<String, Option<Arc<Container>>>> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kept(&self) -> MutexGuard<'_, BTreeMap<String, Arc<dyn Reference>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The id of a container that is being made. Dropped, it is free again.
#[derive(Debug)]
pub(crate) struct Place {
    caller: Arc<Caller>,
    id: String,
}

impl Place {
    pub(crate) fn fill(self, container: Arc<Container>) {
        // A caller that was cleared meanwhile wants it no more.
        if let Some(place) = self.caller.containers().get_mut(&self.id) {
            *place = Some(container);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut containers = self.caller.containers();
        if containers.get(&self.id).is_some_and(Option::is_none) {
            containers.remove(&self.id);
        }
    }
}
