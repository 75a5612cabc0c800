//! What a source op asks for when it names an image.

use std::fmt;

use kiln_cache::RecordType;
use kiln_content::Platform;
use kiln_digest::Digest;
use kiln_registry::Reference;

use crate::error::{Error, Result};

/// Where an image's documents and blobs come from. Its text is what lazy layers remember.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// A registry.
    Registry(Reference),
    /// A content store that a client's session offers.
    Layout(Layout),
}

/// An image in a content store that a client's session offers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Layout {
    /// The name before the digest; says nothing but what people read.
    pub name: String,
    /// The root.
    pub digest: Digest,
    /// The store of the client.
    pub store: String,
    /// The session that offers it; empty: any of the build.
    pub session: String,
    /// What the client offers it as.
    pub kind: LayoutKind,
}

/// What a client offers a store of blobs as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LayoutKind {
    /// Images.
    Images,
    /// A build cache in a directory.
    Cache,
}

impl Layout {
    /// Names a build cache in a directory of a client, by its root.
    #[must_use]
    pub fn cache(dir: &str, digest: Digest, session: &str) -> Self {
        Self {
            name: String::new(),
            digest,
            store: dir.to_owned(),
            session: session.to_owned(),
            kind: LayoutKind::Cache,
        }
    }

    /// Returns what the client's content service calls the store.
    #[must_use]
    pub fn store_id(&self) -> String {
        match self.kind {
            LayoutKind::Images => format!("oci:{}", self.store),
            LayoutKind::Cache => format!("local:{}", self.store),
        }
    }
}

const LAYOUT_SCHEME: &str = "oci-layout://";
const CACHE_SCHEME: &str = "local-cache://";
/// Separates the parts of a layout's text; it can be in none of them.
const SEPARATOR: char = '\n';

impl Origin {
    /// Reads the text of an origin.
    ///
    /// # Errors
    /// [`Error::InvalidOrigin`].
    pub fn parse(text: &str) -> Result<Self> {
        let fail = || Error::InvalidOrigin(text.chars().take(300).collect());
        let images = text.strip_prefix(LAYOUT_SCHEME).map(|rest| (rest, LayoutKind::Images));
        let cache = || text.strip_prefix(CACHE_SCHEME).map(|rest| (rest, LayoutKind::Cache));
        let Some((rest, kind)) = images.or_else(cache) else {
            return Reference::parse(text).map(Self::Registry).map_err(|_| fail());
        };
        let mut parts = rest.split(SEPARATOR);
        let mut next = || parts.next().ok_or_else(fail);
        let (reference, store, session) = (next()?, next()?, next()?);
        let (name, digest) = reference.rsplit_once('@').ok_or_else(fail)?;
        Ok(Self::Layout(Layout {
            name: name.to_owned(),
            digest: digest.parse().map_err(|_| fail())?,
            store: store.to_owned(),
            session: session.to_owned(),
            kind,
        }))
    }

    /// Returns the reference as people read it.
    #[must_use]
    pub fn reference(&self) -> String {
        match self {
            Self::Registry(reference) => reference.to_string(),
            Self::Layout(layout) => format!("{}@{}", layout.name, layout.digest),
        }
    }

    /// Returns the digest that the origin itself names.
    #[must_use]
    pub fn digest(&self) -> Option<&Digest> {
        match self {
            Self::Registry(reference) => reference.digest(),
            Self::Layout(layout) => Some(&layout.digest),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry(reference) => reference.fmt(f),
            Self::Layout(Layout { name, digest, store, session, kind }) => {
                let scheme = match kind {
                    LayoutKind::Images => LAYOUT_SCHEME,
                    LayoutKind::Cache => CACHE_SCHEME,
                };
                write!(f, "{scheme}{name}@{digest}{SEPARATOR}{store}{SEPARATOR}{session}")
            }
        }
    }
}

