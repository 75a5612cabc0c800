use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;

use crate::error::Result;
use crate::process::NetworkMode;
use crate::samples::NetStat;

/// Which network namespace a process runs in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetworkNamespace {
    /// The host's.
    Host,
    /// A new one with nothing but loopback.
    Empty,
    /// The one at this path.
    At(PathBuf),
}

/// What a process wants of its network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetworkRequest<'a> {
    /// Its host name, if it asked for one of its own.
    pub hostname: Option<&'a str>,
    /// Whether it may change its namespace. Nobody gets such a namespace afterwards.
    pub privileged: bool,
}

/// Gives processes a network.
///
/// 1. A lease is good until it is dropped; dropping it does not block, and gives back what was taken.
/// 2. Two leases never share a namespace at the same time, unless it is the host's.
/// 3. What a privileged process had is given to nobody else.
/// 4. After `close` nothing is left but what is leased, and that goes when its lease does.
#[async_trait]
pub trait Network: fmt::Debug + Send + Sync + 'static {
    /// The name shown as a worker's label: `host`, `none`, `cni`.
    fn name(&self) -> &'static str;

    /// Takes a namespace for a process.
    ///
    /// # Cancel safety
    /// A dropped future leaves nothing taken.
    async fn lease(&self, request: NetworkRequest<'_>) -> Result<Box<dyn NetworkLease>>;

    /// Gives up what is held ready.
    async fn close(&self) {}
}

/// A network namespace in use.
pub trait NetworkLease: fmt::Debug + Send + Sync {
    /// Which one.
    fn namespace(&self) -> &NetworkNamespace;

    /// What has gone through it since it was taken, where that is counted. Blocks.
    fn usage(&self) -> Option<NetStat> {
        None
    }
}

/// The networks of a worker, one for each mode an op can ask for.
#[derive(Clone, Debug)]
pub struct Networks {
    sandbox: Arc<dyn Network>,
}

impl Networks {
    /// The host's network for ops that ask for no mode.
    pub fn host() -> Self {
        Self::with_sandbox(Arc::new(HostNetwork))
    }

    /// No network for ops that ask for no mode.
    pub fn none() -> Self {
        Self::with_sandbox(Arc::new(NoNetwork))
    }

    /// Uses `sandbox` for ops that ask for no mode.
    pub fn with_sandbox(sandbox: Arc<dyn Network>) -> Self {
        Self { sandbox }
    }

    /// The name of the network that ops get by default.
    pub fn default_name(&self) -> &'static str {
        self.sandbox.name()
    }

    /// Takes a namespace for a process.
    pub async fn lease(
        &self,
        mode: NetworkMode,
        request: NetworkRequest<'_>,
    ) -> Result<Box<dyn NetworkLease>> {
        match mode {
            NetworkMode::Sandbox => self.sandbox.lease(request).await,
            NetworkMode::Host => HostNetwork.lease(request).await,
            NetworkMode::None => NoNetwork.lease(request).await,
        }
    }

    /// Gives up what is held ready.
    pub async fn close(&self) {
        self.sandbox.close().await;
    }
}

impl Default for Networks {
    fn default() -> Self {
        Self::host()
    }
}

#[derive(Debug)]
struct HostNetwork;

#[async_trait]
impl Network for HostNetwork {
    fn name(&self) -> &'static str {
        "host"
    }

    async fn lease(&self, _request: NetworkRequest<'_>) -> Result<Box<dyn NetworkLease>> {
        Ok(Box::new(Fixed(NetworkNamespace::Host)))
    }
}

#[derive(Debug)]
struct NoNetwork;

#[async_trait]
impl Network for NoNetwork {
    fn name(&self) -> &'static str {
        "none"
    }

    async fn lease(&self, _request: NetworkRequest<'_>) -> Result<Box<dyn NetworkLease>> {
        Ok(Box::new(Fixed(NetworkNamespace::Empty)))
    }
}

/// The runtime makes and removes these itself.
#[derive(Debug)]
struct Fixed(NetworkNamespace);

impl NetworkLease for Fixed {
    fn namespace(&self) -> &NetworkNamespace {
        &self.0
    }
}
