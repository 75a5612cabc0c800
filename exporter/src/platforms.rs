//! Which platforms a result has.

use std::collections::BTreeMap;

use kiln_content::Platform;
use serde::Deserialize;

use crate::attrs::{Epoch, parse_epoch};
use crate::error::{Error, Result};
use crate::source::{Source, keys};
use crate::timestamp::Timestamp;

/// One platform of a result.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ResultPlatform {
    /// What its state and metadata are named by.
    #[serde(rename = "ID")]
    pub id: String,
    /// What it is.
    #[serde(rename = "Platform")]
    pub platform: Platform,
}

#[derive(Deserialize)]
struct Document {
    #[serde(rename = "Platforms", default)]
    platforms: Vec<ResultPlatform>,
}

/// Returns the platforms that metadata names; without such a list the one of the image config, or of this machine.
///
/// # Errors
/// [`Error::Invalid`] for a list that is empty or malformed.
pub fn result_platforms(metadata: &BTreeMap<String, Vec<u8>>) -> Result<Vec<ResultPlatform>> {
    if let Some(list) = metadata.get(keys::PLATFORMS) {
        let document: Document = serde_json::from_slice(list)
            .map_err(|error| Error::invalid(format!("failed to parse platforms: {error}")))?;
        let mut platforms = document.platforms;
        if platforms.is_empty() {
            return Err(Error::invalid("invalid empty platforms index for exporter"));
        }
        for entry in &mut platforms {
            if entry.id.is_empty() {
                return Err(Error::invalid("invalid empty platform key for exporter"));
            }
            if entry.platform.os.is_empty() || entry.platform.architecture.is_empty() {
                return Err(Error::invalid(format!(
                    "invalid platform value {} for exporter",
                    entry.platform
                )));
            }
            entry.platform = entry.platform.normalized();
        }
        return Ok(platforms);
    }
    let platform = match metadata.get(keys::CONFIG) {
        Some(config) => {
            let platform: Platform = serde_json::from_slice(config)
                .map_err(|error| Error::invalid(format!("invalid image config: {error}")))?;
            if platform.os.is_empty() != platform.architecture.is_empty() {
                return Err(Error::invalid(
                    "invalid image config: os and architecture must be specified together",
                ));
            }
            platform
        }
        None => Platform::host(),
    };
    let platform = platform.normalized();
    Ok(vec![ResultPlatform { id: platform.to_string(), platform }])
}

/// Returns the epoch of a platform: the attribute if it is there, else what the frontend said.
pub(crate) fn epoch_of(
    source: &Source,
    attribute: Epoch,
    platform: Option<&str>,
) -> Result<Option<Timestamp>> {
    if let Some(explicit) = attribute {
        return Ok(explicit);
    }
    // What holds for all wins over what is said of one.
    let Some(value) = source
        .metadata
        .get(keys::EPOCH)
        .map(Vec::as_slice)
        .or_else(|| source.metadata_for(keys::EPOCH, platform))
    else {
        return Ok(None);
    };
    let value = String::from_utf8_lossy(value);
    parse_epoch("", &value).map_err(|error| {
        Error::invalid(format!("invalid SOURCE_DATE_EPOCH from frontend: {value:?}: {error}"))
    })
}

/// Checks that a map of states says which platforms they are, and finds them.
pub(crate) fn platforms_of(source: &Source, single_error: &str) -> Result<Vec<ResultPlatform>> {
    if source.is_map() && !source.metadata.contains_key(keys::PLATFORMS) {
        return Err(Error::invalid("unable to export multiple refs, missing platforms mapping"));
    }
    let platforms = result_platforms(&source.metadata)?;
    if !source.is_map() && platforms.len() > 1 {
        return Err(Error::invalid(single_error));
    }
    Ok(platforms)
}

/// Finds the state of a platform that metadata names.
pub(crate) fn state_of(source: &Source, platform: &str) -> Result<Option<kiln_cache::Ref>> {
    source.find(platform).ok_or_else(|| Error::invalid(format!("failed to find ref for ID {platform}")))
}
