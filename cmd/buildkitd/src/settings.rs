//! What the daemon runs with: flags over the configuration file over defaults.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::args::Args;
use crate::config::{Cdi, Dns, File, GcPolicy, History, Kiln, Registry, Worker};
use crate::place::Place;
use crate::units::{ConfigDuration, DiskSpace};

/// Environment variables read by the daemon itself besides those that flags name.
pub(crate) const NOTIFY_SOCKET: &str = "NOTIFY_SOCKET";
/// Makes the daemon's own bridge what the network mode `auto` means.
pub(crate) const BRIDGE_AUTO: &str = "BUILDKIT_NETWORK_BRIDGE_AUTO";
const DEFAULT_REGISTRY_CONCURRENCY: usize = 4;
const DEFAULT_CDI_DIRS: [&str; 3] = ["/etc/cdi", "/var/run/cdi", "/etc/buildkit/cdi"];
const DEFAULT_BRIDGE_NAME: &str = "buildkit0";
const DEFAULT_BRIDGE_SUBNET: &str = "10.10.0.0/16";
/// One namespace ready keeps the first step from waiting; the others come back from steps.
const DEFAULT_CNI_POOL: usize = 1;
const MAX_CNI_POOL: usize = 1024;
const MEGABYTE: i64 = 1_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NetworkMode {
    Auto,
    Host,
    None,
    Cni,
    Bridge,
}

/// How steps get their network.
#[derive(Clone, Debug)]
pub(crate) struct Network {
    pub(crate) mode: NetworkMode,
    pub(crate) cni_config: PathBuf,
    /// Where plugins are; where distributions put them if it is not given.
    pub(crate) cni_binaries: Option<PathBuf>,
    pub(crate) ready: usize,
    pub(crate) bridge_name: String,
    pub(crate) bridge_subnet: String,
}

/// Where devices of the host are described, and who may have them.
#[derive(Clone, Debug)]
pub(crate) struct Devices {
    pub(crate) dirs: Vec<PathBuf>,
    /// Devices and kinds that need no entitlement.
    pub(crate) auto_allowed: Vec<String>,
}

/// How snapshots are stacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SnapshotterChoice {
    Auto,
    Overlayfs,
    Native,
}

/// Everything the composition in `main` needs, checked.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) root: PathBuf,
    pub(crate) addresses: Vec<String>,
    pub(crate) socket_uid: Option<u32>,
    pub(crate) socket_gid: Option<u32>,
    pub(crate) tls: Option<TlsFiles>,
    pub(crate) log_level: tracing::Level,
    pub(crate) log_format: LogFormat,
    pub(crate) entitlements: Vec<String>,
    /// Devices of the host for steps; none if they are switched off.
    pub(crate) devices: Option<Devices>,
    pub(crate) worker_labels: BTreeMap<String, String>,
    pub(crate) platforms: Vec<String>,
    pub(crate) network: Network,
    /// Whether the daemon is in a user namespace.
    pub(crate) rootless: bool,
    pub(crate) runtime: Option<String>,
    pub(crate) snapshotter: SnapshotterChoice,
    pub(crate) cgroup_parent: Option<String>,
    pub(crate) max_parallelism: Option<usize>,
    pub(crate) gc: bool,
    pub(crate) gc_limits: GcLimits,
    pub(crate) gc_policies: Vec<GcPolicy>,
    pub(crate) registries: BTreeMap<String, Registry>,
    pub(crate) registry_concurrency: usize,
    pub(crate) dns: Option<Dns>,
    pub(crate) dockerfile_frontend: bool,
    pub(crate) gateway_frontend: bool,
    pub(crate) allowed_frontends: Vec<String>,
    pub(crate) hard_min_free_space: Option<DiskSpace>,
    pub(crate) hard_min_free_inodes: Option<DiskSpace>,
    pub(crate) limits: Limits,
    /// Age and number of the records of builds that stay.
    pub(crate) history: Option<(Duration, usize)>,
    /// Flags and keys that were given and change nothing yet.
    pub(crate) without_effect: Vec<String>,
}

#[derive(Clone, Debug)]
pub(crate) struct TlsFiles {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) ca: Option<PathBuf>,
}

/// Limits of the default GC policies.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct GcLimits {
    pub(crate) reserved: Option<DiskSpace>,
    pub(crate) min_free: Option<DiskSpace>,
    pub(crate) max_used: Option<DiskSpace>,
}

