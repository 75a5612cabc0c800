//! Between the frontends' types and the solver's.

use kiln_digest::Digest;
use kiln_frontend::{ErrorSource, Warning};
use kiln_llb::pb;
use kiln_solver::{SourceRange, VertexDigest, WarningEvent};

use crate::load::LoadedGraph;

/// A frontend's warning as an event. One without a readable vertex digest is shown with a vertex of its own.
pub(crate) fn warning(warning: Warning) -> WarningEvent {
    let vertex = warning.vertex.parse().unwrap_or_else(|_| Digest::of(warning.vertex.as_bytes()));
    let info = warning.source.unwrap_or_default();
    WarningEvent {
        vertex: VertexDigest(vertex),
        level: warning.level.max(1),
        short: warning.short.into_bytes().into(),
        detail: warning.detail.into_iter().map(|d| d.into_bytes().into()).collect(),
        url: warning.url,
        file: info.filename,
        language: info.language,
        data: info.data.into(),
        ranges: warning
            .ranges
            .iter()
            .map(|r| {
                let position = |p: Option<&pb::Position>| p.map_or((0, 0), |p| (p.line, p.character));
                SourceRange { start: position(r.start.as_ref()), end: position(r.end.as_ref()) }
            })
            .collect(),
    }
}

/// What those vertices of a graph were sent as that are no longer what was sent.
#[derive(Debug)]
pub(crate) struct Origins(Vec<(kiln_llb::VertexDigest, kiln_llb::VertexDigest)>);

impl Origins {
    pub(crate) fn of(loaded: &LoadedGraph) -> Self {
        let changed = loaded.vertices.iter().filter(|vertex| vertex.digest != vertex.sent);
        Self(changed.map(|vertex| (vertex.digest, vertex.sent)).collect())
    }

    /// Places in the input that belong to a vertex. The client's source map names vertices as loaded, or as sent.
    pub(crate) fn sources(&self, definition: &pb::Definition, vertex: VertexDigest) -> Vec<ErrorSource> {
        let vertex = kiln_llb::VertexDigest::from(vertex.0);
        let sent = self.0.iter().find(|(loaded, _)| *loaded == vertex).map(|(_, sent)| *sent);
        places(definition, vertex, sent)
    }
}

/// As [`Origins::sources`], for a vertex by its digest as loaded and as sent.
pub(crate) fn places(
    definition: &pb::Definition,
    vertex: kiln_llb::VertexDigest,
    sent: Option<kiln_llb::VertexDigest>,
) -> Vec<ErrorSource> {
    let Some(map) = &definition.source else { return Vec::new() };
    let found = map.locations.get(&vertex.to_string());
    let found = found.or_else(|| map.locations.get(&sent?.to_string()));
    let places = found.iter().flat_map(|l| &l.locations);
    places
        .filter_map(|place| {
            let info = map.infos.get(usize::try_from(place.source_index).ok()?)?;
            // The graph of the file itself is of no use to who reads the error.
            let info = pb::SourceInfo { definition: None, ..info.clone() };
            Some(ErrorSource { info, ranges: place.ranges.clone() })
        })
        .collect()
}
