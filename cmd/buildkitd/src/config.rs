//! `buildkitd.toml`: every section and key of the reference's configuration file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::units::{ConfigDuration, DiskSpace};

/// The whole file. Unknown keys are errors: a misspelt limit must not silently be no limit.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct File {
    pub(crate) debug: bool,
    pub(crate) trace: bool,
    pub(crate) root: Option<PathBuf>,
    #[serde(rename = "insecure-entitlements")]
    pub(crate) insecure_entitlements: Vec<String>,
    #[serde(rename = "proxyNetwork")]
    pub(crate) proxy_network: Option<bool>,
    #[serde(rename = "provenanceEnvDir")]
    pub(crate) provenance_env_dir: Option<PathBuf>,
    pub(crate) log: Log,
    pub(crate) grpc: Grpc,
    pub(crate) otel: Otel,
    pub(crate) cdi: Cdi,
    pub(crate) dns: Option<Dns>,
    pub(crate) history: Option<History>,
    pub(crate) worker: Workers,
    pub(crate) registry: BTreeMap<String, Registry>,
    pub(crate) frontend: Frontends,
    pub(crate) system: System,
    pub(crate) cache: Option<toml::Table>,
    pub(crate) kiln: Kiln,
}

/// What the reference has no keys for.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Kiln {
    #[serde(rename = "stepTimeout")]
    pub(crate) step_timeout: Option<ConfigDuration>,
    #[serde(rename = "silenceTimeout")]
    pub(crate) silence_timeout: Option<ConfigDuration>,
    #[serde(rename = "buildTimeout")]
    pub(crate) build_timeout: Option<ConfigDuration>,
    #[serde(rename = "hardMinFreeSpace")]
    pub(crate) hard_min_free_space: Option<DiskSpace>,
    /// A number, or a share of all.
    #[serde(rename = "hardMinFreeInodes")]
    pub(crate) hard_min_free_inodes: Option<DiskSpace>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Log {
    pub(crate) format: Option<String>,
    pub(crate) level: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Grpc {
    pub(crate) address: Vec<String>,
    #[serde(rename = "debugAddress")]
    pub(crate) debug_address: Option<String>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    #[serde(rename = "securityDescriptor")]
    pub(crate) security_descriptor: Option<String>,
    pub(crate) tls: Tls,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Tls {
    pub(crate) cert: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
    pub(crate) ca: Option<PathBuf>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Otel {
    #[serde(rename = "socketPath")]
    pub(crate) socket_path: Option<PathBuf>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Cdi {
    pub(crate) disabled: Option<bool>,
    #[serde(rename = "specDirs")]
    pub(crate) spec_dirs: Vec<PathBuf>,
    #[serde(rename = "autoAllowed")]
    pub(crate) auto_allowed: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Dns {
    pub(crate) nameservers: Vec<String>,
    pub(crate) options: Vec<String>,
    #[serde(rename = "searchDomains")]
    pub(crate) search_domains: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct History {
    #[serde(rename = "maxAge")]
    pub(crate) max_age: Option<ConfigDuration>,
    #[serde(rename = "maxEntries")]
    pub(crate) max_entries: Option<i64>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Workers {
    pub(crate) oci: Worker,
    pub(crate) containerd: Worker,
}

/// One worker section; the containerd worker's extra keys are part of it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Worker {
    pub(crate) enabled: Option<bool>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) platforms: Vec<String>,
    pub(crate) snapshotter: Option<String>,
    pub(crate) rootless: Option<bool>,
    #[serde(rename = "noProcessSandbox")]
    pub(crate) no_process_sandbox: Option<bool>,
    pub(crate) gc: Option<bool>,
    pub(crate) gckeepstorage: Option<DiskSpace>,
    #[serde(rename = "reservedSpace")]
    pub(crate) reserved_space: Option<DiskSpace>,
    #[serde(rename = "maxUsedSpace")]
    pub(crate) max_used_space: Option<DiskSpace>,
    #[serde(rename = "minFreeSpace")]
    pub(crate) min_free_space: Option<DiskSpace>,
    pub(crate) gcpolicy: Vec<GcPolicy>,
    #[serde(rename = "networkMode")]
    pub(crate) network_mode: Option<String>,
    #[serde(rename = "cniConfigPath")]
    pub(crate) cni_config_path: Option<PathBuf>,
    #[serde(rename = "cniBinaryPath")]
    pub(crate) cni_binary_path: Option<PathBuf>,
    #[serde(rename = "cniPoolSize")]
    pub(crate) cni_pool_size: Option<i64>,
    #[serde(rename = "bridgeName")]
    pub(crate) bridge_name: Option<String>,
    #[serde(rename = "bridgeSubnet")]
    pub(crate) bridge_subnet: Option<String>,
    pub(crate) binary: Option<String>,
    #[serde(rename = "proxySnapshotterPath")]
    pub(crate) proxy_snapshotter_path: Option<PathBuf>,
    #[serde(rename = "defaultCgroupParent")]
    pub(crate) default_cgroup_parent: Option<String>,
    #[serde(rename = "apparmor-profile")]
    pub(crate) apparmor_profile: Option<String>,
    pub(crate) selinux: Option<bool>,
    #[serde(rename = "max-parallelism")]
    pub(crate) max_parallelism: Option<i64>,
    #[serde(rename = "userRemapUnsupported")]
    pub(crate) user_remap: Option<String>,
    #[serde(rename = "stargzSnapshotter")]
    pub(crate) stargz_snapshotter: Option<toml::Table>,
    pub(crate) address: Option<String>,
    pub(crate) namespace: Option<String>,
    pub(crate) runtime: Option<toml::Table>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct GcPolicy {
    pub(crate) all: bool,
    pub(crate) filters: Vec<String>,
    #[serde(rename = "keepDuration")]
    pub(crate) keep_duration: Option<ConfigDuration>,
    #[serde(rename = "keepBytes")]
    pub(crate) keep_bytes: Option<DiskSpace>,
    #[serde(rename = "reservedSpace")]
    pub(crate) reserved_space: Option<DiskSpace>,
    #[serde(rename = "maxUsedSpace")]
    pub(crate) max_used_space: Option<DiskSpace>,
    #[serde(rename = "minFreeSpace")]
    pub(crate) min_free_space: Option<DiskSpace>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Registry {
    pub(crate) mirrors: Vec<String>,
    pub(crate) http: Option<bool>,
    pub(crate) insecure: Option<bool>,
    pub(crate) ca: Vec<PathBuf>,
    pub(crate) tlsconfigdir: Vec<PathBuf>,
    pub(crate) keypair: Vec<KeyPair>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct KeyPair {
    pub(crate) key: PathBuf,
    pub(crate) cert: PathBuf,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Frontends {
    #[serde(rename = "dockerfile.v0")]
    pub(crate) dockerfile: FrontendSwitch,
    #[serde(rename = "gateway.v0")]
    pub(crate) gateway: FrontendSwitch,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct FrontendSwitch {
    pub(crate) enabled: Option<bool>,
    #[serde(rename = "allowedRepositories")]
    pub(crate) allowed_repositories: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct System {
    #[serde(rename = "platformsCacheMaxAge")]
    pub(crate) platforms_cache_max_age: Option<ConfigDuration>,
    #[serde(rename = "maxRegistryConcurrency")]
    pub(crate) max_registry_concurrency: Option<i64>,
}

impl File {
    /// Reads `path`; a missing file is an empty configuration.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        match std::fs::read_to_string(path) {
            Ok(text) => {
                Self::parse(&text).with_context(|| format!("failed to load config from `{}`", path.display()))
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(e) => Err(e).with_context(|| format!("failed to read config `{}`", path.display())),
        }
    }

    fn parse(text: &str) -> Result<Self> {
        Ok(toml::from_str(text)?)
    }

    /// Keys in the file that are accepted but change nothing yet.
    pub(crate) fn without_effect(&self) -> Vec<String> {
        let mut names = Vec::new();
        let mut note = |given: bool, name: &str| {
            if given {
                names.push(name.to_owned());
            }
        };
        note(self.proxy_network == Some(true), "proxyNetwork");
        note(self.provenance_env_dir.is_some(), "provenanceEnvDir");
        note(self.grpc.debug_address.is_some(), "grpc.debugAddress");
        note(self.grpc.security_descriptor.is_some(), "grpc.securityDescriptor");
        note(self.otel.socket_path.is_some(), "otel.socketPath");
        note(self.cache.is_some(), "cache");
        note(self.system.platforms_cache_max_age.is_some(), "system.platformsCacheMaxAge");
        for (name, worker) in [("oci", &self.worker.oci), ("containerd", &self.worker.containerd)] {
            let key = |key: &str| format!("worker.{name}.{key}");
            note(worker.proxy_snapshotter_path.is_some(), &key("proxySnapshotterPath"));
            note(name != "oci" && worker.cni_config_path.is_some(), &key("cniConfigPath"));
            note(name != "oci" && worker.cni_binary_path.is_some(), &key("cniBinaryPath"));
            note(name != "oci" && worker.cni_pool_size.is_some(), &key("cniPoolSize"));
            note(name != "oci" && worker.bridge_name.is_some(), &key("bridgeName"));
            note(name != "oci" && worker.bridge_subnet.is_some(), &key("bridgeSubnet"));
            note(worker.apparmor_profile.is_some(), &key("apparmor-profile"));
            note(worker.selinux == Some(true), &key("selinux"));
            note(worker.user_remap.is_some(), &key("userRemapUnsupported"));
            note(worker.stargz_snapshotter.is_some(), &key("stargzSnapshotter"));
            note(worker.address.is_some(), &key("address"));
            note(worker.namespace.is_some(), &key("namespace"));
            note(worker.runtime.is_some(), &key("runtime"));
        }
        names
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: &str = r#"
debug = true
root = "/var/lib/buildkit"
insecure-entitlements = [ "network.host", "security.insecure", "device" ]
[log]
  format = "text"
[dns]
  nameservers=["1.1.1.1","8.8.8.8"]
  options=["edns0"]
  searchDomains=["example.com"]
[grpc]
  address = [ "tcp://0.0.0.0:1234" ]
  debugAddress = "0.0.0.0:6060"
  uid = 0
  gid = 0
  [grpc.tls]
    cert = "/etc/buildkit/tls.crt"
    key = "/etc/buildkit/tls.key"
    ca = "/etc/buildkit/tlsca.crt"
[otel]
  socketPath = "/run/buildkit/otel-grpc.sock"
[cdi]
  disabled = true
  specDirs = ["/etc/cdi"]
[history]
  maxAge = 172800
  maxEntries = 50
[worker.oci]
  enabled = true
  platforms = [ "linux/amd64", "linux/arm64" ]
  snapshotter = "auto"
  rootless = false
  noProcessSandbox = false
  gc = true
  reservedSpace = "30%"
  maxUsedSpace = "60%"
  minFreeSpace = "20GB"
  max-parallelism = 4
  [worker.oci.labels]
    "foo" = "bar"
  [[worker.oci.gcpolicy]]
    reservedSpace = "512MB"
    keepDuration = "48h"
    filters = [ "type==source.local", "type==exec.cachemount"]
  [[worker.oci.gcpolicy]]
    all = true
    reservedSpace = 1024000000
[worker.containerd]
  address = "/run/containerd/containerd.sock"
  enabled = false
  [worker.containerd.runtime]
    name = "io.containerd.runc.v2"
    options = { BinaryName = "runc" }
[registry."docker.io"]
  mirrors = ["hub.example.com:5000", "core.example.com/proxy.docker.io"]
  http = true
  insecure = true
  ca=["/etc/config/myca.pem"]
  [[registry."docker.io".keypair]]
    key="/etc/config/key.pem"
    cert="/etc/config/cert.pem"
[frontend."dockerfile.v0"]
  enabled = true
[frontend."gateway.v0"]
  enabled = true
  allowedRepositories = []
[system]
  platformsCacheMaxAge = "1h"
[kiln]
  stepTimeout = "2h"
  silenceTimeout = 600
  buildTimeout = "6h"
  hardMinFreeSpace = "512MB"
  hardMinFreeInodes = "2%"
"#;

    #[test]
    fn a_file_with_every_section_parses() {
        let file = File::parse(FULL).unwrap();
        assert_eq!(file.worker.oci.max_parallelism, Some(4));
        assert_eq!(file.worker.oci.gcpolicy.len(), 2);
        assert_eq!(file.registry["docker.io"].mirrors.len(), 2);
        let unused = file.without_effect();
        assert!(
            unused.contains(&"otel.socketPath".to_owned())
                && unused.contains(&"worker.containerd.runtime".to_owned()),
            "{unused:?}"
        );
        assert!(!unused.contains(&"cdi.disabled".to_owned()), "switching off what is not there is in effect");
    }

    #[test]
    fn an_unknown_key_is_named() {
        let error = format!("{:#}", File::parse("[worker.oci]\nmaxUsedSpcae = 1").unwrap_err());
        assert!(error.contains("maxUsedSpcae"), "{error}");
    }

    #[test]
    fn a_missing_file_is_empty() {
        assert!(File::read(Path::new("/nonexistent/buildkitd.toml")).unwrap().root.is_none());
    }
}
