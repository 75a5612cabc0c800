//! The daemon put together: stores, catalogue, runtime, engine, services.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use kiln_cache::{CacheManager, CacheOptions, Disk, GcPolicy, PruneOptions};
use kiln_content::LocalStore;
use kiln_control::{Control, ControlOptions, Version};
use kiln_engine::{BuildLimits, Engine, Worker};
use kiln_executor::{DnsConfig, WorkerNetwork};
use kiln_frontend::Frontend;
use kiln_frontend_dockerfile::DockerfileFrontend;
use kiln_llb::pb;
use kiln_registry::{Config, HostConfig, KeyPair, Registry};
use kiln_session::Sessions;
use kiln_snapshot::OverlaySnapshotter;
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
use crate::notify::notify;
use crate::settings::{NetworkMode, Settings};
use crate::{PACKAGE, VERSION, config, signals};

/// Version of the Dockerfile language that the built-in frontend speaks.
const DOCKERFILE_VERSION: &str = "1.26.0";
/// How often the garbage collector looks whether there is too much.
const GC_INTERVAL: Duration = Duration::from_secs(60);
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
    tasks.spawn(keep_house(parts.engine.clone(), parts.policies.clone(), stop.clone()));
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
        let snapshotter = Arc::new(OverlaySnapshotter::open(state.join("snapshots"))?);
        let content = Arc::new(LocalStore::open(state.join("content"))?);
        let cache = CacheManager::open(CacheOptions::new(&state, snapshotter, content.clone()))
            .await
            .context("failed to open the catalogue")?;
        let executor = open_executor(settings, &state).await?;
        let sessions = Sessions::new();
        let registry = Registry::new(registry_config(settings)?);
        let id = worker_id(&state)?;
        let worker = Worker {
            id,
            labels: labels(settings, &executor),
            platforms: platforms(settings)?,
            cache: cache.clone(),
            content,
            executor: Arc::new(executor.clone()),
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
        let engine = Engine::limited(worker, options, frontends(settings), limits);
        let version = Version {
            package: PACKAGE.to_owned(),
            version: VERSION.to_owned(),
            revision: "kiln".to_owned(),
            dockerfile_version: DOCKERFILE_VERSION.to_owned(),
        };
        let control = Control::new(engine.clone(), ControlOptions { version, gc_policies: policies.clone() });
        Ok(Self { engine, control, cache, sessions, executor, policies })
    }
}

fn http_options() -> HttpOptions {
    let mut options = HttpOptions::default();
    options.user_agent = format!("buildkit/{VERSION}");
    options
}

async fn open_executor(settings: &Settings, state: &Path) -> Result<RuncExecutor> {
    let mut options = RuncOptions::new(state.join("executor"));
    options.binary.clone_from(&settings.runtime);
    options.network = match settings.network {
        NetworkMode::Auto => WorkerNetwork::Auto,
        NetworkMode::Host => WorkerNetwork::Host,
    };
    options.cgroup_parent.clone_from(&settings.cgroup_parent);
    let dns = settings.dns.clone().unwrap_or_default();
    options.dns =
        DnsConfig { nameservers: dns.nameservers, options: dns.options, search_domains: dns.search_domains };
    // Looks for leftovers of a killed daemon, which may mean unmounting.
    tokio::task::spawn_blocking(move || RuncExecutor::open(options)).await?.context("no worker found")
}

fn frontends(settings: &Settings) -> BTreeMap<String, Arc<dyn Frontend>> {
    let mut frontends: BTreeMap<String, Arc<dyn Frontend>> = BTreeMap::new();
    if settings.dockerfile_frontend {
        frontends.insert(kiln_frontend_dockerfile::NAME.to_owned(), Arc::new(DockerfileFrontend));
    }
    if !settings.gateway_frontend {
        tracing::debug!("the gateway frontend is off");
    }
    frontends
}

fn labels(settings: &Settings, executor: &RuncExecutor) -> BTreeMap<String, String> {
    const PREFIX: &str = "org.mobyproject.buildkit.worker.";
    let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let own = [
        ("executor", "oci".to_owned()),
        ("snapshotter", "overlayfs".to_owned()),
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

fn platforms(settings: &Settings) -> Result<Vec<pb::Platform>> {
    let host = kiln_llb::platform::host();
    if settings.platforms.is_empty() {
        return Ok(vec![host]);
    }
    settings
        .platforms
        .iter()
        .map(|text| platform(text, &host).with_context(|| format!("invalid platform `{text}`")))
        .collect()
}

/// `OS/ARCH[/VARIANT]`, or an architecture alone.
fn platform(text: &str, host: &pb::Platform) -> Option<pb::Platform> {
    let parts: Vec<&str> = text.split('/').collect();
    let (os, architecture, variant) = match parts.as_slice() {
        [architecture] => (host.os.as_str(), *architecture, ""),
        [os, architecture] => (*os, *architecture, ""),
        [os, architecture, variant] => (*os, *architecture, *variant),
        _ => return None,
    };
    if os.is_empty() || architecture.is_empty() {
        return None;
    }
    let wanted = pb::Platform {
        os: os.to_owned(),
        architecture: architecture.to_owned(),
        variant: variant.to_owned(),
        ..pb::Platform::default()
    };
    Some(kiln_llb::platform::normalize(&wanted, host))
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
        let bytes = |space: Option<crate::units::DiskSpace>| space.map(|s| s.bytes(size));
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
    let bytes = |space: Option<crate::units::DiskSpace>| space.map_or(0, |s| s.bytes(size));
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
async fn keep_house(engine: Engine, policies: Vec<GcPolicy>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(GC_INTERVAL) => {}
            () = stop.cancelled() => return,
        }
        engine.expire();
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
fn lock(root: &Path) -> Result<std::fs::File> {
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
        .add_service(control.gateway_server());
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
