use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use kiln_executor::{ContainerId, Error, Result, oci};
use tokio::sync::watch;

use crate::builtin::Builtin;

/// How many ended containers are remembered, so that the answer about one is "stopped" and not "not found".
const ENDED: usize = 1024;

/// What is known of the containers of an executor.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    containers: HashMap<ContainerId, watch::Sender<State>>,
    ended: VecDeque<ContainerId>,
}

/// How far a container is.
#[derive(Clone, Debug)]
pub(crate) enum State {
    Preparing,
    Running(Box<Running>),
    Stopped,
    Failed,
}

/// What is needed to run another process in a container.
#[derive(Clone, Debug)]
pub(crate) struct Running {
    pub(crate) bundle: PathBuf,
    pub(crate) process: oci::Process,
    /// What the built-in runtime knows of it.
    pub(crate) builtin: Option<Arc<Builtin>>,
}

impl Registry {
    /// Enters a container that is about to run.
    pub(crate) fn enter(&self, id: &ContainerId) -> Result<()> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(state) = known.containers.get(id)
            && matches!(*state.borrow(), State::Preparing | State::Running(_))
        {
            return Err(Error::ContainerExists { id: id.to_string() });
        }
        known.ended.retain(|ended| ended != id);
        known.containers.insert(id.clone(), watch::Sender::new(State::Preparing));
        Ok(())
    }

    pub(crate) fn set(&self, id: &ContainerId, state: State) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = matches!(state, State::Stopped | State::Failed);
        if let Some(sender) = known.containers.get(id) {
            sender.send_replace(state);
        }
        if ended {
            known.ended.push_back(id.clone());
            while known.ended.len() > ENDED {
                if let Some(oldest) = known.ended.pop_front() {
                    known.containers.remove(&oldest);
                }
            }
        }
    }

    /// Waits until the container runs.
    pub(crate) async fn running(&self, id: &ContainerId) -> Result<Running> {
        let not_found = || Error::ContainerNotFound { id: id.to_string() };
        let mut state = {
            let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            known.containers.get(id).ok_or_else(not_found)?.subscribe()
        };
        loop {
            match &*state.borrow_and_update() {
                State::Preparing => {}
                State::Running(running) => return Ok((**running).clone()),
                State::Stopped => return Err(Error::ContainerStopped { id: id.to_string() }),
                State::Failed => return Err(Error::ContainerFailed { id: id.to_string() }),
            }
            state.changed().await.map_err(|_| not_found())?;
        }
    }
}
