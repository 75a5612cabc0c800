use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use kiln_llb::pb;

use crate::bridge::Bridge;
use crate::error::Result;
use crate::result::FrontendResult;

/// Turns the input of a build into results.
///
/// Every implementation keeps these:
/// 1. All it learns and solves goes through the bridge it was given, for as long as the call lasts and no longer.
/// 2. It returns references it got from that bridge, or none for an empty result; it need not evaluate them.
/// 3. An error about its input carries the places in the input ([`Error::sources`](crate::Error::sources)).
/// 4. A dropped future leaves nothing behind.
#[async_trait]
pub trait Frontend: fmt::Debug + Send + Sync + 'static {
    /// Solves one request.
    async fn solve(&self, bridge: Arc<dyn Bridge>, request: FrontendRequest) -> Result<FrontendResult>;
}

/// What a client asks of a frontend.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct FrontendRequest {
    /// Options of the frontend by name, as the client sent them.
    pub opts: BTreeMap<String, String>,
    /// Graphs handed over as named inputs.
    pub inputs: BTreeMap<String, pb::Definition>,
    /// Session of the client that started the build; local sources refer to it.
    pub session_id: String,
    /// Workers that may run the result, the default one first.
    pub workers: Vec<WorkerInfo>,
    /// LLB capabilities of the daemon. None means all that this build knows.
    pub llb_caps: Option<BTreeSet<String>>,
    /// Capabilities of the gateway. None means all that this build knows.
    pub gateway_caps: Option<BTreeSet<String>>,
    /// Name of the product that drives the build, for messages. Often empty.
    pub product: String,
}

impl FrontendRequest {
    /// A request with these options and nothing else.
    pub fn new(opts: BTreeMap<String, String>) -> Self {
        Self { opts, ..Self::default() }
    }

    /// Whether the daemon has this LLB capability.
    pub fn has_llb_cap(&self, cap: &str) -> bool {
        self.llb_caps.as_ref().is_none_or(|caps| caps.contains(cap))
    }
}

/// A worker as frontends see it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WorkerInfo {
    /// Its id.
    pub id: String,
    /// Labels by key.
    pub labels: BTreeMap<String, String>,
    /// Platforms it can run, its own first.
    pub platforms: Vec<pb::Platform>,
}
