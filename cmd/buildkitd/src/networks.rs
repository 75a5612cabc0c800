//! The networks of steps, as configured.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use kiln_cni::{CniNetwork, CniOptions, KernelNamespaces, NetworkList, Plugins};
use kiln_executor::Networks;

use crate::settings::{BRIDGE_AUTO, Network, NetworkMode};

/// Sets up what is configured; what CNI needs is kept in `state`. Called in a tokio runtime. Blocks.
pub(crate) fn networks(network: Network, state: PathBuf) -> Result<Networks> {
    let mode = match network.mode {
        NetworkMode::Auto if std::env::var_os(BRIDGE_AUTO).is_some_and(|value| !value.is_empty()) => {
            NetworkMode::Bridge
        }
        NetworkMode::Auto if network.cni_config.exists() => NetworkMode::Cni,
        NetworkMode::Auto => {
            tracing::warn!("using host network as the default");
            NetworkMode::Host
        }
        mode => mode,
    };
    let mut plugins = Plugins::new(network.cni_binaries.clone());
    let list = match mode {
        NetworkMode::None => return Ok(Networks::none()),
        NetworkMode::Host | NetworkMode::Auto => return Ok(Networks::host()),
        NetworkMode::Cni => NetworkList::read(&network.cni_config).context(
            "network mode cni needs a configuration: write one, or name it by cniConfigPath, or choose another networkMode",
        ),
        NetworkMode::Bridge => NetworkList::bridge(&network.bridge_name, &network.bridge_subnet)
            .and_then(|list| plugins.bridge(list))
            .context("network mode bridge is not available"),
    };
    let options = CniOptions { state, list: list?, plugins, ready: network.ready };
    let opened = CniNetwork::open(options, Arc::new(KernelNamespaces));
    Ok(Networks::with_sandbox(Arc::new(opened.context("the network of steps cannot be set up")?)))
}