/// Limits of time of every build.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Limits {
    pub(crate) step: Option<Duration>,
    pub(crate) silence: Option<Duration>,
    pub(crate) build: Option<Duration>,
}

impl Settings {
    /// Merges flags, the configuration file they name, and defaults.
    pub(crate) fn load(args: &Args, place: &Place) -> Result<Self> {
        let path = args.config.clone().unwrap_or_else(|| place.config.clone());
        if args.config.is_some() && !path.exists() {
            tracing::debug!(path = %path.display(), "configuration file is missing");
        }
        Self::merge(args, File::read(&path)?, place)
    }

    fn merge(args: &Args, file: File, place: &Place) -> Result<Self> {
        let mut without_effect: Vec<String> = args.without_effect().into_iter().map(str::to_owned).collect();
        without_effect.extend(file.without_effect());
        let oci = file.worker.oci.clone();
        refuse_unsupported(args, &file, place)?;

        let root = args.root.clone().or(file.root.clone()).unwrap_or_else(|| place.root.clone());
        let root = std::path::absolute(&root)
            .with_context(|| format!("failed to make `{}` absolute", root.display()))?;
        let addresses = [&args.addr, &file.grpc.address, &vec![place.address.clone()]]
            .into_iter()
            .find(|a| !a.is_empty())
            .cloned()
            .unwrap_or_default();
        if addresses.iter().any(String::is_empty) {
            bail!("--addr cannot be empty");
        }
        let socket_gid = match &args.group {
            Some(group) => Some(group_id(group)?),
            None => file.grpc.gid,
        };
        let mut entitlements = if args.allow_insecure_entitlement.is_empty() {
            file.insecure_entitlements.clone()
        } else {
            args.allow_insecure_entitlement.clone()
        };
        for entitlement in &entitlements {
            if !matches!(entitlement.as_str(), "security.insecure" | "network.host" | "device") {
                bail!("invalid entitlement : {entitlement}");
            }
        }
        let devices = devices(args, &file.cdi);
        // What may be given to whom is decided device by device.
        if devices.is_some() && !entitlements.iter().any(|entitlement| entitlement == "device") {
            entitlements.push("device".to_owned());
        }
        let mut worker_labels = oci.labels.clone();
        for label in &args.oci_worker_labels {
            let Some((key, value)) = label.split_once('=') else {
                bail!("invalid worker label `{label}`: use KEY=VALUE")
            };
            worker_labels.insert(key.to_owned(), value.to_owned());
        }
        let platforms = if args.oci_worker_platform.is_empty() {
            oci.platforms.clone()
        } else {
            args.oci_worker_platform.clone()
        };
        let max_parallelism = args
            .oci_max_parallelism
            .or(oci.max_parallelism)
            .and_then(|n| usize::try_from(n).ok())
            .filter(|n| *n > 0);
        let registry_concurrency = match file.system.max_registry_concurrency {
            None => DEFAULT_REGISTRY_CONCURRENCY,
            Some(n) => usize::try_from(n).ok().filter(|n| *n > 0).with_context(|| {
                format!(
                    "maxRegistryConcurrency must be greater than zero; set to {n} in the configuration file"
                )
            })?,
        };

        Ok(Self {
            root,
            addresses,
            socket_uid: file.grpc.uid,
            socket_gid,
            tls: tls_files(args, &file)?,
            log_level: log_level(args, &file)?,
            log_format: log_format(args, &file)?,
            entitlements,
            devices,
            worker_labels,
            platforms,
            network: network(args, &oci, place)?,
            rootless: place.rootless,
            snapshotter: snapshotter(args, &oci)?,
            runtime: args.oci_worker_binary.clone().or(oci.binary.clone()),
            cgroup_parent: oci.default_cgroup_parent.clone(),
            max_parallelism,
            gc: args.oci_worker_gc.or(oci.gc).unwrap_or(true),
            gc_limits: gc_limits(args, &oci)?,
            gc_policies: oci.gcpolicy.clone(),
            registries: file.registry,
            registry_concurrency,
            dns: file.dns,
            dockerfile_frontend: file.frontend.dockerfile.enabled.unwrap_or(true),
            gateway_frontend: file.frontend.gateway.enabled.unwrap_or(true),
            allowed_frontends: file.frontend.gateway.allowed_repositories,
            hard_min_free_space: file.kiln.hard_min_free_space,
            hard_min_free_inodes: file.kiln.hard_min_free_inodes,
            limits: limits(file.kiln)?,
            history: file.history.map(history).transpose()?,
            without_effect,
        })
    }
}

