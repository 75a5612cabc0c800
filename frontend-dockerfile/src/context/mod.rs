//! Where the Dockerfile and the files of a build come from.

mod main_context;
mod named;

use std::collections::BTreeMap;
use std::sync::Arc;

use kiln_frontend::{Bridge, FrontendRequest, Reference, SolveRequest, pb};

pub(crate) use self::main_context::MainContext;
pub(crate) use self::named::{NamedContext, find as find_named};
use crate::error::{Error, Result};
use crate::graph::{Edge, Graph, Meta};
use crate::options::Options;
use crate::source::SourceFile;

/// A build in progress: its request, its options and what it calls back through.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) bridge: Arc<dyn Bridge>,
    pub(crate) request: FrontendRequest,
    pub(crate) options: Options,
    /// The bridge may know nothing of images, which is enough to check a file and not to build it.
    pub(crate) offline: bool,
}

/// A local source; what is empty or false is left out.
#[derive(Default)]
pub(crate) struct Local<'a> {
    pub(crate) name: &'a str,
    pub(crate) hint: String,
    pub(crate) follow: Vec<String>,
    pub(crate) exclude: Vec<String>,
    /// Send everything again instead of what changed.
    pub(crate) resend: bool,
}

impl Client {
    /// Solves a graph whose result is read.
    pub(crate) async fn solve(
        &self,
        definition: pb::Definition,
        evaluate: bool,
    ) -> Result<Option<Arc<dyn Reference>>> {
        let mut request = SolveRequest::definition(definition);
        request.evaluate = evaluate;
        Ok(self.bridge.solve(request).await?.single_ref().cloned())
    }

    pub(crate) fn local(&self, graph: &mut Graph, local: Local<'_>, vertex: String) -> Edge {
        let session = self.options.session_of(local.name, &self.request.session_id);
        let mut attrs = BTreeMap::new();
        let mut caps = vec!["source.local"];
        if !session.is_empty() {
            attrs.insert("local.session".to_owned(), session.to_owned());
            caps.push("source.local.sessionid");
        }
        if !local.follow.is_empty() {
            attrs.insert("local.followpaths".to_owned(), json_list(&local.follow));
            caps.push("source.local.followpaths");
        }
        if !local.exclude.is_empty() {
            attrs.insert("local.excludepatterns".to_owned(), json_list(&local.exclude));
            caps.push("source.local.excludepatterns");
        }
        if !local.hint.is_empty() {
            attrs.insert("local.sharedkeyhint".to_owned(), local.hint);
            caps.push("source.local.sharedkeyhint");
        }
        if local.resend {
            attrs.insert("local.differ".to_owned(), "none".to_owned());
        }
        graph.source(format!("local://{}", local.name), attrs, None, Meta::named(vertex), &caps)
    }

    /// An http source.
    pub(crate) fn http(
        &self,
        graph: &mut Graph,
        url: &str,
        filename: &str,
        checksum: &str,
        meta: Meta,
    ) -> Edge {
        let mut attrs: BTreeMap<String, String> = [("http.filename".to_owned(), filename.to_owned())].into();
        let mut caps = vec!["source.http"];
        if !checksum.is_empty() {
            attrs.insert("http.checksum".to_owned(), checksum.to_owned());
            caps.push("source.http.checksum");
        }
        graph.source(url.to_owned(), attrs, None, meta, &caps)
    }
}

/// A list as it stands in an attribute.
pub(crate) fn json_list(list: &[String]) -> String {
    let bytes = crate::image::go_json(&list).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Marshals a graph that is solved on the way, not part of the result.
pub(crate) fn marshal(graph: &Graph, root: Edge) -> Result<pb::Definition> {
    graph.marshal(Some(root), &SourceFile::default())
}

/// Reads an ignore file.
pub(crate) fn ignore_patterns(data: &[u8]) -> Vec<String> {
    kiln_patterns::ignore_file(&String::from_utf8_lossy(data))
}

/// The vertex that a definition ends in.
pub(crate) fn head(definition: &pb::Definition) -> Result<String> {
    use prost::Message;
    let last = definition.def.last().map(Vec::as_slice).unwrap_or_default();
    let op = pb::Op::decode(last).map_err(|_| Error::new("failed to parse llb proto op"))?;
    Ok(op.inputs.first().map(|input| input.digest.clone()).unwrap_or_default())
}
