//! What loading can be told, and the steps that are driven by it.

use std::collections::BTreeMap;

use async_trait::async_trait;
use kiln_llb::caps::{self, CapSet};
use kiln_llb::pb::op::Op as Kind;
use kiln_llb::{pb, platform};

use crate::load::{Draft, Entitlements, LoadError};

/// The error of a policy, kept as it is.
pub type PolicyError = Box<dyn std::error::Error + Send + Sync>;

/// Decides about the sources of a build.
///
/// 1. `evaluate` gets the source with its identifier in canonical form.
/// 2. It may replace identifier and attributes; the digest is computed afterwards.
/// 3. An error refuses the whole definition.
/// 4. Calls for different sources overlap.
#[async_trait]
pub trait SourcePolicy: Send + Sync {
    /// Allows, changes or refuses `source`.
    async fn evaluate(
        &self,
        source: &mut pb::SourceOp,
        platform: Option<&pb::Platform>,
    ) -> Result<(), PolicyError>;
}

/// What loading needs to know besides the definition.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct LoadOptions<'a> {
    /// Platform of ops that name none.
    pub platform: &'a pb::Platform,
    /// What the solve was granted.
    pub entitlements: &'a dyn Entitlements,
    /// Judges sources; without one all are allowed.
    pub policy: Option<&'a dyn SourcePolicy>,
    /// What this daemon can do; without a set everything that is registered.
    pub caps: Option<&'a CapSet>,
    /// Whether the solve runs its processes behind the proxy network.
    pub proxy_network: bool,
}

impl<'a> LoadOptions<'a> {
    /// Makes options without policy and proxy network.
    pub fn new(platform: &'a pb::Platform, entitlements: &'a dyn Entitlements) -> Self {
        Self { platform, entitlements, policy: None, caps: None, proxy_network: false }
    }

    /// Sets the source policy.
    #[must_use]
    pub fn with_policy(mut self, policy: Option<&'a dyn SourcePolicy>) -> Self {
        self.policy = policy;
        self
    }

    /// Sets what the daemon can do.
    #[must_use]
    pub fn with_caps(mut self, caps: &'a CapSet) -> Self {
        self.caps = Some(caps);
        self
    }

    /// Sets whether processes run behind the proxy network.
    #[must_use]
    pub fn with_proxy_network(mut self, enabled: bool) -> Self {
        self.proxy_network = enabled;
        self
    }
}

impl std::fmt::Debug for LoadOptions<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoadOptions")
            .field("platform", &self.platform)
            .field("caps", &self.caps)
            .field("proxy_network", &self.proxy_network)
            .finish_non_exhaustive()
    }
}

/// Applies the load options to one op, in the order of the reference. Its digest is already fixed.
pub(super) fn apply(
    draft: &mut Draft<'_>,
    options: &LoadOptions<'_>,
    default_platform: &mut Option<pb::Platform>,
    pruned_cache_ids: &mut BTreeMap<String, bool>,
) -> Result<(), LoadError> {
    let op = std::sync::Arc::make_mut(&mut draft.op);
    if let Some(Kind::Exec(exec)) = &mut op.op {
        if draft.metadata.is_some_and(|m| m.ignore_cache) {
            collect_pruned(exec, pruned_cache_ids);
        }
        options.entitlements.check(exec).map_err(LoadError::NotAllowed)?;
    }
    op.platform = Some(match &op.platform {
        Some(wanted) => platform::normalize(wanted, options.platform),
        None => default_platform
            .get_or_insert_with(|| platform::normalize(options.platform, options.platform))
            .clone(),
    });
    if let Some(metadata) = draft.metadata {
        for id in metadata.caps.keys() {
            match options.caps {
                Some(set) => caps::LLB.require(set, id)?,
                None if caps::LLB.get(id).is_none() => {
                    return Err(caps::Unsupported::Unknown(id.clone()).into());
                }
                None => {}
            }
        }
    }
    Ok(())
}

fn collect_pruned(exec: &pb::ExecOp, pruned_cache_ids: &mut BTreeMap<String, bool>) {
    for mount in exec.mounts.iter().filter(|m| m.mount_type() == pb::MountType::Cache) {
        let Some(cache) = &mount.cache_opt else { continue };
        let id = if cache.id.is_empty() { &mount.dest } else { &cache.id };
        pruned_cache_ids.insert(id.clone(), mount.input != -1);
    }
}