fn devices(args: &Args, file: &Cdi) -> Option<Devices> {
    if args.cdi_disabled.or(file.disabled) == Some(true) {
        return None;
    }
    let dirs = [&args.cdi_spec_dir, &file.spec_dirs].into_iter().find(|dirs| !dirs.is_empty()).cloned();
    let dirs = dirs.unwrap_or_else(|| DEFAULT_CDI_DIRS.map(PathBuf::from).into());
    Some(Devices { dirs, auto_allowed: file.auto_allowed.clone() })
}

fn network(args: &Args, oci: &Worker, place: &Place) -> Result<Network> {
    let mode = match args.oci_worker_net.as_deref().or(oci.network_mode.as_deref()).unwrap_or("auto") {
        // Whoever made the user namespace has made its network.
        "" | "auto" if place.rootless => NetworkMode::Host,
        "" | "auto" => NetworkMode::Auto,
        "host" => NetworkMode::Host,
        "none" => NetworkMode::None,
        "cni" => NetworkMode::Cni,
        "bridge" => NetworkMode::Bridge,
        other => bail!("invalid network mode: {other:?}"),
    };
    let ready = match args.oci_cni_pool_size.or(oci.cni_pool_size) {
        None => DEFAULT_CNI_POOL,
        Some(size) => usize::try_from(size)
            .ok()
            .filter(|size| *size <= MAX_CNI_POOL)
            .with_context(|| format!("cniPoolSize {size} is not from 0 to {MAX_CNI_POOL}"))?,
    };
    let given = |flag: &Option<PathBuf>, key: &Option<PathBuf>| {
        flag.clone().or(key.clone()).filter(|path| !path.as_os_str().is_empty())
    };
    Ok(Network {
        mode,
        cni_config: given(&args.oci_cni_config_path, &oci.cni_config_path)
            .unwrap_or_else(|| place.cni_config.clone()),
        cni_binaries: given(&args.oci_cni_binary_dir, &oci.cni_binary_path),
        ready,
        bridge_name: oci.bridge_name.clone().unwrap_or_else(|| DEFAULT_BRIDGE_NAME.to_owned()),
        bridge_subnet: oci.bridge_subnet.clone().unwrap_or_else(|| DEFAULT_BRIDGE_SUBNET.to_owned()),
    })
}

fn snapshotter(args: &Args, oci: &Worker) -> Result<SnapshotterChoice> {
    match args.oci_worker_snapshotter.as_deref().or(oci.snapshotter.as_deref()).unwrap_or("auto") {
        "auto" => Ok(SnapshotterChoice::Auto),
        "overlayfs" => Ok(SnapshotterChoice::Overlayfs),
        "native" => Ok(SnapshotterChoice::Native),
        name @ ("fuse-overlayfs" | "stargz") => {
            bail!("snapshotter `{name}` is not supported yet: use `auto`, `overlayfs` or `native`")
        }
        other => bail!("unknown snapshotter name: {other:?}"),
    }
}

/// What would change a build's meaning if it were ignored is refused by name.
fn refuse_unsupported(args: &Args, file: &File, place: &Place) -> Result<()> {
    let oci = &file.worker.oci;
    match args.oci_worker.as_deref() {
        None | Some("auto" | "true") => {}
        Some("false") => bail!(
            "no worker found, rebuild the buildkit daemon? (the OCI worker is off and the containerd worker is not supported yet)"
        ),
        Some(other) => bail!("invalid value `{other}` for --oci-worker: use true, false or auto"),
    }
    if args.oci_worker.is_none() && oci.enabled == Some(false) {
        bail!(
            "no worker found, rebuild the buildkit daemon? (worker.oci.enabled is false and the containerd worker is not supported yet)"
        );
    }
    match args.containerd.containerd_worker.as_deref() {
        None | Some("auto" | "false") => {}
        Some("true") => {
            bail!("the containerd worker is not supported yet: leave out --containerd-worker=true")
        }
        Some(other) => bail!("invalid value `{other}` for --containerd-worker: use true, false or auto"),
    }
    if file.worker.containerd.enabled == Some(true) {
        bail!("the containerd worker is not supported yet: remove worker.containerd.enabled");
    }
    if args.oci_worker_proxy_snapshotter_path.is_some() || oci.proxy_snapshotter_path.is_some() {
        bail!("external snapshotters (proxySnapshotterPath) are not supported yet");
    }
    let asked = args.rootless.or(args.oci_worker_rootless).or(oci.rootless);
    if asked == Some(true) && !place.rootless {
        bail!(
            "rootless mode requires to be executed as the mapped root in a user namespace; you may use RootlessKit for \
             setting up the namespace, or start the daemon as an ordinary user, who gets one"
        );
    }
    if args.oci_worker_no_process_sandbox.or(oci.no_process_sandbox) == Some(true) {
        if !place.rootless {
            bail!("can't enable NoProcessSandbox without Rootless");
        }
        bail!("noProcessSandbox is not supported: steps have a namespace of processes of their own, always");
    }
    if args.oci_worker_selinux.or(oci.selinux) == Some(true) {
        bail!("selinux is not available");
    }
    if let Some(profile) =
        args.oci_worker_apparmor_profile.as_ref().or(oci.apparmor_profile.as_ref()).filter(|p| !p.is_empty())
    {
        bail!("AppArmor is not supported on this host, but the profile '{profile}' was specified");
    }
    if args.proxy_network == Some(true) || file.proxy_network == Some(true) {
        bail!("proxy network provider is not available");
    }
    Ok(())
}

