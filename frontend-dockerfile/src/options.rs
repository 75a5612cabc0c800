use std::collections::BTreeMap;
use std::net::IpAddr;

use kiln_frontend::{CacheImport, FrontendRequest, ResolveMode, pb};
use serde::Deserialize;

use crate::csv;
use crate::error::{Error, Result};
use crate::go::{number_error, parse_bool};
use crate::lint::LintConfig;
use crate::platform::Platform;
use crate::reference::Reference;
use crate::text::quote;

/// The options of a build, read and checked.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    pub(crate) target: String,
    /// Platform of the worker, for predefined arguments.
    pub(crate) build_platform: Platform,
    /// Normalised; empty if the platform is implied.
    pub(crate) target_platforms: Vec<Platform>,
    pub(crate) multi_platform: bool,
    /// None: cache as usual; empty: no stage uses the cache; else these stages.
    pub(crate) no_cache: Option<Vec<String>>,
    pub(crate) resolve_mode: ResolveMode,
    pub(crate) extra_hosts: Vec<pb::HostIp>,
    pub(crate) shm_size: i64,
    pub(crate) ulimits: Vec<pb::Ulimit>,
    pub(crate) cgroup_parent: String,
    pub(crate) linux_resources: Option<pb::LinuxResources>,
    pub(crate) network: i32,
    pub(crate) hostname: String,
    pub(crate) build_args: BTreeMap<String, String>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) cache_imports: Vec<CacheImport>,
    pub(crate) cache_namespace: String,
    pub(crate) lint: Option<LintConfig>,
    pub(crate) sbom: Option<Sbom>,
    /// Everything as sent.
    pub(crate) raw: BTreeMap<String, String>,
}

/// The scanner that makes a bill of materials.
#[derive(Clone, Debug)]
pub(crate) struct Sbom {
    pub(crate) generator: String,
    pub(crate) parameters: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct CacheEntry {
    #[serde(alias = "type", rename = "Type", default)]
    kind: String,
    #[serde(alias = "attrs", rename = "Attrs", default)]
    attrs: Option<BTreeMap<String, String>>,
}

impl Options {
    pub(crate) fn parse(request: &FrontendRequest) -> Result<Self> {
        let raw = &request.opts;
        let get = |key: &str| raw.get(key).map(String::as_str).unwrap_or_default();
        removed(request)?;
        let mut options = Self { raw: raw.clone(), target: get("target").to_owned(), ..Self::default() };
        let worker = request.workers.first().and_then(|worker| worker.platforms.first());
        options.build_platform = worker.map_or_else(Platform::host, Platform::from_pb);
        if !get("platform").is_empty() {
            for text in get("platform").split(',') {
                let platform = Platform::parse(text).map_err(|error| {
                    Error::new(format!("failed to parse target platform {text}: {error}"))
                })?;
                options.target_platforms.push(platform.normalized());
            }
        }
        options.resolve_mode = match get("image-resolve-mode") {
            "" | "default" => ResolveMode::Default,
            "pull" => ResolveMode::ForcePull,
            "local" => ResolveMode::PreferLocal,
            other => return Err(Error::new(format!("invalid image-resolve-mode: {other}"))),
        };
        options.extra_hosts = extra_hosts(get("add-hosts"))
            .map_err(|e| Error::new(format!("failed to parse additional hosts: {e}")))?;
        if !get("shm-size").is_empty() {
            let text = get("shm-size");
            options.shm_size = text.parse().map_err(|_| {
                Error::new(format!("failed to parse shm size: {}", number_error("ParseInt", text)))
            })?;
        }
        options.ulimits =
            ulimits(get("ulimit")).map_err(|e| Error::new(format!("failed to parse ulimit: {e}")))?;
        options.linux_resources =
            linux_resources(raw).map_err(|e| Error::new(format!("failed to parse resource limits: {e}")))?;
        options.network = match get("force-network-mode") {
            "" | "sandbox" => pb::NetMode::Unset,
            "none" => pb::NetMode::None,
            "host" => pb::NetMode::Host,
            other => return Err(Error::new(format!("invalid netmode {other}"))),
        }
        .into();
        options.no_cache = raw.get("no-cache").map(|stages| match stages.as_str() {
            "" => Vec::new(),
            stages => stages.split(',').map(str::to_owned).collect(),
        });
        options.multi_platform = options.target_platforms.len() > 1;
        let multi = match get("build-arg:BUILDKIT_MULTI_PLATFORM") {
            "" => get("multi-platform"),
            value => value,
        };
        if !multi.is_empty() {
            let wanted = parse_bool(multi)
                .ok_or_else(|| Error::new(format!("invalid boolean value for multi-platform: {multi}")))?;
            if !wanted && options.multi_platform {
                let message = "conflicting config: returning multiple target platforms is not allowed";
                return Err(Error::new(message));
            }
            options.multi_platform = wanted;
        }
        options.cache_imports = cache_imports(get("cache-imports"), get("cache-from"))?;
        options.sbom = attestations(raw)?;
        let prefixed = |prefix: &str| {
            let entries = raw
                .iter()
                .filter_map(|(key, value)| Some((key.strip_prefix(prefix)?.to_owned(), value.clone())));
            entries.collect::<BTreeMap<_, _>>()
        };
        options.build_args = prefixed("build-arg:");
        options.labels = prefixed("label:");
        options.cache_namespace = get("build-arg:BUILDKIT_CACHE_MOUNT_NS").to_owned();
        options.cgroup_parent = get("cgroup-parent").to_owned();
        options.hostname = match get("build-arg:BUILDKIT_SANDBOX_HOSTNAME") {
            "" => get("hostname").to_owned(),
            name => name.to_owned(),
        };
        if let Some(value) = raw.get("build-arg:BUILDKIT_DOCKERFILE_CHECK") {
            let config = LintConfig::parse(value).map_err(|error| {
                Error::new(format!("failed to parse build-arg:BUILDKIT_DOCKERFILE_CHECK: {error}"))
            })?;
            options.lint = Some(config);
        }
        Ok(options)
    }

    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.raw.get(key).map(String::as_str)
    }

