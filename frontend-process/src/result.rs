//! Results between the frontend's types and the wire.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;

use kiln_api::gateway::{self as wire, result::Result as Kind};
use kiln_frontend::{Attestation, AttestationKind, Error, FrontendResult, Reference, References, Result};

use crate::reference::RemoteReference;

/// A result as the daemon takes it back.
pub(crate) fn to_wire(result: FrontendResult) -> Result<wire::Result> {
    let refs = match &result.refs {
        References::Single(reference) => Kind::Ref(id(reference.as_ref())?),
        References::Map(map) => {
            let refs = map.iter().map(|(key, r)| Ok((key.clone(), id(r.as_ref())?)));
            Kind::Refs(wire::RefMap { refs: refs.collect::<Result<_>>()? })
        }
    };
    let attestations = result.attestations.into_iter().map(|(key, all)| {
        let attestation = all.into_iter().map(attestation).collect::<Result<_>>()?;
        Ok((key, wire::Attestations { attestation }))
    });
    let attestations = attestations.collect::<Result<BTreeMap<_, _>>>()?;
    Ok(wire::Result { result: Some(refs), metadata: result.metadata, attestations })
}

/// A result of the daemon; `reference` makes one of an id.
pub(crate) fn from_wire(
    result: wire::Result,
    reference: impl Fn(wire::Ref) -> RemoteReference,
) -> Result<FrontendResult> {
    let made = |r: wire::Ref| -> Option<Arc<dyn Reference>> {
        if r.id.is_empty() { None } else { Some(Arc::new(reference(r))) }
    };
    let plain = |id: String| wire::Ref { id, def: None };
    if !result.attestations.is_empty() {
        return Err(Error::input("attestations of nested frontends are not supported yet"));
    }
    let mut ours = FrontendResult::default();
    ours.metadata = result.metadata;
    ours.refs = match result.result {
        None => References::default(),
        Some(Kind::RefDeprecated(id)) => References::Single(made(plain(id))),
        Some(Kind::Ref(r)) => References::Single(made(r)),
        Some(Kind::RefsDeprecated(map)) => {
            References::Map(map.refs.into_iter().map(|(key, id)| (key, made(plain(id)))).collect())
        }
        Some(Kind::Refs(map)) => {
            References::Map(map.refs.into_iter().map(|(key, r)| (key, made(r))).collect())
        }
    };
    Ok(ours)
}

fn id(reference: Option<&Arc<dyn Reference>>) -> Result<wire::Ref> {
    let Some(reference) = reference else { return Ok(wire::Ref::default()) };
    let reference: &dyn Any = reference.as_ref();
    match reference.downcast_ref::<RemoteReference>() {
        Some(remote) => Ok(wire::Ref { id: remote.id.clone(), def: None }),
        None => Err(Error::internal("a frontend returned a reference that it did not get from the daemon")),
    }
}

fn attestation(attestation: Attestation) -> Result<wire::Attestation> {
    let subject = |subject: kiln_frontend::InTotoSubject| wire::InTotoSubject {
        kind: if subject.is_self { wire::InTotoSubjectKind::Self_ } else { wire::InTotoSubjectKind::Raw }
            .into(),
        digest: subject.digests,
        name: subject.name,
    };
    let kind = match attestation.kind {
        AttestationKind::InToto => wire::AttestationKind::InToto,
        AttestationKind::Bundle => wire::AttestationKind::Bundle,
    };
    Ok(wire::Attestation {
        kind: kind.into(),
        metadata: attestation.metadata,
        r#ref: attestation.reference.as_ref().map(|r| id(Some(r))).transpose()?,
        path: attestation.path,
        in_toto_predicate_type: attestation.predicate_type,
        in_toto_subjects: attestation.subjects.into_iter().map(subject).collect(),
    })
}
