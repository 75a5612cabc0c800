//! Annotations asked for by attributes and metadata: `annotation[-<type>][[<platform>]].<name>`.

use std::collections::BTreeMap;

use kiln_content::Platform;

use crate::error::{Error, Result};

type Map = BTreeMap<String, String>;

/// Annotations for the documents of one platform, or of all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Annotations {
    pub(crate) index: Map,
    pub(crate) index_descriptor: Map,
    pub(crate) manifest: Map,
    pub(crate) manifest_descriptor: Map,
}

/// Annotations by platform; the empty one stands for all.
#[derive(Clone, Debug, Default)]
pub(crate) struct AnnotationGroups(BTreeMap<String, Annotations>);

impl AnnotationGroups {
    /// Takes an attribute if it is an annotation; says whether it was one.
    pub(crate) fn take(&mut self, key: &str, value: &str) -> Result<bool> {
        let Some((kind, platform, name)) = split_key(key) else { return Ok(false) };
        let platform = match platform {
            Some(platform) => {
                Platform::parse(platform).map_err(|error| Error::invalid(error.to_string()))?.to_string()
            }
            None => String::new(),
        };
        let group = self.0.entry(platform).or_default();
        let map = match kind {
            None | Some("manifest") => &mut group.manifest,
            Some("manifest-descriptor") => &mut group.manifest_descriptor,
            Some("index") => &mut group.index,
            Some("index-descriptor") => &mut group.index_descriptor,
            Some(other) => return Err(Error::invalid(format!("unrecognized annotation type {other}"))),
        };
        map.insert(name.to_owned(), value.to_owned());
        Ok(true)
    }

    /// Adds what a frontend asked for.
    pub(crate) fn take_metadata(&mut self, metadata: &BTreeMap<String, Vec<u8>>) -> Result<()> {
        for (key, value) in metadata {
            self.take(key, &String::from_utf8_lossy(value))?;
        }
        Ok(())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Annotations)> {
        self.0.iter().map(|(platform, annotations)| (platform.as_str(), annotations))
    }

    /// Returns what applies to a platform, or to the whole.
    pub(crate) fn of(&self, platform: Option<&Platform>) -> Annotations {
        let mut found = Annotations::default();
        for annotations in self.0.values() {
            found.index.extend(annotations.index.clone());
            found.index_descriptor.extend(annotations.index_descriptor.clone());
        }
        let own = platform.map(ToString::to_string);
        for key in [Some(String::new()), own].into_iter().flatten() {
            if let Some(annotations) = self.0.get(&key) {
                found.manifest.extend(annotations.manifest.clone());
                found.manifest_descriptor.extend(annotations.manifest_descriptor.clone());
            }
        }
        found
    }
}

/// Splits a key into type, platform and name; `None` when it is no annotation.
fn split_key(key: &str) -> Option<(Option<&str>, Option<&str>, &str)> {
    let rest = key.strip_prefix("annotation")?;
    let (kind, rest) = match rest.strip_prefix('-') {
        Some(rest) => {
            let end = rest.find(|c: char| !(c.is_ascii_lowercase() || c == '-')).unwrap_or(rest.len());
            let (kind, rest) = rest.split_at(end);
            (Some(kind).filter(|kind| !kind.is_empty()).map(Some)?, rest)
        }
        None => (None, rest),
    };
    let (platform, rest) = match rest.strip_prefix('[') {
        Some(rest) => {
            let (platform, rest) = rest.split_once(']')?;
            let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '/' | '-');
            if platform.is_empty() || !platform.chars().all(allowed) {
                return None;
            }
            (Some(platform), rest)
        }
        None => (None, rest),
    };
    let name = rest.strip_prefix('.')?;
    (!name.is_empty() && !name.contains(|c: char| c.is_ascii_whitespace())).then_some((kind, platform, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys() {
        for (key, want) in [
            ("annotation.a.b", Some((None, None, "a.b"))),
            ("annotation-index.a", Some((Some("index"), None, "a"))),
            ("annotation-manifest[linux/arm64].x", Some((Some("manifest"), Some("linux/arm64"), "x"))),
            ("annotation[linux/amd64].x", Some((None, Some("linux/amd64"), "x"))),
            ("annotation", None),
            ("annotation.", None),
            ("annotation-.x", None),
            ("annotation[].x", None),
            ("annotations.x", None),
            ("name", None),
        ] {
            assert_eq!(split_key(key), want, "{key}");
        }
    }
}