    pub(crate) fn ignores_cache(&self, stage: &str) -> bool {
        match &self.no_cache {
            None => false,
            Some(stages) => stages.is_empty() || stages.iter().any(|name| name.eq_ignore_ascii_case(stage)),
        }
    }

    /// The session that has a local source.
    pub(crate) fn session_of<'a>(&'a self, local: &str, default: &'a str) -> &'a str {
        self.get(&format!("local-sessionid:{local}")).unwrap_or(default)
    }
}

fn removed(request: &FrontendRequest) -> Result<()> {
    if !request.has_llb_cap("file.base") {
        return Err(Error::new("needs BuildKit 0.5 or later"));
    }
    if request.opts.get("override-copy-image").is_some_and(|value| !value.is_empty()) {
        return Err(Error::new("support for \"override-copy-image\" was removed in BuildKit 0.11"));
    }
    let disabled = request.opts.get("build-arg:BUILDKIT_DISABLE_FILEOP").and_then(|value| parse_bool(value));
    if disabled == Some(true) {
        return Err(Error::new(
            "support for \"BUILDKIT_DISABLE_FILEOP\" build-arg was removed in BuildKit 0.11",
        ));
    }
    Ok(())
}

fn extra_hosts(text: &str) -> Result<Vec<pb::HostIp>, String> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let host = |field: String| {
        let lower = field.to_lowercase();
        let (host, ip) = lower.split_once('=').ok_or_else(|| format!("invalid key-value pair {field}"))?;
        let address: IpAddr = ip.parse().map_err(|_| format!("failed to parse IP {ip}"))?;
        let address = match address {
            IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(address, IpAddr::V4),
            v4 => v4,
        };
        Ok(pb::HostIp { host: host.to_owned(), ip: address.to_string() })
    };
    csv::fields(text)?.into_iter().map(host).collect()
}

const LIMITS: [&str; 15] = [
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

fn ulimits(text: &str) -> Result<Vec<pb::Ulimit>, String> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let limit = |field: String| {
        let invalid = || format!("invalid ulimit argument: {field}");
        let (name, values) = field.split_once('=').ok_or_else(invalid)?;
        if !LIMITS.contains(&name) {
            return Err(format!("invalid ulimit type: {name}"));
        }
        let number = |text: &str| text.parse::<i64>().map_err(|_| number_error("ParseInt", text));
        let parts: Vec<&str> = values.split(':').collect();
        let (soft, hard) = match *parts.as_slice() {
            [soft] => (number(soft)?, number(soft)?),
            [soft, hard] => (number(soft)?, number(hard)?),
            _ => {
                return Err(format!(
                    "too many limit value arguments - {values}, can only have up to two, `soft[:hard]`"
                ));
            }
        };
        if hard != -1 {
            if soft == -1 {
                return Err(format!(
                    "ulimit soft limit must be less than or equal to hard limit: soft: -1 (unlimited), hard: {hard}"
                ));
            }
            if soft > hard {
                return Err(format!(
                    "ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}"
                ));
            }
        }
        Ok(pb::Ulimit { name: name.to_owned(), soft, hard })
    };
    csv::fields(text)?.into_iter().map(limit).collect()
}

