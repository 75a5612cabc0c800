use std::collections::BTreeMap;
use std::fmt;

use async_trait::async_trait;
use kiln_llb::pb;

use crate::error::Result;
use crate::result::FrontendResult;

/// What a frontend calls back through.
///
/// Every implementation keeps these:
/// 1. `solve` of a definition returns at once with a reference that is computed when read, unless `evaluate` is set.
///    An empty definition gives no reference and no error.
/// 2. `solve` with a frontend name runs that frontend, with the same client behind it.
/// 3. `resolve_source_metadata` applies the build's source policy; the source in the answer is the one it looked at.
///    Its errors say what went wrong (`docker.io/library/x:latest: not found`); what was being resolved, and for which
///    word of the input, is for the frontend to add. For an image there is an `image` in the answer.
/// 4. Errors of what is below come back as [`Error::Solve`](crate::Error::Solve) or
///    [`Error::Resolve`](crate::Error::Resolve) with their own cause kept.
/// 5. `warn` never fails a build: a bridge that cannot deliver drops the warning.
#[async_trait]
pub trait Bridge: fmt::Debug + Send + Sync + 'static {
    /// Solves a graph, or runs another frontend.
    async fn solve(&self, request: SolveRequest) -> Result<FrontendResult>;

    /// Finds out what a source stands for now: an image's digest and config, a git commit, a file's digest.
    async fn resolve_source_metadata(&self, request: ResolveRequest) -> Result<SourceMetadata>;

    /// Shows a warning to the client.
    async fn warn(&self, warning: Warning) -> Result<()>;
}

/// Something to solve.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct SolveRequest {
    /// The graph; exclusive with `frontend`.
    pub definition: Option<pb::Definition>,
    /// Name of a frontend, empty for a graph.
    pub frontend: String,
    /// Options of that frontend.
    pub opts: BTreeMap<String, String>,
    /// Inputs of that frontend.
    pub inputs: BTreeMap<String, pb::Definition>,
    /// Compute the result before answering.
    pub evaluate: bool,
    /// Remote caches to look into.
    pub cache_imports: Vec<CacheImport>,
}

impl SolveRequest {
    /// A request to solve a graph.
    pub fn definition(definition: pb::Definition) -> Self {
        Self { definition: Some(definition), ..Self::default() }
    }

    /// A request to run a frontend.
    pub fn frontend(name: impl Into<String>, opts: BTreeMap<String, String>) -> Self {
        Self { frontend: name.into(), opts, ..Self::default() }
    }
}

/// A remote cache to import.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CacheImport {
    /// Its type, such as `registry` or `local`.
    pub kind: String,
    /// Attributes of that type.
    pub attrs: BTreeMap<String, String>,
}

/// A question about a source.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ResolveRequest {
    /// The source.
    pub source: pb::SourceOp,
    /// For which platform, where that matters.
    pub platform: Option<pb::Platform>,
    /// How eagerly to ask the registry.
    pub resolve_mode: ResolveMode,
    /// Name of the vertex that shows the look-up.
    pub log_name: String,
    /// Where an OCI layout is kept.
    pub oci_store: Option<OciStore>,
    /// The image config is not needed.
    pub no_config: bool,
    /// The raw git objects are needed.
    pub git_objects: bool,
}

impl ResolveRequest {
    /// A question about `source`, shown as `log_name`.
    pub fn new(source: pb::SourceOp, log_name: impl Into<String>) -> Self {
        Self { source, log_name: log_name.into(), ..Self::default() }
    }
}

/// How eagerly an image reference is looked up at its registry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ResolveMode {
    /// As the worker is configured.
    #[default]
    Default,
    /// Always ask the registry.
    ForcePull,
    /// Prefer what is stored locally.
    PreferLocal,
}

/// A client's OCI layout.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OciStore {
    /// Session that has it; empty for any of the build.
    pub session_id: String,
    /// Its name there.
    pub store_id: String,
}

/// What a source stands for.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct SourceMetadata {
    /// The source, rewritten where a policy says so.
    pub source: pb::SourceOp,
    /// For images and OCI layouts.
    pub image: Option<ImageMetadata>,
    /// For git.
    pub git: Option<GitMetadata>,
    /// For http.
    pub http: Option<HttpMetadata>,
}

/// What an image reference stands for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageMetadata {
    /// Digest of the manifest or index.
    pub digest: String,
    /// The image config, JSON.
    pub config: Vec<u8>,
}

/// What a git reference stands for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GitMetadata {
    /// Object the reference names: a commit or an annotated tag.
    pub checksum: String,
    /// The full reference name.
    pub reference: String,
    /// The commit, if `checksum` is a tag.
    pub commit_checksum: String,
    /// The commit object, if it was asked for.
    pub commit_object: Vec<u8>,
    /// The tag object, if it was asked for.
    pub tag_object: Vec<u8>,
}

/// What a URL stands for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HttpMetadata {
    /// Digest of the body.
    pub digest: String,
    /// File name it would get.
    pub filename: String,
    /// `Last-Modified`, in seconds since the epoch.
    pub last_modified: Option<i64>,
}

/// A warning about the input of a build.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Warning {
    /// Vertex it is shown with.
    pub vertex: String,
    /// 1 for ordinary ones.
    pub level: i64,
    /// One line.
    pub short: String,
    /// More lines.
    pub detail: Vec<String>,
    /// Where to read more.
    pub url: String,
    /// The file it is about.
    pub source: Option<pb::SourceInfo>,
    /// Places in that file.
    pub ranges: Vec<pb::Range>,
}
