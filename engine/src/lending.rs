//! Capabilities of clients, lent to running work at the moment it needs them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use kiln_llb::pb;
use kiln_session::{Lender, Waiters};
use kiln_solver::{OpContext, OpError, VertexDigest, WaiterSet};
use kiln_source::{SessionCredentials, SessionLayouts};

use crate::build::BuildState;
use crate::worker::Worker;

/// What the engine attaches to a job: which client it belongs to, and what only its build knows.
#[derive(Debug, Default)]
pub(crate) struct JobInfo {
    pub(crate) session_id: String,
    /// The build, as long as it runs; for ops that solve something for those who wait for them.
    pub(crate) build: OnceLock<Weak<BuildState>>,
    /// Limits that the build sets for processes. They are in no key, so each who waits for one has limits of its own.
    pub(crate) resources: Mutex<HashMap<VertexDigest, pb::LinuxResources>>,
}

/// The limits that those who wait for a vertex set for it.
pub(crate) fn resources(cx: &OpContext, vertex: &VertexDigest) -> Vec<pb::LinuxResources> {
    let of =
        |info: &JobInfo| info.resources.lock().unwrap_or_else(PoisonError::into_inner).get(vertex).cloned();
    cx.waiters.current().iter().filter_map(|c| of(c.downcast_ref::<JobInfo>()?)).collect()
}

/// Asks the sessions of those who wait for an op; holds none.
#[derive(Clone, Debug)]
pub(crate) struct Lending {
    pub(crate) lender: Lender,
}

#[derive(Debug)]
struct OpWaiters(WaiterSet);

impl Waiters for OpWaiters {
    fn sessions(&self) -> Vec<String> {
        let contexts = self.0.current();
        let ids = contexts.iter().filter_map(|c| c.downcast_ref::<JobInfo>());
        ids.map(|info| info.session_id.clone()).filter(|id| !id.is_empty()).collect()
    }
}

impl Lending {
    pub(crate) fn new(worker: &Arc<Worker>, cx: &OpContext) -> Self {
        Self { lender: Lender::new(worker.sessions.clone(), Arc::new(OpWaiters(cx.waiters.clone()))) }
    }

    /// A secret; `None` if no waiting client has it.
    pub(crate) async fn secret(&self, id: &str) -> Result<Option<Vec<u8>>, OpError> {
        kiln_session::secrets::ask(&self.lender, id).await.map_err(OpError::not_lent)
    }

    /// Registry credentials of the waiting clients.
    pub(crate) fn credentials(&self) -> SessionCredentials {
        SessionCredentials::new(self.lender.clone())
    }

    /// Image layouts of the waiting clients.
    pub(crate) fn layouts(&self) -> SessionLayouts {
        SessionLayouts::new(self.lender.clone())
    }
}
