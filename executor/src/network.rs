use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;

use crate::error::{Error, Result};
use crate::process::NetworkMode;

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

/// Gives processes a network.
///
/// 1. A lease is good until it is dropped; dropping it does not block, and gives back what was taken.
/// 2. Two leases never share a namespace, unless it is the host's.
#[async_trait]
pub trait Network: fmt::Debug + Send + Sync + 'static {
    /// The name shown as a worker's label: `host`, `none`, `cni`.
    fn name(&self) -> &'static str;

    /// Takes a namespace for a process; `hostname` if it asked for one of its own.
    async fn lease(&self, hostname: Option<&str>) -> Result<Box<dyn NetworkLease>>;
}

/// A network namespace in use.
pub trait NetworkLease: fmt::Debug + Send + Sync {
    /// Which one.
    fn namespace(&self) -> &NetworkNamespace;
}

/// The network that a worker gives by default, as configured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WorkerNetwork {
    /// The best there is: the host's, as long as nothing else is set up.
    #[default]
    Auto,
    /// The host's.
    Host,
    /// None.
    None,
    /// By CNI plugins of the operator's choice.
    Cni,
    /// By CNI plugins in the daemon's own arrangement.
    Bridge,
}

impl std::str::FromStr for WorkerNetwork {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(match text {
            "" | "auto" => Self::Auto,
            "host" => Self::Host,
            "none" => Self::None,
            "cni" => Self::Cni,
            "bridge" => Self::Bridge,
            other => return Err(Error::InvalidSpec { reason: format!("invalid network mode: {other:?}") }),
        })
    }
}

/// The networks of a worker, one for each mode an op can ask for.
#[derive(Clone, Debug)]
pub struct Networks {
    sandbox: Arc<dyn Network>,
}

impl Networks {
    /// Sets up what is configured.
    ///
    /// # Errors
    /// [`Error::NetworkUnavailable`] for modes that need what is not there.
    pub fn new(mode: WorkerNetwork) -> Result<Self> {
        let unavailable = |mode: &str| Error::NetworkUnavailable {
            mode: mode.to_owned(),
            reason: "this version sets up the modes `host` and `none`".to_owned(),
        };
        match mode {
            WorkerNetwork::Auto => {
                tracing::warn!("using host network as the default");
                Ok(Self::with_sandbox(Arc::new(HostNetwork)))
            }
            WorkerNetwork::Host => Ok(Self::with_sandbox(Arc::new(HostNetwork))),
            WorkerNetwork::None => Ok(Self::with_sandbox(Arc::new(NoNetwork))),
            WorkerNetwork::Cni => Err(unavailable("cni")),
            WorkerNetwork::Bridge => Err(unavailable("bridge")),
        }
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
    pub async fn lease(&self, mode: NetworkMode, hostname: Option<&str>) -> Result<Box<dyn NetworkLease>> {
        match mode {
            NetworkMode::Sandbox => self.sandbox.lease(hostname).await,
            NetworkMode::Host => HostNetwork.lease(hostname).await,
            NetworkMode::None => NoNetwork.lease(hostname).await,
        }
    }
}

#[derive(Debug)]
struct HostNetwork;

#[async_trait]
impl Network for HostNetwork {
    fn name(&self) -> &'static str {
        "host"
    }

    async fn lease(&self, _hostname: Option<&str>) -> Result<Box<dyn NetworkLease>> {
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

    async fn lease(&self, _hostname: Option<&str>) -> Result<Box<dyn NetworkLease>> {
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
