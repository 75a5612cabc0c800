//! Which frontend serves a request, and what it is given.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use kiln_frontend::{Error as FrontendError, Frontend, FrontendResult, NamedContexts};
use kiln_llb::pb;
use kiln_registry::Reference;
use tokio::io::DuplexStream;

use crate::build::BuildBridge;
use crate::caller::Caller;
use crate::error::BoxError;
use crate::gateway;

/// How deep frontends may run within each other. Each may be a process that waits for the next.
const MAX_DEPTH: u32 = 16;
/// Frontends of one build that may run as processes at a time.
pub(crate) const MAX_PROCESSES: usize = 64;
/// The frontend that runs images, and the source that stands for a built-in one.
const GATEWAY: &str = "gateway.v0";
const BUILTIN_DOCKERFILE: &str = "dockerfile.v0";

/// The frontends of a daemon.
#[derive(Clone, Debug, Default)]
pub struct Frontends {
    /// Those that are built in, by name.
    pub builtin: BTreeMap<String, Arc<dyn Frontend>>,
    /// How images are run as frontends; none if they may not be.
    pub images: Option<FrontendImages>,
}

/// How images are run as frontends.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct FrontendImages {
    /// Serves the bridge to the process.
    pub server: Arc<dyn BridgeServer>,
    /// Finds what options put in the place of an image.
    pub contexts: Arc<dyn NamedContexts>,
    /// Full names of the repositories that images may come from; empty for any.
    pub allowed: BTreeSet<String>,
}

/// Serves a bridge to a process at the other end of a connection.
///
/// Every implementation keeps these:
/// 1. `serve` returns when the other end has closed the connection, or has broken the protocol, which is an error.
/// 2. A dropped `serve` ends all calls.
#[async_trait]
pub trait BridgeServer: fmt::Debug + Send + Sync + 'static {
    /// Serves `bridge` over `connection`.
    async fn serve(&self, bridge: BuildBridge, connection: DuplexStream) -> Result<(), BoxError>;
}

impl FrontendImages {
    /// Runs images from anywhere.
    pub fn new(server: Arc<dyn BridgeServer>, contexts: Arc<dyn NamedContexts>) -> Self {
        Self { server, contexts, allowed: BTreeSet::new() }
    }

    /// Refuses images of repositories that the daemon's administrator does not allow.
    fn check_allowed(&self, source: &str) -> Result<(), FrontendError> {
        if self.allowed.is_empty() {
            return Ok(());
        }
        let reference = Reference::parse(source).map_err(|error| FrontendError::input(error.to_string()))?;
        if self.allowed.contains(&reference.name()) {
            return Ok(());
        }
        Err(FrontendError::input(format!("'{source}' is not an allowed gateway source")))
    }
}

impl BuildBridge {
    /// Runs a frontend for this caller.
    pub(crate) async fn run_frontend(
        &self,
        name: &str,
        opts: BTreeMap<String, String>,
        inputs: BTreeMap<String, pb::Definition>,
    ) -> Result<FrontendResult, FrontendError> {
        let depth = self.caller.depth() + 1;
        if depth > MAX_DEPTH {
            return Err(FrontendError::input(format!(
                "frontends are nested deeper than {MAX_DEPTH}: each has asked for another, perhaps for itself"
            )));
        }
        let frontends = &self.state.frontends;
        let invalid = || FrontendError::input(format!("invalid frontend: {name}"));
        let images = frontends.images.as_ref();
        match opts.get("source").map(String::as_str) {
            Some(source) if name == GATEWAY && source != BUILTIN_DOCKERFILE => {
                images.ok_or_else(invalid)?.check_allowed(source)?;
            }
            _ => {}
        }
        let request = self.state.frontend_request(opts, inputs);
        match frontends.builtin.get(kiln_frontend::builtin(name, &request.opts)) {
            Some(frontend) => {
                let caller = Arc::new(Caller::new(request.inputs.clone(), depth, None));
                let bridge = Self { state: self.state.clone(), caller };
                frontend.solve(Arc::new(bridge), request).await
            }
            None if name == GATEWAY => gateway::run(self, images.ok_or_else(invalid)?, request, depth).await,
            None => Err(invalid()),
        }
    }
}