/// Where the table is there, a key that is left out is zero.
fn history(history: History) -> Result<(Duration, usize)> {
    let count = history.max_entries.unwrap_or_default();
    let count = usize::try_from(count)
        .with_context(|| format!("history.maxEntries is {count}: use a number from 0 up"))?;
    Ok((history.max_age.map(|age| age.0).unwrap_or_default(), count))
}

fn limits(kiln: Kiln) -> Result<Limits> {
    let limit = |name: &str, value: Option<ConfigDuration>| match value {
        Some(ConfigDuration(limit)) if limit.is_zero() => {
            bail!("kiln.{name} must be greater than zero: leave it out for no limit")
        }
        value => Ok(value.map(|value| value.0)),
    };
    Ok(Limits {
        step: limit("stepTimeout", kiln.step_timeout)?,
        silence: limit("silenceTimeout", kiln.silence_timeout)?,
        build: limit("buildTimeout", kiln.build_timeout)?,
    })
}

fn tls_files(args: &Args, file: &File) -> Result<Option<TlsFiles>> {
    let cert = args.tlscert.clone().or(file.grpc.tls.cert.clone());
    let key = args.tlskey.clone().or(file.grpc.tls.key.clone());
    let ca = args.tlscacert.clone().or(file.grpc.tls.ca.clone());
    match (cert, key) {
        (Some(cert), Some(key)) => Ok(Some(TlsFiles { cert, key, ca })),
        (None, None) => Ok(None),
        _ => bail!("you must specify key and cert file if one is specified"),
    }
}

fn log_level(args: &Args, file: &File) -> Result<tracing::Level> {
    if args.trace.unwrap_or(file.trace) {
        return Ok(tracing::Level::TRACE);
    }
    if args.debug.unwrap_or(file.debug) {
        return Ok(tracing::Level::DEBUG);
    }
    match args
        .log_level
        .as_deref()
        .or(file.log.level.as_deref())
        .unwrap_or("info")
        .to_ascii_lowercase()
        .as_str()
    {
        "panic" | "fatal" | "error" => Ok(tracing::Level::ERROR),
        "warn" | "warning" => Ok(tracing::Level::WARN),
        "info" | "" => Ok(tracing::Level::INFO),
        "debug" => Ok(tracing::Level::DEBUG),
        "trace" => Ok(tracing::Level::TRACE),
        other => bail!("unsupported log level `{other}`"),
    }
}

fn log_format(args: &Args, file: &File) -> Result<LogFormat> {
    match args.log_format.as_deref().or(file.log.format.as_deref()).unwrap_or("text") {
        "text" | "" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        other => bail!("unsupported log type {other:?}"),
    }
}

fn gc_limits(args: &Args, oci: &Worker) -> Result<GcLimits> {
    let Some(text) = &args.oci_worker_gc_keepstorage else {
        return Ok(GcLimits {
            reserved: oci.reserved_space.or(oci.gckeepstorage),
            min_free: oci.min_free_space,
            max_used: oci.max_used_space,
        });
    };
    let mut parts = text.split(',').zip(["storage", "free storage", "max storage"]).map(|(part, what)| {
        let megabytes: i64 =
            part.trim().parse().with_context(|| format!("failed to parse {what} {part:?}"))?;
        Ok::<_, anyhow::Error>(DiskSpace::Bytes(megabytes.saturating_mul(MEGABYTE)))
    });
    Ok(GcLimits {
        reserved: parts.next().transpose()?,
        min_free: parts.next().transpose()?,
        max_used: parts.next().transpose()?,
    })
}