/// Whom to ask first. There is no image store here, so a registry is asked in every mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ResolveMode {
    /// The registry, and an image store when that fails.
    #[default]
    Default,
    /// The registry.
    Pull,
    /// An image store, if there is one.
    Local,
}

impl ResolveMode {
    /// Reads `default`, `pull` or `local`; empty is the default.
    ///
    /// # Errors
    /// [`Error::Attribute`].
    pub fn parse(text: &str) -> Result<Self> {
        match text {
            "" | "default" => Ok(Self::Default),
            "pull" => Ok(Self::Pull),
            "local" => Ok(Self::Local),
            other => Err(Error::Attribute { what: "resolvemode:", value: other.to_owned() }),
        }
    }
}

/// An image that a source op asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImageRequest {
    /// Where it is.
    pub origin: Origin,
    /// Which of an index's manifests is wanted.
    pub platform: Platform,
    /// Whom to ask.
    pub mode: ResolveMode,
    /// What the resulting record is for.
    pub record_type: Option<RecordType>,
    /// Only the first layers.
    pub layer_limit: Option<usize>,
    /// What the root must be.
    pub checksum: Option<Digest>,
}

impl ImageRequest {
    /// Asks for `reference` (with tag or digest) as `platform` has it.
    ///
    /// # Errors
    /// [`Error::Registry`] when it is no reference, [`Error::ObjectRequired`].
    pub fn new(reference: &str, platform: Platform) -> Result<Self> {
        let reference = Reference::parse(reference)?;
        if reference.tag().is_none() && reference.digest().is_none() {
            return Err(Error::ObjectRequired { reference: reference.to_string() });
        }
        Ok(Self::of(Origin::Registry(reference), platform))
    }

    /// Asks for what `docker-image://<reference>` with `attrs` names; unknown attributes mean nothing.
    ///
    /// # Errors
    /// As [`ImageRequest::new`]; [`Error::Attribute`].
    pub fn from_attrs<'a>(
        reference: &str,
        attrs: impl IntoIterator<Item = (&'a String, &'a String)>,
        platform: Platform,
    ) -> Result<Self> {
        let mut request = Self::new(reference, platform)?;
        for (name, value) in attrs {
            let invalid = |what| Error::Attribute { what, value: value.clone() };
            match name.as_str() {
                "image.resolvemode" => request.mode = ResolveMode::parse(value)?,
                "image.recordtype" => request.record_type = record_type(value)?,
                "image.layerlimit" => request.layer_limit = Some(layer_limit(value)?),
                "image.checksum" => {
                    request.checksum = Some(value.parse().map_err(|_| invalid("image checksum"))?);
                }
                _ => {}
            }
        }
        Ok(request)
    }

    /// Asks for what `oci-layout://<reference>` with `attrs` names.
    ///
    /// # Errors
    /// [`Error::DigestRequired`], [`Error::Attribute`].
    pub fn layout_from_attrs<'a>(
        reference: &str,
        attrs: impl IntoIterator<Item = (&'a String, &'a String)>,
        platform: Platform,
    ) -> Result<Self> {
        let required = || Error::DigestRequired { reference: reference.to_owned() };
        let (name, digest) = reference.rsplit_once('@').ok_or_else(required)?;
        let clean = |text: &str| !text.contains(SEPARATOR);
        let mut layout = Layout {
            name: name.to_owned(),
            digest: digest.parse().map_err(|_| required())?,
            store: String::new(),
            session: String::new(),
            kind: LayoutKind::Images,
        };
        let mut limit = None;
        for (key, value) in attrs {
            match key.as_str() {
                "oci.store" => layout.store.clone_from(value),
                "oci.session" => layout.session.clone_from(value),
                "oci.layerlimit" => limit = Some(layer_limit(value)?),
                _ => {}
            }
        }
        if layout.store.is_empty() {
            // A tag is no part of the store's name.
            let tag = name.rfind(':').filter(|at| !name[*at..].contains('/'));
            layout.store = tag.map_or(name, |at| &name[..at]).to_owned();
        }
        if ![&layout.name, &layout.store, &layout.session].into_iter().all(|text| clean(text)) {
            return Err(Error::Attribute { what: "oci-layout", value: reference.to_owned() });
        }
        let mut request = Self::of(Origin::Layout(layout), platform);
        request.layer_limit = limit;
        Ok(request)
    }

    fn of(origin: Origin, platform: Platform) -> Self {
        Self {
            origin,
            platform,
            mode: ResolveMode::Default,
            record_type: None,
            layer_limit: None,
            checksum: None,
        }
    }
}

