use std::collections::BTreeMap;
use std::sync::Arc;

use crate::reference::Reference;

/// What a frontend returns.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct FrontendResult {
    /// The filesystems.
    pub refs: References,
    /// Metadata by key, such as `containerimage.config` or `refs.platforms`.
    pub metadata: BTreeMap<String, Vec<u8>>,
    /// Attestations by the id of the reference they are about (the platform id).
    pub attestations: BTreeMap<String, Vec<Attestation>>,
}

/// One filesystem or several. `None` stands for an empty one.
#[derive(Clone, Debug)]
pub enum References {
    /// One result.
    Single(Option<Arc<dyn Reference>>),
    /// Results by id, usually a platform. Order is that of the ids; `refs.platforms` has the one asked for.
    Map(BTreeMap<String, Option<Arc<dyn Reference>>>),
}

impl Default for References {
    fn default() -> Self {
        Self::Single(None)
    }
}

impl FrontendResult {
    /// A result with one reference.
    pub fn single(reference: Option<Arc<dyn Reference>>) -> Self {
        Self { refs: References::Single(reference), ..Self::default() }
    }

    /// The only reference. None if it is empty or there are several.
    pub fn single_ref(&self) -> Option<&Arc<dyn Reference>> {
        match &self.refs {
            References::Single(reference) => reference.as_ref(),
            References::Map(_) => None,
        }
    }

    /// All references with their ids; the only one has the empty id.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Arc<dyn Reference>)> {
        let (single, map) = match &self.refs {
            References::Single(reference) => (Some(("", reference)), None),
            References::Map(map) => (None, Some(map)),
        };
        let map = map.into_iter().flatten().map(|(id, reference)| (id.as_str(), reference));
        single.into_iter().chain(map).filter_map(|(id, reference)| Some((id, reference.as_ref()?)))
    }
}

/// A statement about a result.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Attestation {
    /// How `reference` or `path` hold it.
    pub kind: AttestationKind,
    /// Metadata by key, such as `reason`.
    pub metadata: BTreeMap<String, Vec<u8>>,
    /// The filesystem with the statement.
    pub reference: Option<Arc<dyn Reference>>,
    /// Path of the statement, or of the directory with the bundle.
    pub path: String,
    /// Type of the predicate.
    pub predicate_type: String,
    /// What it is about, beside the result itself.
    pub subjects: Vec<InTotoSubject>,
}

impl Attestation {
    /// An attestation of this kind held by `reference`.
    pub fn new(kind: AttestationKind, reference: Option<Arc<dyn Reference>>) -> Self {
        Self {
            kind,
            metadata: BTreeMap::new(),
            reference,
            path: String::new(),
            predicate_type: String::new(),
            subjects: Vec::new(),
        }
    }
}

/// How an attestation is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttestationKind {
    /// The file is a predicate.
    InToto,
    /// The directory holds whole statements.
    Bundle,
}

/// A subject of an in-toto statement.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InTotoSubject {
    /// Whether it stands for the result itself.
    pub is_self: bool,
    /// Its name.
    pub name: String,
    /// Its digests, `algorithm:hex`.
    pub digests: Vec<String>,
}
