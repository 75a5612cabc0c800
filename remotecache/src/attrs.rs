//! The attributes that exports of all kinds share.

use std::collections::BTreeMap;

use kiln_exporter::LayerOptions;

use crate::error::{Error, Result};

/// Which results an export contains.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// The result itself; of what it is made of only what has blobs anyway.
    #[default]
    Min,
    /// All that is there.
    Max,
}

/// How a cache is exported.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ExportAttrs {
    /// Which results.
    pub mode: Mode,
    /// How layers are compressed.
    pub layers: LayerOptions,
    /// OCI media types, not Docker's.
    pub oci: bool,
    /// A manifest with the config; else an index of blobs.
    pub image_manifest: bool,
    /// A failed export does not fail the build.
    pub ignore_error: bool,
}

impl ExportAttrs {
    /// Reads the attributes; those of one kind only are left alone.
    ///
    /// # Errors
    /// [`Error::Invalid`].
    pub fn parse(attrs: &BTreeMap<String, String>) -> Result<Self> {
        let flag = |key: &str| -> Result<Option<bool>> {
            let Some(value) = attrs.get(key) else { return Ok(None) };
            let parsed = match value.as_str() {
                "1" | "t" | "T" | "true" | "TRUE" | "True" => true,
                "0" | "f" | "F" | "false" | "FALSE" | "False" => false,
                _ => return Err(Error::invalid(format!("failed to parse {key}: invalid boolean {value:?}"))),
            };
            Ok(Some(parsed))
        };
        // Whatever is not `max` is `min`.
        let mode = if attrs.get("mode").is_some_and(|mode| mode == "max") { Mode::Max } else { Mode::Min };
        let oci = flag("oci-mediatypes")?;
        let image_manifest = flag("image-manifest")?;
        let oci = oci.unwrap_or(true);
        let image_manifest = image_manifest.unwrap_or(oci);
        if image_manifest && !oci {
            return Err(Error::invalid(
                "invalid configuration for remote cache, OCI mediatypes are required for image-manifest cache format",
            ));
        }
        let layers = LayerOptions::parse(attrs)?;
        let ignore_error = flag("ignore-error")?.unwrap_or(false);
        Ok(Self { mode, layers, oci, image_manifest, ignore_error })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(attrs: &[(&str, &str)], want: &str) {
        let attrs = attrs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let got = match ExportAttrs::parse(&attrs) {
            Ok(attrs) => format!(
                "{:?} {} oci={} manifest={} ignore={}",
                attrs.mode, attrs.layers.compression, attrs.oci, attrs.image_manifest, attrs.ignore_error
            ),
            Err(error) => match std::error::Error::source(&error) {
                Some(source) => source.to_string(),
                None => error.to_string(),
            },
        };
        assert_eq!(got, want);
    }

    #[test]
    fn attributes_are_read() {
        check(&[], "Min gzip oci=true manifest=true ignore=false");
        check(&[("mode", "max"), ("compression", "zstd")], "Max zstd oci=true manifest=true ignore=false");
        check(&[("mode", "other")], "Min gzip oci=true manifest=true ignore=false");
        check(&[("oci-mediatypes", "false")], "Min gzip oci=false manifest=false ignore=false");
        check(&[("image-manifest", "false")], "Min gzip oci=true manifest=false ignore=false");
        check(&[("ignore-error", "true")], "Min gzip oci=true manifest=true ignore=true");
        check(
            &[("oci-mediatypes", "false"), ("image-manifest", "true")],
            "invalid configuration for remote cache, OCI mediatypes are required for image-manifest cache format",
        );
        check(&[("ignore-error", "x")], "failed to parse ignore-error: invalid boolean \"x\"");
        check(&[("compression", "lz4")], "unsupported compression type lz4");
    }
}
