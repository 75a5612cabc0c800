//! The daemon put together: stores, catalogue, runtime, engine, services.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use kiln_cache::{BuildRetention, CacheManager, CacheOptions, Disk, GcPolicy, PruneOptions, Room};
use kiln_content::LocalStore;
use kiln_control::{Control, ControlOptions, FrontendServer, Version};
use kiln_engine::{BuildLimits, Engine, FrontendImages, Frontends, Worker};
use kiln_executor::{Devices, DnsConfig, NoDevices};
use kiln_frontend_dockerfile::DockerfileFrontend;
use kiln_registry::{Config, HostConfig, KeyPair, Reference, Registry};
use kiln_session::Sessions;
use kiln_snapshot::{NativeSnapshotter, OverlaySnapshotter, Snapshotter};
use kiln_solver::SolverOptions;
use kiln_source::git::{Git, GitOptions};
use kiln_source::http::{Http, HttpOptions};
use kiln_worker_runc::{RuncExecutor, RuncOptions};
use rustix::fs::FlockOperation;
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};

use crate::listen::{self, Listener, Socket};
use crate::networks::networks;
use crate::notify::notify;
use crate::platforms::platforms;
use crate::settings::{Settings, SnapshotterChoice};
use crate::units::DiskSpace;
use crate::{PACKAGE, VERSION, config, signals};

/// Version of the Dockerfile language that the built-in frontend speaks.
const DOCKERFILE_VERSION: &str = "1.26.0";
/// How long after the start the garbage collector looks for the first time.
const GC_FIRST: Duration = Duration::from_secs(1);
/// How often the garbage collector looks whether there is too much.
const GC_INTERVAL: Duration = Duration::from_secs(60);
/// What stays free of a large disk, unless the configuration says; of a small one two in a hundred bytes and one in a
/// hundred inodes do.
const FLOOR: Room = Room { bytes: 1 << 30, inodes: 10_000 };
/// How long open calls may take to end once the daemon is told to stop.
const DRAIN: Duration = Duration::from_secs(5);

/// Serves until a signal, then stops everything.
pub(crate) async fn serve(settings: Settings) -> Result<()> {
    let tasks = TaskTracker::new();
    let stop = CancellationToken::new();
    signals::watch(&tasks, &stop)?;
    let _lock = lock(&settings.root)?;
    let listeners = listen::bind_all(&settings).await?;
    let parts = Parts::open(&settings).await?;

    let mut servers = tokio::task::JoinSet::new();
    for listener in listeners {
        tracing::info!("running server on {}", listener.name());
        servers.spawn(serve_one(listener, parts.control.clone(), settings.tls.clone(), stop.clone()));
    }
    tasks.spawn(keep_house(
        parts.control.clone(),
        parts.engine.clone(),
        parts.policies.clone(),
        stop.clone(),
    ));
    notify("READY=1");

    let mut outcome = Ok(());
    tokio::select! {
        () = stop.cancelled() => {}
        Some(ended) = servers.join_next() => {
            outcome = ended.context("a server task failed").and_then(|r| r);
            stop.cancel();
        }
    }
    notify("STOPPING=1");
    parts.engine.close().await;
    parts.control.end_listening();
    parts.sessions.shutdown().await;
    let drained = tokio::time::timeout(DRAIN, async {
        while let Some(ended) = servers.join_next().await {
            if let Err(error) = ended.context("a server task failed").and_then(|r| r) {
                tracing::warn!(error = format!("{error:#}"), "a server did not end well");
            }
        }
        parts.control.close().await;
    })
    .await;
    if drained.is_err() {
        tracing::warn!("calls were still open and have been cut off");
        servers.abort_all();
    }
    parts.executor.close().await;
    parts.cache.close().await.context("failed to close the catalogue")?;
    outcome
}

struct Parts {
    engine: Engine,
    control: Control,
    cache: CacheManager,
    sessions: Sessions,
    executor: RuncExecutor,
    policies: Vec<GcPolicy>,
}

