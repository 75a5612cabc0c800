//! Processes made ahead, already in their control groups.
//!
//! Entering groups of version 1 makes the kernel wait until every processor has passed a quiet point, which takes
//! longer than everything else about a step together. So a few processes wait there for what comes. A thread of its own
//! makes them, as soon as there has been a first step, and of the kind that was asked for last. Where there is only
//! version 2, a process is cloned right into its group, which costs nothing, and there are no spares.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use kiln_executor::oci;
use rand::Rng as _;
use rand::distr::Alphanumeric;

use crate::cgroups::{ContainerGroups, Hierarchies};
use crate::error::Result;
use crate::runtime::{Inner, Process};

/// How groups of spares are named: no container's name has a hyphen.
const PREFIX: &str = "spare-";
const NAME_LENGTH: usize = 25;
/// How many wait. A chain of short steps takes them faster than a single one can be made, and they are made faster
/// when there are several to make.
const READY: usize = 6;

/// What two spares have to have in common to take each other's place.
#[derive(Clone, Debug, PartialEq)]
struct Kind {
    flags: u64,
    resources: oci::Resources,
}

#[derive(Debug)]
struct Spare {
    kind: Kind,
    process: Process,
    groups: ContainerGroups,
}

/// The spares of a runtime.
#[derive(Debug)]
pub(crate) struct Spares {
    hierarchies: Hierarchies,
    /// The group above all of them, from the root of each hierarchy.
    parent: String,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    ready: VecDeque<Spare>,
    wanted: Option<Kind>,
    closed: bool,
}

impl Spares {
    /// None yet. Takes away groups that others left behind in `parent`.
    pub(crate) fn new(hierarchies: Hierarchies, parent: &str) -> Self {
        let spares =
            Self { hierarchies, parent: parent.to_owned(), state: Mutex::default(), changed: Condvar::new() };
        // Those of a daemon that runs have a process in them, and stay.
        ContainerGroups::new(&spares.hierarchies, Some(parent)).remove_empty(PREFIX);
        spares
    }

    /// A process in groups of its own at `path`, with these limits, if one of that kind waits. What waits next is
    /// of that kind.
    pub(crate) fn take(
        &self,
        flags: u64,
        path: &str,
        resources: &oci::Resources,
    ) -> Option<(Process, ContainerGroups)> {
        let fits = !self.hierarchies.v1.is_empty()
            && Path::new(path).parent() == Some(Path::new(&self.parent))
            && (resources.memory.is_none() && resources.cpu.is_none());
        if !fits {
            return None;
        }
        let kind = Kind { flags, resources: resources.clone() };
        let mut state = self.lock();
        let place = state.ready.iter().position(|spare| spare.kind == kind);
        let spare = place.and_then(|place| state.ready.remove(place));
        state.wanted = Some(kind);
        drop(state);
        self.changed.notify_one();
        let Spare { process, groups, .. } = spare?;
        match groups.rename(&ContainerGroups::new(&self.hierarchies, Some(path))) {
            Ok(groups) => Some((process, groups)),
            Err((groups, error)) => {
                tracing::debug!(%error, "a spare cannot be used");
                drop(process);
                groups.remove();
                None
            }
        }
    }

    /// Makes spares until there is no need for them any more.
    pub(crate) fn keep(&self, runtime: &Inner) {
        while let Some(kind) = self.next() {
            match self.make(runtime, kind) {
                Ok(spare) => self.lock().ready.push_back(spare),
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "no spare process: steps take longer"
                    );
                    // Until somebody asks again.
                    self.lock().wanted = None;
                }
            }
        }
        let left = std::mem::take(&mut self.lock().ready);
        for Spare { process, groups, .. } in left {
            drop(process);
            groups.remove();
        }
    }

    /// Ends [`keep`](Self::keep).
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// Waits until another one is wanted; `None` at the end. Gives up those that nobody wants.
    fn next(&self) -> Option<Kind> {
        let mut state = self.lock();
        loop {
            if state.closed {
                return None;
            }
            if let Some(kind) = state.wanted.clone() {
                let of_kind = state.ready.iter().filter(|spare| spare.kind == kind).count();
                if of_kind < READY {
                    let unwanted = (state.ready.len() >= 2 * READY)
                        .then(|| state.ready.iter().position(|spare| spare.kind != kind))
                        .flatten()
                        .and_then(|place| state.ready.remove(place));
                    drop(state);
                    if let Some(Spare { process, groups, .. }) = unwanted {
                        drop(process);
                        groups.remove();
                    }
                    return Some(kind);
                }
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn make(&self, runtime: &Inner, kind: Kind) -> Result<Spare> {
        // Other daemons may have theirs beside them.
        let name: String = rand::rng().sample_iter(Alphanumeric).take(NAME_LENGTH).map(char::from).collect();
        let path = format!("{}/{PREFIX}{name}", self.parent);
        let groups = ContainerGroups::new(&self.hierarchies, Some(&path));
        let made = groups.make(&kind.resources).and_then(|()| runtime.make(kind.flags, &groups, None));
        match made {
            Ok(process) => Ok(Spare { kind, process, groups }),
            Err(error) => {
                groups.remove();
                Err(error)
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts the thread that makes spares.
pub(crate) fn start(runtime: &Arc<Inner>) -> std::io::Result<std::thread::JoinHandle<()>> {
    let runtime = runtime.clone();
    let keep = move || runtime.spares.keep(&runtime);
    std::thread::Builder::new().name("runtime-spares".to_owned()).spawn(keep)
}