fn record_type(value: &str) -> Result<Option<RecordType>> {
    match value {
        "" => Ok(None),
        "regular" => Ok(Some(RecordType::Regular)),
        "internal" => Ok(Some(RecordType::Internal)),
        "frontend" => Ok(Some(RecordType::Frontend)),
        other => Err(Error::Attribute { what: "record type", value: other.to_owned() }),
    }
}

fn layer_limit(value: &str) -> Result<usize> {
    match value.parse() {
        Ok(limit) if limit > 0 => Ok(limit),
        _ => Err(Error::Attribute { what: "layer limit", value: value.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const DIGEST: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    fn attrs(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[track_caller]
    fn check(reference: &str, pairs: &[(&str, &str)], want: &str) {
        let attrs = attrs(pairs);
        let got = match ImageRequest::from_attrs(reference, &attrs, Platform::new("linux", "amd64", "")) {
            Ok(r) => {
                format!("{} {:?} {:?} {:?} {:?}", r.origin, r.mode, r.record_type, r.layer_limit, r.checksum)
            }
            Err(error) => error.to_string(),
        };
        assert_eq!(got, want);
    }

    #[test]
    fn attributes_are_read() {
        check("docker.io/library/a:b", &[], "docker.io/library/a:b Default None None None");
        check(
            "r.x/a:b",
            &[
                ("image.resolvemode", "local"),
                ("image.recordtype", "frontend"),
                ("image.layerlimit", "2"),
                ("other", "?"),
            ],
            "r.x/a:b Local Some(Frontend) Some(2) None",
        );
        check("docker.io/library/a", &[], "docker.io/library/a: object required");
        check("r.x/a:b", &[("image.resolvemode", "x")], "invalid resolvemode: x");
        check("r.x/a:b", &[("image.layerlimit", "0")], "invalid layer limit 0");
        check("r.x/a:b", &[("image.recordtype", "x")], "invalid record type x");
        check("r.x/a:b", &[("image.checksum", "x")], "invalid image checksum x");
    }

    #[test]
    fn layouts_have_a_digest_and_a_store() {
        let platform = || Platform::new("linux", "amd64", "");
        for (reference, pairs, want) in [
            (format!("a/b@{DIGEST}"), vec![], Ok(("a/b", ""))),
            (format!("a/b:t@{DIGEST}"), vec![], Ok(("a/b", ""))),
            (format!("h:1/b@{DIGEST}"), vec![], Ok(("h:1/b", ""))),
            (format!("a@{DIGEST}"), vec![("oci.store", "s"), ("oci.session", "i")], Ok(("s", "i"))),
            ("a:b".to_owned(), vec![], Err(r#"reference "a:b" must have digest"#)),
        ] {
            match (ImageRequest::layout_from_attrs(&reference, &attrs(&pairs), platform()), want) {
                (Ok(request), Ok((store, session))) => {
                    let Origin::Layout(layout) = &request.origin else { panic!("{request:?}") };
                    assert_eq!((layout.store.as_str(), layout.session.as_str()), (store, session));
                    assert_eq!(Origin::parse(&request.origin.to_string()).unwrap(), request.origin);
                }
                (Err(error), Err(want)) => assert_eq!(error.to_string(), want),
                (got, want) => panic!("{got:?} {want:?}"),
            }
        }
    }
}
