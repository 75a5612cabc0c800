//! Attributes that the image exporters share.

use std::collections::BTreeMap;

use kiln_content::Compression;

use crate::annotations::AnnotationGroups;
use crate::error::{Error, Result};
use crate::exporter::{Compatibility, Kind};
use crate::layers::LayerOptions;
use crate::timestamp::Timestamp;

/// What `source-date-epoch` says: `None` when the attribute is absent, `Some(None)` when it is empty.
pub(crate) type Epoch = Option<Option<Timestamp>>;

/// Attributes of `image`, `oci` and `docker`.
#[derive(Clone, Debug)]
pub(crate) struct ImageAttrs {
    pub(crate) name: String,
    pub(crate) layers: LayerOptions,
    pub(crate) oci_types: Option<bool>,
    pub(crate) oci_artifact: Option<bool>,
    pub(crate) annotations: AnnotationGroups,
    pub(crate) epoch: Epoch,
    pub(crate) rewrite_timestamp: bool,
    /// Whether attestations that are for the inside of images only are taken.
    pub(crate) inline_attestations: bool,
}

impl ImageAttrs {
    /// Takes what it knows and returns the rest.
    pub(crate) fn load(attrs: &BTreeMap<String, String>) -> Result<(Self, BTreeMap<String, String>)> {
        let mut out = Self {
            name: String::new(),
            layers: LayerOptions::default(),
            oci_types: None,
            oci_artifact: None,
            annotations: AnnotationGroups::default(),
            epoch: None,
            rewrite_timestamp: false,
            inline_attestations: false,
        };
        let mut rest = BTreeMap::new();
        for (key, value) in attrs {
            match key.as_str() {
                "name" => out.name.clone_from(value),
                "oci-mediatypes" => out.oci_types = Some(parse_bool(key, value)?),
                "oci-artifact" => out.oci_artifact = Some(parse_bool(key, value)?),
                "attestation-inline" => out.inline_attestations = parse_bool(key, value)?,
                "rewrite-timestamp" => out.rewrite_timestamp = parse_bool(key, value)?,
                "source-date-epoch" => out.epoch = Some(parse_epoch(key, value)?),
                _ if out.layers.set(key, value)? => {}
                _ if out.annotations.take(key, value)? => {}
                _ => {
                    rest.insert(key.clone(), value.clone());
                }
            }
        }
        out.validate()?;
        Ok((out, rest))
    }

    /// Fills in the defaults of a version and checks the whole.
    pub(crate) fn complete(&mut self, kind: Kind, compatibility: Compatibility) -> Result<()> {
        let oci = kind == Kind::Oci || compatibility.has_oci_defaults();
        let oci = *self.oci_types.get_or_insert(oci);
        self.oci_artifact.get_or_insert(compatibility.has_oci_defaults() && oci);
        self.validate()?;
        if self.layers.compression == Compression::Zstd && !compatibility.has_zstd() {
            return Err(Error::invalid(format!(
                "compatibility-version {} does not support {} exporter compression=zstd",
                compatibility.number(),
                kind.name()
            )));
        }
        Ok(())
    }

    pub(crate) fn oci(&self) -> bool {
        self.oci_types == Some(true)
    }

    fn validate(&self) -> Result<()> {
        if self.oci_types == Some(false) && self.oci_artifact == Some(true) {
            return Err(Error::invalid(
                "exporter option \"oci-artifact=true\" conflicts with \"oci-mediatypes=false\"",
            ));
        }
        Ok(())
    }
}

impl LayerOptions {
    /// Takes an attribute; whether it is one of these.
    pub(crate) fn set(&mut self, key: &str, value: &str) -> Result<bool> {
        match key {
            "prefer-nondist-layers" => self.prefer_nondist = parse_bool(key, value)?,
            "compression" => self.compression = parse_compression(value)?,
            "force-compression" => {
                self.force = value.is_empty()
                    || go_bool(value).ok_or_else(|| {
                        let reason = bool_error(value);
                        Error::invalid(format!("non-bool value {value} specified for {key}: {reason}"))
                    })?;
            }
            "compression-level" => {
                let level: i64 = value.parse().map_err(|_| {
                    let reason = format!("strconv.ParseInt: parsing {value:?}: invalid syntax");
                    Error::invalid(format!("non-integer value {value} specified for {key}: {reason}"))
                })?;
                self.level = Some(i32::try_from(level.clamp(-1, 100)).unwrap_or_default());
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

fn parse_compression(value: &str) -> Result<Compression> {
    if value == "estargz" {
        return Err(Error::Unsupported("compression type estargz".to_owned()));
    }
    value.parse().map_err(|_| Error::invalid(format!("unsupported compression type {value}")))
}

/// Parses a boolean that must have a value.
pub(crate) fn parse_bool(key: &str, value: &str) -> Result<bool> {
    go_bool(value)
        .ok_or_else(|| Error::invalid(format!("non-bool value specified for {key}: {}", bool_error(value))))
}

/// Parses a boolean that is true when it has no value.
pub(crate) fn parse_flag(key: &str, value: &str) -> Result<bool> {
    if value.is_empty() { Ok(true) } else { parse_bool(key, value) }
}

/// Parses decimal seconds; empty is none.
pub(crate) fn parse_epoch(key: &str, value: &str) -> Result<Option<Timestamp>> {
    if value.is_empty() {
        return Ok(None);
    }
    let seconds: i64 = value.parse().map_err(|_| {
        Error::invalid(format!("invalid {key}: strconv.ParseInt: parsing {value:?}: invalid syntax"))
    })?;
    Ok(Some(Timestamp::from_seconds(seconds)))
}

pub(crate) fn go_bool(value: &str) -> Option<bool> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

fn bool_error(value: &str) -> String {
    format!("strconv.ParseBool: parsing {value:?}: invalid syntax")
}