fn group_id(group: &str) -> Result<u32> {
    if let Ok(gid) = group.parse() {
        return Ok(gid);
    }
    let groups = std::fs::read_to_string("/etc/group").context("failed to read /etc/group")?;
    groups
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.first() == Some(&group))
        .and_then(|fields| fields.get(2)?.parse().ok())
        .with_context(|| format!("unknown group `{group}`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Place {
        Place {
            rootless: false,
            root: "/root-of-machine".into(),
            address: "unix:///machine".to_owned(),
            config: "/none".into(),
            cni_config: "/none".into(),
        }
    }

    fn merge(line: &str, toml: &str) -> Result<Settings> {
        let args = Args::parse_go_style(line.split(' ').map(Into::into))?;
        Settings::merge(&args, toml::from_str(toml)?, &machine())
    }

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
        let settings = merge(
            "d --root /flag",
            "root = '/file'\n[grpc]\naddress = ['tcp://127.0.0.1:1']\n[worker.oci]\nmax-parallelism = 3",
        )
        .unwrap();
        assert_eq!(settings.root, PathBuf::from("/flag"));
        assert_eq!(settings.addresses, ["tcp://127.0.0.1:1"]);
        assert_eq!(settings.max_parallelism, Some(3));
        assert_eq!(merge("d", "").unwrap().addresses, ["unix:///machine"]);
    }

    #[test]
    fn bad_values_are_clear_errors() {
        for (line, toml, want) in [
            ("d --addr=", "", "--addr cannot be empty"),
            ("d --tlscert c", "", "you must specify key and cert file"),
            ("d --rootless", "", "requires to be executed as the mapped root in a user namespace"),
            ("d --oci-worker-no-process-sandbox", "", "can't enable NoProcessSandbox without Rootless"),
            ("d --log-level loud", "", "unsupported log level"),
            ("d --log-format xml", "", "unsupported log type"),
            ("d --allow-insecure-entitlement root", "", "invalid entitlement : root"),
            ("d --oci-worker-snapshotter zfs", "", "unknown snapshotter name: \"zfs\""),
            ("d --oci-worker-net mesh", "", "invalid network mode: \"mesh\""),
            ("d --oci-cni-pool-size -1", "", "cniPoolSize -1 is not from 0 to 1024"),
            ("d --oci-worker=false", "", "no worker found"),
            ("d --containerd-worker=true", "", "not supported yet"),
            ("d --oci-worker-gc-keepstorage 1,x", "", "failed to parse free storage"),
            ("d", "[system]\nmaxRegistryConcurrency = 0", "must be greater than zero"),
            ("d", "[kiln]\nstepTimeout = 0", "kiln.stepTimeout must be greater than zero"),
        ] {
            let error = format!("{:#}", merge(line, toml).expect_err(line));
            assert!(error.contains(want), "{line}: {error}");
        }
    }

    #[test]
    fn devices_are_there_unless_switched_off() {
        let settings = merge("d", "").unwrap();
        assert_eq!(settings.entitlements, ["device"]);
        assert_eq!(settings.devices.unwrap().dirs.len(), 3);
        let settings =
            merge("d --cdi-spec-dir /x", "[cdi]\nspecDirs = ['/y']\nautoAllowed = ['v/c']").unwrap();
        let devices = settings.devices.unwrap();
        assert_eq!((devices.dirs, devices.auto_allowed), (vec![PathBuf::from("/x")], vec!["v/c".to_owned()]));
        let settings = merge("d --cdi-disabled", "").unwrap();
        assert!(settings.devices.is_none() && settings.entitlements.is_empty());
    }

    #[test]
    fn keepstorage_counts_in_megabytes() {
        let limits = merge("d --oci-worker-gc-keepstorage 10,20,30", "").unwrap().gc_limits;
        assert_eq!(
            (limits.reserved, limits.max_used),
            (Some(DiskSpace::Bytes(10_000_000)), Some(DiskSpace::Bytes(30_000_000)))
        );
    }
}
