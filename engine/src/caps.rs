//! What this daemon can do, of all that clients know to ask for.
//!
//! Every capability of the reference is listed; what is not there is listed as disabled, with the reason, so that
//! clients fall back or say clearly why not.

use std::collections::BTreeSet;

use kiln_llb::caps::{CapList, CapSet, CapState, GATEWAY, LLB};

/// What begins with the id, and why it is not there.
const LLB_DISABLED: &[(&str, &str)] = &[
    ("cache.azblob", "remote caches are not supported yet"),
    ("cache.gha", "remote caches are not supported yet"),
    ("cache.s3", "remote caches are not supported yet"),
    ("exec.meta.network.proxy", "the proxy network is not supported yet"),
    ("exporter.image.attestations", "attestations are not supported yet"),
    ("source.git.bundle", "git bundles are not supported yet"),
    ("source.git.checkoutbundle", "git bundles are not supported yet"),
    ("source.git.signatureverify", "signatures of git sources are not supported yet"),
    ("source.http.signatureverify", "signatures of http sources are not supported yet"),
    ("source.imageblob", "blob sources are not supported yet"),
    ("source.policy", "source policies are not supported yet"),
];

const GATEWAY_DISABLED: &[(&str, &str)] = &[
    ("reference.attestations", "attestations are not supported yet"),
    ("source.metaresolver.http.checksumrequest", "other checksums of http sources are not supported yet"),
    ("source.metaresolver.image.attestations", "attestations are not supported yet"),
];

/// The capabilities of LLB.
pub fn llb() -> CapSet {
    set(LLB, LLB_DISABLED)
}

/// The capabilities of the gateway.
pub fn gateway() -> CapSet {
    set(GATEWAY, GATEWAY_DISABLED)
}

/// The ids of those that can be used.
pub(crate) fn enabled(list: CapList, set: &CapSet) -> BTreeSet<String> {
    list.all().iter().filter(|cap| set.enabled(cap.id)).map(|cap| cap.id.to_owned()).collect()
}

fn set(list: CapList, disabled: &[(&str, &str)]) -> CapSet {
    let mut set = list.all_enabled();
    for cap in list.all() {
        let is_part = |prefix: &str| {
            cap.id.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        if let Some((_, reason)) = disabled.iter().find(|(prefix, _)| is_part(prefix)) {
            set.insert(cap.id, CapState { enabled: false, disabled_reason: (*reason).to_owned() });
        }
    }
    set
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_listed_with_its_reason() {
        let llb = llb();
        assert_eq!(LLB.all().iter().filter(|cap| llb.contains(cap.id)).count(), 88);
        for (id, want) in [
            ("mergeop", Ok(())),
            ("source.local.followpaths", Ok(())),
            (
                "source.git.bundle",
                Err("has been disabled on the build server: git bundles are not supported yet"),
            ),
            ("soruce.http.uidgid", Ok(())),
            ("source.git.checksum", Ok(())),
            (
                "source.http.signatureverify",
                Err(
                    "has been disabled on the build server: signatures of http sources are not supported yet",
                ),
            ),
            ("exec.meta.cdi", Ok(())),
            ("file.copy.modestring", Err("unknown API capability file.copy.modestring")),
        ] {
            match (LLB.require(&llb, id), want) {
                (Ok(()), Ok(())) => {}
                (Err(error), Err(want)) => assert!(error.to_string().ends_with(want), "{error}"),
                (got, want) => panic!("{id}: {got:?}, not {want:?}"),
            }
        }
        let gateway = gateway();
        let attestations = "reference.attestations";
        assert!(gateway.contains(attestations) && !gateway.enabled(attestations));
        assert!(gateway.enabled("gateway.evaluate") && gateway.enabled("gateway.exec.signals"));
        // No row stands for nothing.
        for (prefix, _) in LLB_DISABLED {
            assert!(LLB.all().iter().any(|cap| cap.id.starts_with(prefix)), "{prefix}");
        }
        for (prefix, _) in GATEWAY_DISABLED {
            assert!(GATEWAY.all().iter().any(|cap| cap.id.starts_with(prefix)), "{prefix}");
        }
    }
}
