//! Capabilities: what a daemon says it can do, and what a vertex says it needs.

use std::collections::BTreeMap;

/// A registered capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cap {
    /// The wire name.
    pub id: &'static str,
    /// A readable name, often empty.
    pub name: &'static str,
    /// How stable it is.
    pub status: Status,
    /// Kept for old clients only.
    pub deprecated: bool,
}

/// How stable a capability is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// May still be replaced by another id.
    Experimental,
    /// On its way to be stable.
    Prerelease,
}

/// A capability that is not there. The texts are those that clients know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unsupported {
    /// Nobody registered the id.
    #[error("unknown API capability {0}")]
    Unknown(String),
    /// The daemon does not list it.
    #[error(
        "requested {status}feature {id} {name} is not supported by build server, please update {product}"
    )]
    NotListed {
        /// The capability.
        id: &'static str,
        /// Its readable name in parentheses, or empty.
        name: String,
        /// Its status followed by a space.
        status: &'static str,
        /// What the daemon is called.
        product: String,
    },
    /// The daemon switched it off.
    #[error("requested {status}feature {id} {name} has been disabled on the build server{reason}")]
    Disabled {
        /// The capability.
        id: &'static str,
        /// Its readable name in parentheses, or empty.
        name: String,
        /// Its status followed by a space.
        status: &'static str,
        /// A colon, a space and the reason, or empty.
        reason: String,
    },
}

/// A list of registered capabilities.
#[derive(Clone, Copy, Debug)]
pub struct CapList(&'static [Cap]);

/// The capabilities of LLB.
pub const LLB: CapList = CapList(LLB_CAPS);

/// The capabilities of the gateway.
pub const GATEWAY: CapList = CapList(GATEWAY_CAPS);

/// The state of one capability on a daemon.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CapState {
    /// Whether it can be used.
    pub enabled: bool,
    /// Why not, readable.
    pub disabled_reason: String,
}

/// What one daemon supports.
#[derive(Clone, Debug, Default)]
pub struct CapSet {
    states: BTreeMap<String, CapState>,
}

impl CapList {
    /// Lists all capabilities, sorted by id.
    pub fn all(self) -> &'static [Cap] {
        self.0
    }

    /// Finds a capability.
    pub fn get(self, id: &str) -> Option<&'static Cap> {
        let position = self.0.binary_search_by(|cap| cap.id.cmp(id)).ok()?;
        self.0.get(position)
    }

    /// Returns the set in which every capability of the list is enabled.
    pub fn all_enabled(self) -> CapSet {
        self.0.iter().map(|cap| (cap.id, CapState { enabled: true, ..CapState::default() })).collect()
    }

    /// Checks that `id` is registered here and enabled in `set`.
    ///
    /// # Errors
    /// Says what is missing, in the words of the reference.
    pub fn require(self, set: &CapSet, id: &str) -> Result<(), Unsupported> {
        let cap = self.get(id).ok_or_else(|| Unsupported::Unknown(id.to_owned()))?;
        let name = if cap.name.is_empty() { String::new() } else { format!("({})", cap.name) };
        let status = match cap.status {
            Status::Experimental => "experimental ",
            Status::Prerelease => "prerelease ",
        };
        match set.states.get(id) {
            None => Err(Unsupported::NotListed { id: cap.id, name, status, product: String::new() }),
            Some(state) if !state.enabled => {
                let reason = match state.disabled_reason.as_str() {
                    "" => String::new(),
                    reason => format!(": {reason}"),
                };
                Err(Unsupported::Disabled { id: cap.id, name, status, reason })
            }
            Some(_) => Ok(()),
        }
    }
}

impl CapSet {
    /// Whether the daemon lists `id` at all.
    pub fn contains(&self, id: &str) -> bool {
        self.states.contains_key(id)
    }

    /// Whether `id` can be used.
    pub fn enabled(&self, id: &str) -> bool {
        self.states.get(id).is_some_and(|state| state.enabled)
    }

    /// The state of a capability, if the daemon lists it.
    pub fn get(&self, id: &str) -> Option<&CapState> {
        self.states.get(id)
    }

    /// Adds or replaces one capability.
    pub fn insert(&mut self, id: impl Into<String>, state: CapState) {
        self.states.insert(id.into(), state);
    }

    /// Removes one capability.
    pub fn remove(&mut self, id: &str) {
        self.states.remove(id);
    }
}

impl<S: Into<String>> FromIterator<(S, CapState)> for CapSet {
    fn from_iter<I: IntoIterator<Item = (S, CapState)>>(caps: I) -> Self {
        Self { states: caps.into_iter().map(|(id, state)| (id.into(), state)).collect() }
    }
}

const fn cap(id: &'static str) -> Cap {
    Cap { id, name: "", status: Status::Experimental, deprecated: false }
}

const fn named(id: &'static str, name: &'static str) -> Cap {
    Cap { id, name, status: Status::Experimental, deprecated: false }
}

