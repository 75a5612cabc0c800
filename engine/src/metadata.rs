//! What a source stands for, for frontends that ask.

use kiln_digest::Digest;
use kiln_frontend::{
    Error as FrontendError, GitMetadata, HttpMetadata, ImageMetadata, ResolveRequest, SourceMetadata,
};
use kiln_solver::VertexDigest;
use kiln_source::git::GitObjects;

use crate::build::BuildState;
use crate::lending::Lending;
use crate::ops::source::{self, SourceKind};

/// Finds out what a source stands for, in a vertex of its own.
pub(crate) async fn resolve(
    state: &BuildState,
    request: ResolveRequest,
) -> Result<SourceMetadata, FrontendError> {
    let identifier = request.source.identifier.clone();
    let platform = request.platform.clone().or_else(|| state.worker.platforms.first().cloned());
    let mut source = request.source.clone();
    if let Some(store) = &request.oci_store {
        source.attrs.entry("oci.store".to_owned()).or_insert_with(|| store.store_id.clone());
        source.attrs.entry("oci.session".to_owned()).or_insert_with(|| store.session_id.clone());
    }
    let kind = match SourceKind::parse(&source, platform.as_ref()) {
        Ok(SourceKind::Local(_)) => {
            return Err(FrontendError::input(format!("unsupported source identifier `{identifier}`")));
        }
        Ok(kind) => kind,
        Err(error) => return Err(FrontendError::Resolve { message: error.to_string(), source: None }),
    };
    let name = match request.log_name.as_str() {
        "" if matches!(kind, SourceKind::Image(_)) => format!("resolve image config for {identifier}"),
        "" => format!("resolve {}", kiln_source::redacted(&identifier)),
        name => name.to_owned(),
    };
    let digest = VertexDigest(Digest::of(name.as_bytes()));
    let mut found = state
        .job
        .vertex_scope(&name, digest, |cx| async move { look(state, &cx, &kind, request.git_objects).await })
        .await
        .map_err(|error| FrontendError::Resolve { message: String::new(), source: Some(error.into()) })?;
    found.source = request.source;
    Ok(found)
}

async fn look(
    state: &BuildState,
    cx: &kiln_solver::OpContext,
    kind: &SourceKind,
    with_objects: bool,
) -> kiln_source::Result<SourceMetadata> {
    let (worker, memory) = (&state.worker, &state.resolutions);
    let mut found = SourceMetadata::default();
    match kind {
        SourceKind::Image(request) => {
            let image = source::resolve(worker, cx, request, memory).await?;
            found.image = Some(ImageMetadata {
                digest: image.root.digest.to_string(),
                config: image.config_bytes.to_vec(),
            });
        }
        SourceKind::Http(request) => {
            let file = source::fetch(worker, cx, request, memory).await?;
            found.http = Some(HttpMetadata {
                digest: file.digest.to_string(),
                last_modified: file.modified(),
                filename: file.filename,
            });
        }
        SourceKind::Git(request) => {
            let resolved = source::git_resolve(worker, cx, request, memory).await?;
            let lending = Lending::new(worker, cx);
            let objects = match with_objects {
                true => worker.git.objects(request, &resolved, source::git_for(&lending, cx)).await?,
                false => GitObjects::default(),
            };
            found.git = Some(GitMetadata {
                checksum: resolved.object,
                reference: resolved.name,
                commit_checksum: resolved.peeled.unwrap_or_default(),
                commit_object: objects.commit,
                tag_object: objects.tag,
            });
        }
        SourceKind::Local(_) => {}
    }
    Ok(found)
}
