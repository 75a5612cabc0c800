//! What a backend brings to a build.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use kiln_cache::CacheManager;
use kiln_content::ContentStore;
use kiln_executor::{Device, Devices, Executor};
use kiln_llb::pb;
use kiln_registry::Registry;
use kiln_session::Sessions;
use kiln_source::git::Git;
use kiln_source::http::Http;
use kiln_source::image::Images;

/// The ports of one backend, filled in by the daemon's composition.
#[derive(Debug)]
pub struct Worker {
    /// Random text kept with the state.
    pub id: String,
    /// Labels by key.
    pub labels: BTreeMap<String, String>,
    /// What it can run, its own platform first.
    pub platforms: Vec<pb::Platform>,
    /// The catalogue.
    pub cache: CacheManager,
    /// Blobs.
    pub content: Arc<dyn ContentStore>,
    /// Processes.
    pub executor: Arc<dyn Executor>,
    /// Devices of the host for processes.
    pub devices: Arc<dyn Devices>,
    /// Registries.
    pub registry: Registry,
    /// Web servers.
    pub http: Http,
    /// Git repositories.
    pub git: Git,
    /// Clients.
    pub sessions: Sessions,
    /// A directory for what steps need while they run.
    pub scratch: PathBuf,
    /// Entitlements that builds may be granted.
    pub entitlements: Vec<String>,
}

impl Worker {
    /// Devices of the host that there are now.
    pub async fn list_devices(&self) -> Vec<Device> {
        let devices = self.devices.clone();
        // Failed, it has ended in a panic, and has named none.
        tokio::task::spawn_blocking(move || devices.list()).await.unwrap_or_default()
    }

    /// What finds images.
    pub(crate) fn images(&self) -> Images {
        Images::new(self.registry.clone(), self.content.clone(), self.cache.clone())
    }
}