const LLB_CAPS: &[Cap] = &[
    cap("cache.azblob"),
    cap("cache.gha"),
    cap("cache.s3"),
    cap("constraints"),
    cap("diffop"),
    cap("exec.cgroup"),
    cap("exec.meta.base"),
    cap("exec.meta.cdi"),
    cap("exec.meta.cgroup.parent"),
    cap("exec.meta.linux.resources"),
    cap("exec.meta.network"),
    cap("exec.meta.network.proxy"),
    cap("exec.meta.proxyenv"),
    cap("exec.meta.security"),
    cap("exec.meta.security.devices.v1"),
    cap("exec.meta.setsdefaultpath"),
    cap("exec.meta.ulimit"),
    cap("exec.mount.bind"),
    cap("exec.mount.bind.readwrite-nooutput"),
    cap("exec.mount.cache"),
    cap("exec.mount.cache.content"),
    cap("exec.mount.cache.sharing"),
    cap("exec.mount.secret"),
    cap("exec.mount.selector"),
    cap("exec.mount.ssh"),
    cap("exec.mount.tmpfs"),
    cap("exec.mount.tmpfs.size"),
    cap("exec.secretenv"),
    cap("exec.validexitcode"),
    cap("exporter.image.annotations"),
    cap("exporter.image.attestations"),
    cap("exporter.multiple"),
    cap("exporter.session"),
    named("exporter.sourcedateepoch", "source date epoch"),
    Cap { id: "file.base", name: "", status: Status::Prerelease, deprecated: false },
    cap("file.copy.alwaysreplaceexistingdestpaths"),
    cap("file.copy.includeexcludepatterns"),
    cap("file.copy.requiredpaths"),
    cap("file.rm.nofollowsymlink"),
    cap("file.rm.wildcard"),
    cap("file.symlink.create"),
    cap("gc.freespacefilter"),
    cap("history.filter"),
    cap("mergeop"),
    cap("meta.description"),
    cap("meta.exportcache"),
    cap("meta.ignorecache"),
    cap("passthroughop"),
    cap("platform"),
    cap("soruce.http.uidgid"),
    cap("source.buildop.llbfilename"),
    cap("source.git"),
    cap("source.git.bundle"),
    cap("source.git.checkoutbundle"),
    cap("source.git.checksum"),
    cap("source.git.fetchbycommit"),
    cap("source.git.fullurl"),
    cap("source.git.httpauth"),
    cap("source.git.keepgitdir"),
    cap("source.git.knownsshhosts"),
    cap("source.git.mountsshsock"),
    cap("source.git.mtime"),
    cap("source.git.signatureverify"),
    cap("source.git.skipsubmodules"),
    cap("source.git.subdir"),
    cap("source.http"),
    cap("source.http.auth"),
    cap("source.http.checksum"),
    cap("source.http.header"),
    cap("source.http.perm"),
    cap("source.http.signatureverify"),
    cap("source.image"),
    cap("source.image.checksum"),
    cap("source.image.layerlimit"),
    cap("source.image.resolvemode"),
    cap("source.imageblob"),
    cap("source.local"),
    cap("source.local.differ"),
    cap("source.local.excludepatterns"),
    cap("source.local.followpaths"),
    cap("source.local.includepatterns"),
    cap("source.local.metadatatransfer"),
    cap("source.local.sessionid"),
    cap("source.local.sharedkeyhint"),
    cap("source.local.unique"),
    cap("source.ocilayout"),
    cap("source.policy"),
    cap("source.policy.session"),
];

const GATEWAY_CAPS: &[Cap] = &[
    named("frontend.caps", "frontend capabilities"),
    named("frontend.inputs", "frontend inputs"),
    named("gateway.evaluate", "gateway evaluate"),
    named("gateway.exec", "gateway exec"),
    named("gateway.exec.extrahosts", "gateway exec extra-hosts"),
    named("gateway.exec.filesystem", "gateway exec filesystem"),
    named("gateway.exec.secretenv", "gateway exec secret env"),
    named("gateway.exec.signals", "gateway exec signals"),
    named("gateway.solve.evaluate", "gateway evaluate solve"),
    named("gateway.solve.metadata", "gateway metadata"),
    named("gateway.warnings", "logging warnings"),
    named("importcaches", "import caches"),
    named("proto.refarray", "wire format ref arrays"),
    named("readdir", "read static directory"),
    named("readfile", "read static file"),
    named("reference.attestations", "reference attestations"),
    named("reference.output", "reference output"),
    named("resolveimage", "resolve remote image config"),
    named("resolveimage.resolvemode", "resolve remote image config with custom resolvemode"),
    named("return", "return solve result"),
    named("returnmap", "return reference map"),
    cap("solve.base"),
    Cap {
        id: "solve.inlinereturn",
        name: "inline return from solve",
        status: Status::Experimental,
        deprecated: true,
    },
    named("source.metaresolver", "source meta resolver"),
    named("source.metaresolver.http.checksumrequest", "source meta resolver http checksum request"),
    named("source.metaresolver.image.attestations", "source meta resolver image attestations"),
    named("statfile", "stat a file"),
];
