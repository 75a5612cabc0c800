//! Capabilities of clients, lent to running work at the moment it needs them.

use std::sync::Arc;

use kiln_session::{Lender, Waiters};
use kiln_solver::{OpContext, OpError, WaiterSet};
use kiln_source::{SessionCredentials, SessionLayouts};

use crate::worker::Worker;

/// What the engine attaches to a job: which client it belongs to.
#[derive(Debug)]
pub(crate) struct JobInfo {
    pub(crate) session_id: String,
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
        let asked = self.lender.soonest(|session| async move {
            match kiln_session::secrets::get(&session, id).await {
                Ok(Some(data)) => Ok(data),
                // The next client may have it.
                Ok(None) => Err(Asked::Absent),
                Err(error) => Err(Asked::Failed(error)),
            }
        });
        match asked.await {
            Ok(data) => Ok(Some(data)),
            Err(Asked::Absent) => Ok(None),
            Err(Asked::Failed(error)) if error.is_absent() => Ok(None),
            Err(Asked::Failed(error)) => Err(OpError::not_lent(error)),
        }
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

/// How asking one client for a secret ended.
enum Asked {
    Absent,
    Failed(kiln_session::Error),
}

impl From<kiln_session::Error> for Asked {
    fn from(error: kiln_session::Error) -> Self {
        Self::Failed(error)
    }
}
