//! What a build resulted in.

use std::collections::BTreeMap;

use kiln_cache::Ref;

use crate::error::{Error, Result};

/// Keys of result metadata that exporters understand.
pub mod keys {
    /// Which platforms the result has, JSON.
    pub const PLATFORMS: &str = "refs.platforms";
    /// The image config; `/<platform id>` may follow.
    pub const CONFIG: &str = "containerimage.config";
    /// The config of the base image; `/<platform id>` may follow.
    pub const BASE_CONFIG: &str = "containerimage.base.config";
    /// Names for the exporter attribute `name=*`.
    pub const IMAGE_NAME: &str = "image.name";
    /// The epoch that the frontend found; `/<platform id>` may follow.
    pub const EPOCH: &str = "source.date.epoch";
    /// Response: digest of the top document.
    pub const DIGEST: &str = "containerimage.digest";
    /// Response: digest of the only config.
    pub const CONFIG_DIGEST: &str = "containerimage.config.digest";
    /// Response: the top descriptor, JSON in base64.
    pub const DESCRIPTOR: &str = "containerimage.descriptor";
}

/// What a build resulted in: one state, or one for each platform, and what the frontend said about it.
///
/// A state of `None` is an empty one (`FROM scratch`).
#[derive(Clone, Debug, Default)]
pub struct Source {
    /// The only state, when there is no map.
    pub single: Option<Ref>,
    /// The states by platform id. Even with one entry this asks for an index.
    pub refs: BTreeMap<String, Option<Ref>>,
    /// What the frontend said.
    pub metadata: BTreeMap<String, Vec<u8>>,
    /// Which attestations were asked for; none can be exported yet.
    pub attestations: Vec<Attestation>,
}

/// An attestation that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attestation {
    /// What it says, for example `provenance`.
    pub kind: String,
    /// Only exporters that keep attestations inside of images are to have it; others leave it out.
    pub inline_only: bool,
}

impl Source {
    /// Fails when there is an attestation to be exported, which is not supported.
    pub(crate) fn refuse_attestations(&self, takes_inline_only: bool) -> Result<()> {
        let wanted = self.attestations.iter().filter(|wanted| takes_inline_only || !wanted.inline_only);
        let kinds: Vec<&str> = wanted.map(|wanted| wanted.kind.as_str()).collect();
        if kinds.is_empty() {
            return Ok(());
        }
        Err(Error::Unsupported(format!("attestations ({})", kinds.join(", "))))
    }

    /// Whether the result has a map of states.
    pub fn is_map(&self) -> bool {
        !self.refs.is_empty()
    }

    /// Finds the state of a platform; `None` when there is no such platform, `Some(None)` when it is empty.
    pub fn find(&self, platform: &str) -> Option<Option<Ref>> {
        if self.is_map() { self.refs.get(platform).cloned() } else { Some(self.single.clone()) }
    }

    /// Finds metadata of a platform, or of all.
    pub fn metadata_for(&self, key: &str, platform: Option<&str>) -> Option<&[u8]> {
        platform
            .and_then(|platform| self.metadata.get(&format!("{key}/{platform}")))
            .or_else(|| self.metadata.get(key))
            .map(Vec::as_slice)
    }

    /// Iterates over all states that are not empty.
    pub fn states(&self) -> impl Iterator<Item = &Ref> {
        self.single.iter().chain(self.refs.values().flatten())
    }
}