impl Parts {
    async fn open(settings: &Settings) -> Result<Self> {
        let state = settings.root.join("kiln");
        let scratch = state.join("scratch");
        std::fs::create_dir_all(&scratch)
            .with_context(|| format!("failed to make `{}`", scratch.display()))?;
        let Stores { cache, content, snapshotter } = open_cache(settings, &state).await?;
        let executor = open_executor(settings, &state).await?;
        let sessions = Sessions::new();
        let registry = Registry::new(registry_config(settings)?);
        let id = worker_id(&state)?;
        let worker = Worker {
            id,
            labels: labels(settings, snapshotter, &executor),
            platforms: platforms(&settings.platforms)?,
            cache: cache.clone(),
            content,
            executor: Arc::new(executor.clone()),
            devices: devices(settings),
            registry,
            http: Http::new(cache.clone(), http_options()),
            git: Git::new(cache.clone(), GitOptions::new(&scratch)),
            sessions: sessions.clone(),
            scratch,
            entitlements: settings.entitlements.clone(),
        };
        let mut options = SolverOptions::default();
        options.max_parallelism = settings.max_parallelism;
        let policies = policies(settings);
        tracing::info!(worker = %worker.id, "found worker");
        let mut limits = BuildLimits::default();
        limits.step = settings.limits.step;
        limits.silence = settings.limits.silence;
        limits.build = settings.limits.build;
        let version = Version {
            package: PACKAGE.to_owned(),
            version: VERSION.to_owned(),
            revision: "kiln".to_owned(),
            dockerfile_version: DOCKERFILE_VERSION.to_owned(),
        };
        let engine = Engine::limited(worker, options, frontends(settings, &version)?, limits);
        let retention = settings
            .history
            .map_or_else(BuildRetention::default, |(age, count)| BuildRetention { age, count });
        let options = ControlOptions { version, gc_policies: policies.clone(), retention };
        let control = Control::new(engine.clone(), options);
        Ok(Self { engine, control, cache, sessions, executor, policies })
    }
}

fn http_options() -> HttpOptions {
    let mut options = HttpOptions::default();
    options.user_agent = format!("buildkit/{VERSION}");
    options
}

/// The catalogue, and its stores.
pub(crate) struct Stores {
    pub(crate) cache: CacheManager,
    content: Arc<LocalStore>,
    snapshotter: &'static str,
}

/// Opens the catalogue and its stores below `state`.
pub(crate) async fn open_cache(settings: &Settings, state: &Path) -> Result<Stores> {
    let snapshotter = open_snapshotter(settings.snapshotter, &state.join("snapshots"))?;
    let content = Arc::new(LocalStore::open(state.join("content"))?);
    let name = snapshotter.name();
    let mut options = CacheOptions::new(state, snapshotter, content.clone());
    options.floor = floor(settings)?;
    let cache = CacheManager::open(options).await.context("failed to open the catalogue")?;
    Ok(Stores { cache, content, snapshotter: name })
}

/// Opens the snapshots; which way they are stacked is found out where it was not said.
fn open_snapshotter(choice: SnapshotterChoice, dir: &Path) -> Result<Arc<dyn Snapshotter>> {
    std::fs::create_dir_all(dir).with_context(|| format!("failed to make `{}`", dir.display()))?;
    let native = match choice {
        SnapshotterChoice::Native => true,
        SnapshotterChoice::Overlayfs => false,
        SnapshotterChoice::Auto => match OverlaySnapshotter::works_at(dir) {
            Ok(()) => false,
            Err(error) => {
                tracing::warn!(%error, "overlayfs cannot be used here: the snapshotter is `native`");
                true
            }
        },
    };
    Ok(match native {
        true => Arc::new(NativeSnapshotter::open(dir)?),
        false => Arc::new(OverlaySnapshotter::open(dir)?),
    })
}

async fn open_executor(settings: &Settings, state: &Path) -> Result<RuncExecutor> {
    let mut options = RuncOptions::new(state.join("executor"));
    options.binary.clone_from(&settings.runtime);
    options.rootless = settings.rootless;
    options.cgroup_parent.clone_from(&settings.cgroup_parent);
    let dns = settings.dns.clone().unwrap_or_default();
    options.dns =
        DnsConfig { nameservers: dns.nameservers, options: dns.options, search_domains: dns.search_domains };
    let (network, state) = (settings.network.clone(), state.join("net").join("cni"));
    // Looks for leftovers of a killed daemon, which may mean unmounting.
    let opening = move || {
        options.networks = networks(network, state)?;
        RuncExecutor::open(options).context("no worker found")
    };
    tokio::task::spawn_blocking(opening).await?
}

