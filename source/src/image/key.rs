//! The two keys of an image: what it is, and what its layers are.

use kiln_content::{ImageConfig, Platform, json};
use kiln_digest::Digest;
use serde::Serialize;

use crate::error::{Error, Result};

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ManifestKey<'a> {
    digest: &'a Digest,
    #[serde(rename = "OS")]
    os: &'a str,
    arch: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    variant: &'a str,
    #[serde(rename = "OSVersion", skip_serializing_if = "str::is_empty")]
    os_version: &'a str,
    #[serde(rename = "OSFeatures", skip_serializing_if = "<[String]>::is_empty")]
    os_features: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<usize>,
}

/// Returns the key of a resolved root as a platform sees it.
pub(crate) fn manifest_key(root: &Digest, platform: &Platform, limit: Option<usize>) -> String {
    let key = ManifestKey {
        digest: root,
        os: &platform.os,
        arch: &platform.architecture,
        variant: &platform.variant,
        os_version: &platform.os_version,
        os_features: &platform.os_features,
        limit,
    };
    Digest::of(json::compact(&key)).to_string()
}

/// Returns the key that images with equal layers share; `None` when the config says nothing about layers.
///
/// # Errors
/// [`Error::InvalidImage`] when a limit is set and the config does not parse, [`Error::LayerLimit`].
pub(crate) fn config_key(reference: &str, config: &[u8], limit: Option<usize>) -> Result<Option<String>> {
    let parsed = match (ImageConfig::parse(config), limit) {
        (Ok(parsed), _) => parsed,
        (Err(_), None) => return Ok(Some(Digest::of(config).to_string())),
        (Err(error), Some(_)) => {
            return Err(Error::InvalidImage {
                reference: reference.to_owned(),
                reason: format!("failed to parse image config: {error}"),
            });
        }
    };
    let layers = parsed.rootfs.diff_ids.len();
    let limit = limit.unwrap_or(layers);
    let Some(diff_ids) = parsed.rootfs.diff_ids.get(..limit) else {
        return Err(Error::LayerLimit { limit, layers });
    };
    if parsed.rootfs.kind != "layers" {
        return Ok(None);
    }
    Ok(chain_id(diff_ids).map(|chain| chain.to_string()))
}

/// Folds diff IDs into the identity of the state they build up.
#[must_use]
pub fn chain_id(diff_ids: &[Digest]) -> Option<Digest> {
    diff_ids.iter().copied().reduce(|chain, next| Digest::of(format!("{chain} {next}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(letter: &str) -> Digest {
        Digest::from_hex(&letter.repeat(64)).unwrap()
    }

    #[test]
    fn manifest_keys_are_those_of_the_reference() {
        let amd64 = Platform::new("linux", "amd64", "");
        assert_eq!(
            manifest_key(&digest("a"), &amd64, None),
            "sha256:fadb6cc28f1514bf30ae8c3d1e1c00843d9dd7b759f27bea19d80ef3b3cdf27b"
        );
        let arm = Platform::new("linux", "arm", "v7");
        assert_eq!(
            manifest_key(&digest("a"), &arm, Some(2)),
            "sha256:8439783b15884025ab0d70d129d38c1e73771612bb889ccbd629bf4d3cf184a8"
        );
    }

    #[track_caller]
    fn check(config: &str, limit: Option<usize>, want: &str) {
        let got = match config_key("r", config.as_bytes(), limit) {
            Ok(Some(key)) => key,
            Ok(None) => "none".to_owned(),
            Err(error) => error.to_string(),
        };
        assert_eq!(got, want);
    }

    #[test]
    fn config_keys_follow_the_layers() {
        let (a, b) = (digest("a"), digest("b"));
        let layers = format!(r#"{{"rootfs":{{"type":"layers","diff_ids":["{a}","{b}"]}}}}"#);
        check(&layers, None, &Digest::of(format!("{a} {b}")).to_string());
        check(&layers, Some(1), &a.to_string());
        check(&layers, Some(3), "layer limit 3 is greater than the number of layers in the image 2");
        check(&layers.replace("layers", "other"), None, "none");
        check(r#"{"rootfs":{"type":"layers","diff_ids":null}}"#, None, "none");
        check("{}", None, "none");
        check("not json", None, &Digest::of("not json").to_string());
    }
}
