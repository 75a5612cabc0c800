//! The command line: every flag of the reference daemon, in Go's spelling (one or two dashes).

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Parser;

/// Build daemon: runs LLB graphs, caches by content, exports images.
#[derive(Clone, Debug, Default, Parser)]
#[command(name = "buildkitd", disable_version_flag = true, max_term_width = 110)]
pub(crate) struct Args {
    /// Path to the configuration file.
    #[arg(long)]
    pub(crate) config: Option<PathBuf>,
    /// Run with the defaults of a rootless daemon.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool)]
    pub(crate) rootless: Option<bool>,
    /// Log at level debug.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool)]
    pub(crate) debug: Option<bool>,
    /// Log at level trace.
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool)]
    pub(crate) trace: Option<bool>,
    /// Log level: error, warn, info, debug or trace.
    #[arg(long, env = "BUILDKITD_LOG_LEVEL")]
    pub(crate) log_level: Option<String>,
    /// Log format: text or json.
    #[arg(long)]
    pub(crate) log_format: Option<String>,
    /// Directory of the daemon's state.
    #[arg(long)]
    pub(crate) root: Option<PathBuf>,
    /// Compare the catalogue with the stores, print what is found, and end; `repair` also mends it.
    #[arg(long, value_name = "look|repair", num_args = 0..=1, require_equals = true, default_missing_value = "look", value_parser = ["look", "repair"])]
    pub(crate) fsck: Option<String>,
    /// Listening address (repeatable): unix://PATH, tcp://HOST:PORT or fd://.
    #[arg(long)]
    pub(crate) addr: Vec<String>,
    /// Group (name or number) that owns unix sockets.
    #[arg(long)]
    pub(crate) group: Option<String>,
    /// Address of the debug server.
    #[arg(long, env = "BUILDKITD_DEBUGADDR")]
    pub(crate) debugaddr: Option<String>,
    /// Certificate of the TCP listeners.
    #[arg(long)]
    pub(crate) tlscert: Option<PathBuf>,
    /// Key of the certificate.
    #[arg(long)]
    pub(crate) tlskey: Option<PathBuf>,
    /// CA that client certificates must be signed by.
    #[arg(long)]
    pub(crate) tlscacert: Option<PathBuf>,
    /// Entitlement that builds may ask for (repeatable): network.host, security.insecure or device.
    #[arg(long)]
    pub(crate) allow_insecure_entitlement: Vec<String>,
    /// Run steps behind a capturing proxy.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool)]
    pub(crate) proxy_network: Option<bool>,
    /// Socket for traces of build steps.
    #[arg(long)]
    pub(crate) otel_socket_path: Option<PathBuf>,
    /// Switch CDI devices off.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool)]
    pub(crate) cdi_disabled: Option<bool>,
    /// Directory of CDI specs (repeatable).
    #[arg(long)]
    pub(crate) cdi_spec_dir: Vec<PathBuf>,
    /// Keep a database of cache key inputs.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool)]
    pub(crate) save_cache_debug: Option<bool>,

    /// Enable the OCI worker: true, false or auto.
    #[arg(long)]
    pub(crate) oci_worker: Option<String>,
    /// Label of the worker, K=V (repeatable).
    #[arg(long)]
    pub(crate) oci_worker_labels: Vec<String>,
    /// Snapshotter: auto, overlayfs, native, fuse-overlayfs or stargz.
    #[arg(long)]
    pub(crate) oci_worker_snapshotter: Option<String>,
    /// Socket of an external snapshotter.
    #[arg(long)]
    pub(crate) oci_worker_proxy_snapshotter_path: Option<PathBuf>,
    /// Platform of the worker (repeatable).
    #[arg(long)]
    pub(crate) oci_worker_platform: Vec<String>,
    /// Network of steps: auto, bridge, cni, host or none.
    #[arg(long)]
    pub(crate) oci_worker_net: Option<String>,
    /// CNI configuration file.
    #[arg(long)]
    pub(crate) oci_cni_config_path: Option<PathBuf>,
    /// Directory of CNI plugins.
    #[arg(long)]
    pub(crate) oci_cni_binary_dir: Option<PathBuf>,
    /// Number of network namespaces kept ready.
    #[arg(long, allow_negative_numbers = true)]
    pub(crate) oci_cni_pool_size: Option<i64>,
    /// OCI runtime: a name in PATH or a path.
    #[arg(long)]
    pub(crate) oci_worker_binary: Option<String>,
    /// AppArmor profile of steps.
    #[arg(long)]
    pub(crate) oci_worker_apparmor_profile: Option<String>,
    /// Label steps with SELinux.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool)]
    pub(crate) oci_worker_selinux: Option<bool>,
    /// Number of steps that run at the same time (0: no limit).
    #[arg(long)]
    pub(crate) oci_max_parallelism: Option<i64>,
    /// Run steps without privileges.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool)]
    pub(crate) oci_worker_rootless: Option<bool>,
    /// Run steps in the daemon's PID namespace.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool)]
    pub(crate) oci_worker_no_process_sandbox: Option<bool>,
    /// Collect garbage automatically.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool)]
    pub(crate) oci_worker_gc: Option<bool>,
    /// Disk limits in MB: RESERVED[,MIN-FREE[,MAX-USED]].
    #[arg(long)]
    pub(crate) oci_worker_gc_keepstorage: Option<String>,

    #[command(flatten)]
    pub(crate) containerd: ContainerdArgs,
    #[command(flatten)]
    pub(crate) profiling: ProfilingArgs,

    /// Print the version.
    #[arg(long, short = 'v')]
    pub(crate) version: bool,
}