fn devices(settings: &Settings) -> Arc<dyn Devices> {
    match &settings.devices {
        Some(devices) => {
            Arc::new(kiln_cdi::Registry::new(devices.dirs.clone(), devices.auto_allowed.clone()))
        }
        None => Arc::new(NoDevices),
    }
}

fn frontends(settings: &Settings, version: &Version) -> Result<Frontends> {
    let mut frontends = Frontends::default();
    if settings.dockerfile_frontend {
        frontends.builtin.insert(kiln_frontend_dockerfile::NAME.to_owned(), Arc::new(DockerfileFrontend));
    }
    if settings.gateway_frontend {
        let server = FrontendServer { version: version.clone() };
        let mut images = FrontendImages::new(Arc::new(server), Arc::new(DockerfileFrontend));
        images.allowed = settings
            .allowed_frontends
            .iter()
            .map(|text| {
                let parsed = Reference::parse(text);
                let parsed =
                    parsed.with_context(|| format!("invalid repository in allowedRepositories: `{text}`"));
                parsed.map(|reference| reference.name())
            })
            .collect::<Result<BTreeSet<_>>>()?;
        frontends.images = Some(images);
    }
    Ok(frontends)
}

fn labels(settings: &Settings, snapshotter: &str, executor: &RuncExecutor) -> BTreeMap<String, String> {
    const PREFIX: &str = "org.mobyproject.buildkit.worker.";
    let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let own = [
        ("executor", "oci".to_owned()),
        ("snapshotter", snapshotter.to_owned()),
        ("hostname", hostname),
        ("network", executor.network().to_owned()),
        ("oci.process-mode", "sandbox".to_owned()),
        ("selinux.enabled", "false".to_owned()),
    ];
    let mut labels: BTreeMap<String, String> =
        own.into_iter().map(|(k, v)| (format!("{PREFIX}{k}"), v)).collect();
    labels.extend(settings.worker_labels.clone());
    labels
}

fn registry_config(settings: &Settings) -> Result<Config> {
    let mut config = Config::default();
    config.max_concurrency = settings.registry_concurrency;
    for (host, entry) in &settings.registries {
        for file in entry.ca.iter().chain(entry.keypair.iter().flat_map(|p| [&p.key, &p.cert])) {
            std::fs::metadata(file)
                .with_context(|| format!("registry.\"{host}\" names `{}`", file.display()))?;
        }
        config.hosts.insert(
            host.clone(),
            HostConfig {
                mirrors: entry.mirrors.clone(),
                http: entry.http,
                insecure: entry.insecure,
                ca: entry.ca.clone(),
                keypairs: entry
                    .keypair
                    .iter()
                    .map(|p| KeyPair { key: p.key.clone(), cert: p.cert.clone() })
                    .collect(),
                tls_config_dirs: entry.tlsconfigdir.clone(),
            },
        );
    }
    Ok(config)
}

/// What of the disk stays free whatever is built.
fn floor(settings: &Settings) -> Result<Room> {
    let disk = rustix::fs::statvfs(&settings.root)
        .with_context(|| format!("failed to look at the disk of `{}`", settings.root.display()))?;
    let whole = Room { bytes: disk.f_blocks.saturating_mul(disk.f_frsize), inodes: disk.f_files };
    let of = |space: DiskSpace, all: u64| u64::try_from(space.bytes(all)).unwrap_or(0);
    let bytes = settings.hard_min_free_space.map(|space| of(space, whole.bytes));
    let inodes = settings.hard_min_free_inodes.map(|space| of(space, whole.inodes));
    Ok(Room {
        bytes: bytes.unwrap_or((whole.bytes / 50).min(FLOOR.bytes)),
        inodes: inodes.unwrap_or((whole.inodes / 100).min(FLOOR.inodes)),
    })
}

fn policies(settings: &Settings) -> Vec<GcPolicy> {
    if !settings.gc {
        return Vec::new();
    }
    let disk = rustix::fs::statvfs(&settings.root).ok().map(|s| {
        let bytes = |blocks: u64| i64::try_from(blocks.saturating_mul(s.f_frsize)).unwrap_or(i64::MAX);
        Disk { total: bytes(s.f_blocks), free: bytes(s.f_bavail) }
    });
    let size = disk.map_or(0, |d| u64::try_from(d.total).unwrap_or(0));
    if settings.gc_policies.is_empty() {
        let bytes = |space: Option<DiskSpace>| space.map(|s| s.bytes(size));
        let limits = settings.gc_limits;
        let limits = kiln_cache::GcLimits {
            reserved_space: bytes(limits.reserved),
            min_free_space: bytes(limits.min_free),
            max_used_space: bytes(limits.max_used),
        };
        return GcPolicy::defaults(limits, disk);
    }
    settings.gc_policies.iter().map(|policy| configured(policy, size)).collect()
}

