//! From a source's key text to the digest of its cache map.

use kiln_digest::Digest;
use kiln_solver::{CacheMap, CacheMapPart, KeyDigest};

/// What every source key is hashed behind.
const DOMAIN: &str = "buildkit.source.v0:";
/// Keys that start so are valid only while their session lives.
const SESSION: &str = "session:";

/// Returns the digest of a source's key.
#[must_use]
pub fn key_digest(key: &str) -> KeyDigest {
    let digest = Digest::of(format!("{DOMAIN}{key}"));
    if key.starts_with(SESSION) { KeyDigest::Random(digest) } else { KeyDigest::Stable(digest) }
}

/// Returns the cache map of a source's key; a source has no inputs.
#[must_use]
pub fn cache_map(key: &str, last: bool) -> CacheMapPart {
    CacheMapPart { map: CacheMap { digest: key_digest(key), deps: Vec::new() }, last }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn session_keys_are_random() {
        let stable = key_digest("sha256:aa").to_string();
        let random = key_digest("session:ctx:sha256:aa").to_string();
        assert_eq!(stable, Digest::of("buildkit.source.v0:sha256:aa").to_string());
        let hex = Digest::of("buildkit.source.v0:session:ctx:sha256:aa").hex();
        assert_eq!(random, format!("random:{hex}"));
    }
}