/// Flags of the containerd worker, which is not there yet.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct ContainerdArgs {
    /// Enable the containerd worker: true, false or auto.
    #[arg(long)]
    pub(crate) containerd_worker: Option<String>,
    #[arg(long, hide = true)]
    containerd_worker_addr: Option<String>,
    #[arg(long, hide = true)]
    containerd_worker_namespace: Option<String>,
    #[arg(long, hide = true)]
    containerd_worker_runtime: Option<String>,
    #[arg(long, hide = true)]
    containerd_worker_labels: Vec<String>,
    #[arg(long, hide = true)]
    containerd_worker_platform: Vec<String>,
    #[arg(long, hide = true)]
    containerd_worker_net: Option<String>,
    #[arg(long, hide = true)]
    containerd_worker_snapshotter: Option<String>,
    #[arg(long, hide = true)]
    containerd_worker_apparmor_profile: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool)]
    containerd_worker_selinux: Option<bool>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool)]
    containerd_worker_rootless: Option<bool>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool)]
    containerd_worker_gc: Option<bool>,
    #[arg(long, hide = true)]
    containerd_worker_gc_keepstorage: Option<String>,
    #[arg(long, hide = true)]
    containerd_cni_config_path: Option<String>,
    #[arg(long, hide = true)]
    containerd_cni_binary_dir: Option<String>,
    #[arg(long, hide = true)]
    containerd_cni_pool_size: Option<i64>,
    #[arg(long, hide = true)]
    containerd_max_parallelism: Option<i64>,
}

/// Profiling flags of the reference's language runtime; accepted without effect.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct ProfilingArgs {
    #[arg(long, hide = true)]
    profile_cpu: Option<String>,
    #[arg(long, hide = true)]
    profile_memory: Option<String>,
    #[arg(long, hide = true)]
    profile_memoryrate: Option<i64>,
    #[arg(long, hide = true)]
    profile_block: Option<String>,
    #[arg(long, hide = true)]
    profile_mutex: Option<String>,
    #[arg(long, hide = true)]
    profile_trace: Option<String>,
}

impl Args {
    /// Parses an argument list, the program's name first.
    pub(crate) fn parse_go_style(args: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        Self::try_parse_from(
            args.into_iter().enumerate().map(|(i, a)| if i == 0 { a } else { two_dashes(a) }),
        )
    }