fn configured(policy: &config::GcPolicy, size: u64) -> GcPolicy {
    let bytes = |space: Option<DiskSpace>| space.map_or(0, |s| s.bytes(size));
    GcPolicy(PruneOptions {
        filters: policy.filters.clone(),
        all: policy.all,
        keep_duration: policy.keep_duration.map(|d| d.0),
        reserved_space: bytes(policy.reserved_space.or(policy.keep_bytes)),
        max_used_space: bytes(policy.max_used_space),
        min_free_space: bytes(policy.min_free_space),
    })
}

/// Collects garbage, if there are policies, and forgets what is kept for a while only.
async fn keep_house(control: Control, engine: Engine, policies: Vec<GcPolicy>, stop: CancellationToken) {
    let mut pause = GC_FIRST;
    loop {
        tokio::select! {
            () = tokio::time::sleep(std::mem::replace(&mut pause, GC_INTERVAL)) => {}
            () = stop.cancelled() => return,
        }
        engine.expire();
        if let Err(error) = control.expire_history().await {
            tracing::warn!(%error, "old records of builds could not be removed");
        }
        if policies.is_empty() {
            continue;
        }
        if let Err(error) = engine.worker().cache.gc(&policies).await {
            tracing::warn!(%error, "garbage collection failed");
        }
    }
}

/// The text that names the worker, made once per state directory.
fn worker_id(state: &Path) -> Result<String> {
    let path = state.join("workerid");
    match std::fs::read_to_string(&path) {
        Ok(id) if !id.trim().is_empty() => Ok(id.trim().to_owned()),
        _ => {
            let id = kiln_cache::RecordId::random().to_string();
            std::fs::write(&path, &id).with_context(|| format!("failed to write `{}`", path.display()))?;
            Ok(id)
        }
    }
}

/// One daemon per root directory.
pub(crate) fn lock(root: &Path) -> Result<std::fs::File> {
    use std::os::unix::fs::DirBuilderExt as _;
    if !root.exists() {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(root)
            .with_context(|| format!("failed to make `{}`", root.display()))?;
    }
    let path: PathBuf = root.join("buildkitd.lock");
    let file = std::fs::File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| format!("failed to open `{}`", path.display()))?;
    if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        bail!("could not lock {}, another instance running?", path.display());
    }
    Ok(file)
}

async fn serve_one(
    listener: Listener,
    control: Control,
    tls: Option<crate::settings::TlsFiles>,
    stop: CancellationToken,
) -> Result<()> {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_service_status("", tonic_health::ServingStatus::Serving).await;
    let mut server = Server::builder();
    if let (Socket::Tcp(_), Some(tls)) = (&listener.socket, &tls) {
        server = server.tls_config(tls_config(tls)?).context("failed to set up TLS")?;
    }
    let router = server
        .add_service(health_service)
        .add_service(control.control_server())
        .add_service(control.gateway_server())
        .add_service(control.content_server())
        .add_service(control.catalogue_server());
    let stopped = stop.cancelled_owned();
    let (socket, _keep) = listener.split();
    match socket {
        Socket::Unix(socket) => {
            let incoming = UnixListenerStream::new(socket);
            router.serve_with_incoming_shutdown(incoming, stopped).await?;
        }
        Socket::Tcp(socket) => {
            let incoming = TcpListenerStream::new(socket);
            router.serve_with_incoming_shutdown(incoming, stopped).await?;
        }
    }
    Ok(())
}

fn tls_config(files: &crate::settings::TlsFiles) -> Result<ServerTlsConfig> {
    let read =
        |path: &Path| std::fs::read(path).with_context(|| format!("failed to read `{}`", path.display()));
    let mut config =
        ServerTlsConfig::new().identity(Identity::from_pem(read(&files.cert)?, read(&files.key)?));
    if let Some(ca) = &files.ca {
        config = config.client_ca_root(Certificate::from_pem(read(ca)?));
    }
    Ok(config)
}
