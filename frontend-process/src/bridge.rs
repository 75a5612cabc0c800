use std::collections::BTreeSet;

use async_trait::async_trait;
use kiln_api::apicaps::ApiCap;
use kiln_api::gateway as wire;
use kiln_frontend::{
    Bridge, Error, FrontendResult, GitMetadata, HttpMetadata, ImageMetadata, ResolveMode, ResolveRequest,
    Result, SolveRequest, SourceMetadata, Warning,
};

use crate::connection::Client;
use crate::reference::RemoteReference;
use crate::{error, result};

/// The daemon as a bridge.
#[derive(Debug)]
pub(crate) struct RemoteBridge {
    client: Client,
    /// What the daemon's gateway can do.
    caps: BTreeSet<String>,
}

impl RemoteBridge {
    pub(crate) fn new(client: Client, caps: BTreeSet<String>) -> Self {
        Self { client, caps }
    }

    fn has(&self, cap: &str) -> bool {
        self.caps.contains(cap)
    }

    fn reference(&self, r: wire::Ref) -> RemoteReference {
        RemoteReference {
            id: r.id,
            definition: r.def,
            client: self.client.clone(),
            can_evaluate: self.has("gateway.evaluate"),
        }
    }

    /// For daemons that know images alone.
    async fn image_config(&self, request: ResolveRequest) -> Result<SourceMetadata> {
        let identifier = &request.source.identifier;
        let Some(reference) = identifier.strip_prefix("docker-image://") else {
            return Err(Error::input(format!("the daemon cannot say what `{identifier}` stands for")));
        };
        let asked = wire::ResolveImageConfigRequest {
            r#ref: reference.to_owned(),
            platform: request.platform,
            resolve_mode: mode(request.resolve_mode).to_owned(),
            log_name: request.log_name,
            ..Default::default()
        };
        let answer =
            self.client.clone().resolve_image_config(asked).await.map_err(error::resolve)?.into_inner();
        let mut metadata = SourceMetadata::default();
        metadata.source = request.source;
        metadata.image = Some(ImageMetadata { digest: answer.digest, config: answer.config });
        Ok(metadata)
    }
}

#[async_trait]
impl Bridge for RemoteBridge {
    async fn solve(&self, request: SolveRequest) -> Result<FrontendResult> {
        let evaluates = self.has("gateway.solve.evaluate");
        let asked = wire::SolveRequest {
            definition: request.definition,
            frontend: request.frontend,
            frontend_opt: request.opts,
            frontend_inputs: request.inputs,
            allow_result_return: true,
            allow_result_array_ref: self.has("proto.refarray"),
            evaluate: request.evaluate && evaluates,
            cache_imports: request
                .cache_imports
                .into_iter()
                .map(|c| wire::CacheOptionsEntry { r#type: c.kind, attrs: c.attrs })
                .collect(),
            ..Default::default()
        };
        let answer = self.client.clone().solve(asked).await.map_err(error::solve)?.into_inner();
        let solved = result::from_wire(answer.result.unwrap_or_default(), |r| self.reference(r))?;
        if request.evaluate && !evaluates {
            for (_, reference) in solved.iter() {
                reference.evaluate().await?;
            }
        }
        Ok(solved)
    }

    async fn resolve_source_metadata(&self, request: ResolveRequest) -> Result<SourceMetadata> {
        if !self.has("source.metaresolver") {
            return self.image_config(request).await;
        }
        let mut source = request.source;
        if let Some(store) = request.oci_store {
            source.attrs.entry("oci.session".to_owned()).or_insert(store.session_id);
            source.attrs.entry("oci.store".to_owned()).or_insert(store.store_id);
        }
        let asked = wire::ResolveSourceMetaRequest {
            source: Some(source.clone()),
            platform: request.platform,
            log_name: request.log_name,
            resolve_mode: mode(request.resolve_mode).to_owned(),
            git: request.git_objects.then_some(wire::ResolveSourceGitRequest { return_object: true }),
            image: request
                .no_config
                .then(|| wire::ResolveSourceImageRequest { no_config: true, ..Default::default() }),
            ..Default::default()
        };
        let answer =
            self.client.clone().resolve_source_meta(asked).await.map_err(error::resolve)?.into_inner();
        let mut metadata = SourceMetadata::default();
        metadata.source = answer.source.unwrap_or(source);
        metadata.image = answer.image.map(|i| ImageMetadata { digest: i.digest, config: i.config });
        metadata.git = answer.git.map(|g| GitMetadata {
            checksum: g.checksum,
            reference: g.r#ref,
            commit_checksum: g.commit_checksum,
            commit_object: g.commit_object,
            tag_object: g.tag_object,
        });
        metadata.http = answer.http.map(|h| HttpMetadata {
            digest: h.checksum,
            filename: h.filename,
            last_modified: h.last_modified.map(|time| time.seconds),
        });
        Ok(metadata)
    }

    async fn warn(&self, warning: Warning) -> Result<()> {
        if !self.has("gateway.warnings") {
            return Ok(());
        }
        let asked = wire::WarnRequest {
            digest: warning.vertex,
            level: warning.level,
            short: warning.short.into_bytes(),
            detail: warning.detail.into_iter().map(String::into_bytes).collect(),
            url: warning.url,
            info: warning.source,
            ranges: warning.ranges,
        };
        // A warning that cannot be delivered is dropped.
        let _dropped = self.client.clone().warn(asked).await;
        Ok(())
    }
}

fn mode(mode: ResolveMode) -> &'static str {
    match mode {
        ResolveMode::Default => "default",
        ResolveMode::ForcePull => "pull",
        ResolveMode::PreferLocal => "local",
    }
}

/// The ids of those that are on.
pub(crate) fn enabled(caps: &[ApiCap]) -> BTreeSet<String> {
    caps.iter().filter(|cap| cap.enabled).map(|cap| cap.id.clone()).collect()
}