    /// Flags given on the command line that are accepted but change nothing yet.
    pub(crate) fn without_effect(&self) -> Vec<&'static str> {
        let c = &self.containerd;
        let p = &self.profiling;
        let table: &[(bool, &'static str)] = &[
            (self.proxy_network == Some(true), "--proxy-network"),
            (self.otel_socket_path.is_some(), "--otel-socket-path"),
            (self.save_cache_debug == Some(true), "--save-cache-debug"),
            (self.debugaddr.is_some(), "--debugaddr"),
            (self.oci_worker_selinux == Some(true), "--oci-worker-selinux"),
            (self.oci_worker_apparmor_profile.is_some(), "--oci-worker-apparmor-profile"),
            (c.containerd_worker_addr.is_some(), "--containerd-worker-addr"),
            (c.containerd_worker_namespace.is_some(), "--containerd-worker-namespace"),
            (c.containerd_worker_runtime.is_some(), "--containerd-worker-runtime"),
            (!c.containerd_worker_labels.is_empty(), "--containerd-worker-labels"),
            (!c.containerd_worker_platform.is_empty(), "--containerd-worker-platform"),
            (c.containerd_worker_net.is_some(), "--containerd-worker-net"),
            (c.containerd_worker_snapshotter.is_some(), "--containerd-worker-snapshotter"),
            (c.containerd_worker_apparmor_profile.is_some(), "--containerd-worker-apparmor-profile"),
            (c.containerd_worker_selinux.is_some(), "--containerd-worker-selinux"),
            (c.containerd_worker_rootless.is_some(), "--containerd-worker-rootless"),
            (c.containerd_worker_gc.is_some(), "--containerd-worker-gc"),
            (c.containerd_worker_gc_keepstorage.is_some(), "--containerd-worker-gc-keepstorage"),
            (c.containerd_cni_config_path.is_some(), "--containerd-cni-config-path"),
            (c.containerd_cni_binary_dir.is_some(), "--containerd-cni-binary-dir"),
            (c.containerd_cni_pool_size.is_some(), "--containerd-cni-pool-size"),
            (c.containerd_max_parallelism.is_some(), "--containerd-max-parallelism"),
            (p.profile_cpu.is_some(), "--profile-cpu"),
            (p.profile_memory.is_some(), "--profile-memory"),
            (p.profile_memoryrate.is_some(), "--profile-memoryrate"),
            (p.profile_block.is_some(), "--profile-block"),
            (p.profile_mutex.is_some(), "--profile-mutex"),
            (p.profile_trace.is_some(), "--profile-trace"),
        ];
        table.iter().filter(|(given, _)| *given).map(|(_, name)| *name).collect()
    }
}

/// Go's flag package takes one dash or two before a long name; clap wants two.
fn two_dashes(arg: OsString) -> OsString {
    let Some(text) = arg.to_str() else { return arg };
    let bytes = text.as_bytes();
    let one_dash_long = bytes.len() > 2 && bytes[0] == b'-' && bytes[1].is_ascii_alphabetic();
    if one_dash_long { format!("-{text}").into() } else { arg }
}

fn go_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(format!("`{text}` is not a boolean: use true or false")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn parse(line: &str) -> Result<Args, String> {
        Args::parse_go_style(line.split(' ').map(OsString::from)).map_err(|e| e.to_string())
    }

    #[test]
    fn one_dash_and_two_are_the_same() {
        for line in ["buildkitd -addr unix:///a --root /r", "buildkitd --addr=unix:///a -root=/r"] {
            let args = parse(line).unwrap();
            assert_eq!(args.addr, ["unix:///a"]);
            assert_eq!(args.root.as_deref(), Some("/r".as_ref()));
        }
    }

    #[test]
    fn booleans_take_a_value_after_an_equals_sign_only() {
        assert_eq!(parse("buildkitd --debug").unwrap().debug, Some(true));
        assert_eq!(parse("buildkitd --debug=false").unwrap().debug, Some(false));
        assert_eq!(parse("buildkitd --oci-worker-gc=0").unwrap().oci_worker_gc, Some(false));
        assert!(parse("buildkitd --debug=perhaps").unwrap_err().contains("not a boolean"));
    }

    #[test]
    fn an_unknown_flag_is_named() {
        assert!(parse("buildkitd --no-such-flag").unwrap_err().contains("--no-such-flag"));
    }

    #[test]
    fn flags_without_effect_are_listed() {
        let args = parse("buildkitd --profile-cpu f --containerd-worker-net host --root /r").unwrap();
        assert_eq!(args.without_effect(), ["--containerd-worker-net", "--profile-cpu"]);
    }
}