fn linux_resources(raw: &BTreeMap<String, String>) -> Result<Option<pb::LinuxResources>, String> {
    let given = |key: &str| raw.get(key).filter(|value| !value.is_empty());
    let invalid = |key: &str, text: &str, why: String| format!("invalid {key} value: {text}: {why}");
    let signed = |key: &str| -> Result<i64, String> {
        let Some(text) = given(key) else { return Ok(0) };
        let value: i64 = text.parse().map_err(|_| invalid(key, text, number_error("ParseInt", text)))?;
        match (key, value) {
            ("memswap", -1) => Ok(-1),
            ("memswap", ..=0) => Err(invalid(key, text, "must be -1 (unlimited) or > 0".to_owned())),
            (_, ..=0) => Err(invalid(key, text, "must be > 0".to_owned())),
            _ => Ok(value),
        }
    };
    let unsigned = |key: &str| -> Result<u64, String> {
        let Some(text) = given(key) else { return Ok(0) };
        match text.parse() {
            Err(_) => Err(invalid(key, text, number_error("ParseUint", text))),
            Ok(0) => Err(invalid(key, text, "must be > 0".to_owned())),
            Ok(value) => Ok(value),
        }
    };
    let set = |key: &str| -> Result<String, String> {
        let Some(text) = given(key) else { return Ok(String::new()) };
        cpu_set(text).map_err(|why| invalid(key, text, why))?;
        Ok(text.clone())
    };
    let resources = pb::LinuxResources {
        memory: signed("memory")?,
        memory_swap: signed("memswap")?,
        cpu_shares: unsigned("cpushares")?,
        cpu_period: unsigned("cpuperiod")?,
        cpu_quota: signed("cpuquota")?,
        cpuset_cpus: set("cpusetcpus")?,
        cpuset_mems: set("cpusetmems")?,
    };
    Ok((resources != pb::LinuxResources::default()).then_some(resources))
}

fn cpu_set(text: &str) -> Result<(), String> {
    let bad = || format!("invalid cpuset value {}", quote(text));
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.parse::<u32>().map_err(|_| bad());
        let (first, last) = (number(first)?, number(last)?);
        if last > 8192 {
            return Err(format!("cpuset range {} exceeds maximum 8192", quote(part)));
        }
        if first > last {
            return Err(bad());
        }
    }
    Ok(())
}

fn cache_imports(json: &str, legacy: &str) -> Result<Vec<CacheImport>> {
    let mut imports = Vec::new();
    if !json.is_empty() {
        let entries: Vec<CacheEntry> = serde_json::from_str(json).map_err(|error| {
            // A text that ends too soon is told apart from one that is wrong, and in the reference's words.
            let cut_off = serde_json::from_str::<serde_json::Value>(json).is_err_and(|error| error.is_eof());
            let why = if cut_off { "unexpected end of JSON input".to_owned() } else { error.to_string() };
            Error::new(format!("failed to unmarshal cache-imports ({}): {why}", quote(json)))
        })?;
        let import =
            |entry: CacheEntry| CacheImport { kind: entry.kind, attrs: entry.attrs.unwrap_or_default() };
        imports.extend(entries.into_iter().map(import));
    }
    for reference in legacy.split(',').filter(|_| !legacy.is_empty()) {
        let attrs = [("ref".to_owned(), reference.to_owned())].into();
        imports.push(CacheImport { kind: "registry".to_owned(), attrs });
    }
    Ok(imports)
}

fn attestations(raw: &BTreeMap<String, String>) -> Result<Option<Sbom>> {
    let mut sbom = None;
    for (key, value) in raw {
        let kind = match key.strip_prefix("attest:") {
            Some(kind) => kind.to_owned(),
            None => match key.strip_prefix("build-arg:BUILDKIT_ATTEST_") {
                Some(kind) => kind.to_lowercase(),
                None => continue,
            },
        };
        if kind != "sbom" && kind != "provenance" {
            return Err(Error::new(format!("unknown attestation type {}", quote(&kind))));
        }
        let mut attrs = BTreeMap::new();
        if !value.is_empty() {
            let fields =
                csv::fields(value).map_err(|error| Error::new(format!("failed to parse {key}: {error}")))?;
            for field in fields {
                let (key, value) = field
                    .split_once('=')
                    .ok_or_else(|| Error::new(format!("attestation attribute must be key=value: {field}")))?;
                attrs.insert(key.to_owned(), value.to_owned());
            }
        }
        if kind == "sbom"
            && parse_bool(attrs.get("disabled").map(String::as_str).unwrap_or_default()) != Some(true)
        {
            let generator = attrs
                .remove("generator")
                .unwrap_or_else(|| "docker/buildkit-syft-scanner:stable-1".to_owned());
            let parsed = Reference::parse(&generator)
                .map_err(|error| Error::new(format!("failed to parse sbom scanner {generator}: {error}")))?;
            sbom = Some(Sbom { generator: parsed.with_default_tag().full(), parameters: attrs });
        }
    }
    Ok(sbom)
}
