//! Sources.

use std::collections::{BTreeMap, BTreeSet};

use crate::pb;
use crate::state::{Body, Vertex, VertexMeta};

/// Something from outside the graph.
#[derive(Clone, Debug)]
pub struct Source {
    op: pb::SourceOp,
    caps: BTreeSet<&'static str>,
    pub(super) meta: VertexMeta,
}

impl Source {
    /// Takes any identifier, `<scheme>://<rest>`, with the capability that its scheme needs.
    pub fn new(identifier: impl Into<String>, cap: &'static str) -> Self {
        let op = pb::SourceOp { identifier: identifier.into(), attrs: BTreeMap::new() };
        Self { op, caps: BTreeSet::from([cap]), meta: VertexMeta::default() }
    }

    /// An image. The reference is completed: `busybox` is `docker.io/library/busybox:latest`.
    pub fn image(reference: &str) -> Self {
        Self::new(format!("docker-image://{}", complete_reference(reference)), "source.image")
    }

    /// A directory of the client.
    pub fn local(name: &str) -> Self {
        Self::new(format!("local://{name}"), "source.local")
    }

    /// A file from a web server.
    pub fn http(url: &str) -> Self {
        Self::new(url, "source.http")
    }

    /// Sets an attribute that needs no capability of its own.
    #[must_use]
    pub fn attr(mut self, key: &str, value: impl Into<String>) -> Self {
        self.op.attrs.insert(key.to_owned(), value.into());
        self
    }

    /// Sets an attribute together with the capability that it needs.
    #[must_use]
    pub fn attr_with_cap(mut self, key: &str, value: impl Into<String>, cap: &'static str) -> Self {
        self.caps.insert(cap);
        self.attr(key, value)
    }

    /// Sets what is known besides the definition.
    #[must_use]
    pub fn meta(mut self, meta: VertexMeta) -> Self {
        self.meta = meta;
        self
    }

    pub(super) fn into_vertex(self) -> Vertex {
        Vertex { body: Body::Source(self.op), inputs: Vec::new(), meta: self.meta, caps: self.caps }
    }
}

/// Completes an image reference like Docker does it: registry, `library/`, `:latest`.
fn complete_reference(reference: &str) -> String {
    let (name, digest) = reference.split_once('@').map_or((reference, None), |(n, d)| (n, Some(d)));
    let (domain, path) = match name.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.chars().any(char::is_uppercase) =>
        {
            (first, rest)
        }
        _ => ("docker.io", name),
    };
    let domain = if domain == "index.docker.io" { "docker.io" } else { domain };
    let library = if domain == "docker.io" && !path.contains('/') { "library/" } else { "" };
    let tag = if digest.is_none() && !path.contains(':') { ":latest" } else { "" };
    let digest = digest.map(|d| format!("@{d}")).unwrap_or_default();
    format!("{domain}/{library}{path}{tag}{digest}")
}
