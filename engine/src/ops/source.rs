//! The source op: images and directories of clients.

use std::sync::Arc;

use async_trait::async_trait;
use kiln_digest::Digest;
use kiln_llb::pb;
use kiln_registry::Access;
use kiln_solver::{CacheMapPart, Fingerprint, Op, OpContext, OpError, ResultRef};
use kiln_source::image::{Image, ImageRequest, Origin, Resolutions};
use kiln_source::local::{LocalRequest, Locals};

use crate::lending::Lending;
use crate::ops::common;
use crate::worker::Worker;

/// A source op on a worker.
#[derive(Debug)]
pub(crate) struct SourceOp {
    pub(crate) worker: Arc<Worker>,
    pub(crate) kind: SourceKind,
    pub(crate) resolutions: Arc<Resolutions>,
}

/// What a source op names.
#[derive(Clone, Debug)]
pub(crate) enum SourceKind {
    Image(ImageRequest),
    Local(LocalRequest),
}

impl SourceKind {
    /// Reads a source op.
    pub(crate) fn parse(
        op: &pb::SourceOp,
        platform: Option<&pb::Platform>,
    ) -> Result<Self, kiln_source::BoxError> {
        let Some((scheme, rest)) = op.identifier.split_once("://") else {
            return Err(format!("failed to parse {}: invalid", op.identifier).into());
        };
        let platform = common::platform(platform);
        match scheme {
            "docker-image" => Ok(Self::Image(ImageRequest::from_attrs(rest, &op.attrs, platform)?)),
            "oci-layout" => Ok(Self::Image(ImageRequest::layout_from_attrs(rest, &op.attrs, platform)?)),
            "local" => Ok(Self::Local(LocalRequest::from_attrs(rest, &op.attrs)?)),
            "git" | "http" | "https" | "docker-image+blob" | "oci-layout+blob" => {
                Err(format!("source scheme `{scheme}` is not supported yet").into())
            }
            other => Err(format!("unknown scheme {other}: not found").into()),
        }
    }
}

/// Resolves an image with the credentials and layouts of who waits.
pub(crate) async fn resolve(
    worker: &Arc<Worker>,
    cx: &OpContext,
    request: &ImageRequest,
    memory: &Resolutions,
) -> kiln_source::Result<Arc<Image>> {
    let lending = Lending::new(worker, cx);
    let credentials = lending.credentials();
    worker
        .images()
        .resolve(request, memory, Access::new(&credentials), &lending.layouts(), &cx.progress)
        .await
}

#[async_trait]
impl Op for SourceOp {
    async fn cache_map(&self, cx: &OpContext, index: usize) -> Result<CacheMapPart, OpError> {
        match &self.kind {
            SourceKind::Image(request) => {
                let image = cancellable(cx, resolve(&self.worker, cx, request, &self.resolutions)).await?;
                image.cache_map(request, index).map_err(OpError::failed)
            }
            SourceKind::Local(request) => {
                let first = Lending::new(&self.worker, cx).lender.ids().into_iter().next();
                request.cache_map(first.as_deref()).map_err(OpError::failed)
            }
        }
    }

    async fn content_key(
        &self,
        _cx: &OpContext,
        _input: usize,
        _result: Option<&ResultRef>,
    ) -> Result<Digest, OpError> {
        Err(OpError::failed("a source has no inputs"))
    }

    async fn exec(
        &self,
        cx: &OpContext,
        _inputs: Vec<Option<ResultRef>>,
    ) -> Result<Vec<Option<ResultRef>>, OpError> {
        match &self.kind {
            SourceKind::Image(request) => {
                let image = cancellable(cx, resolve(&self.worker, cx, request, &self.resolutions)).await?;
                let state = self.worker.images().snapshot(&image, request).await.map_err(OpError::failed)?;
                Ok(vec![state.map(common::result)])
            }
            SourceKind::Local(request) => {
                let lending = Lending::new(&self.worker, cx);
                let locals = Locals::new(self.worker.cache.clone());
                let received = locals.snapshot(request, &lending.lender, &cx.progress);
                Ok(vec![Some(common::result(cancellable(cx, received).await?))])
            }
        }
    }

    async fn fingerprint(&self, cx: &OpContext) -> Fingerprint {
        let mut out = Fingerprint::default();
        // Directories of clients are looked at in every build.
        let SourceKind::Image(request) = &self.kind else { return out };
        let (name, tag) = match &request.origin {
            Origin::Registry(reference) => (reference.name(), reference.tag().unwrap_or_default().to_owned()),
            Origin::Layout(layout) => (layout.name.clone(), String::new()),
        };
        out.set_kin(&format!("image {name}"));
        out.add("image", &name);
        out.add("tag", &tag);
        // It has been resolved for its key, and is remembered.
        if let Ok(image) = cancellable(cx, resolve(&self.worker, cx, request, &self.resolutions)).await {
            out.add("digest of the image", &image.root.digest.to_string());
        }
        out.add("platform", &request.platform.to_string());
        let limit = request.layer_limit.map_or_else(|| "none".to_owned(), |limit| limit.to_string());
        out.add("limit of layers", &limit);
        out
    }
}

async fn cancellable<T>(
    cx: &OpContext,
    work: impl Future<Output = kiln_source::Result<T>>,
) -> Result<T, OpError> {
    tokio::select! {
        done = work => done.map_err(|error| match error.is_of_lender() {
            true => OpError::not_lent(error),
            false => OpError::failed(error),
        }),
        () = cx.cancel.cancelled() => Err(OpError::cancelled()),
    }
}
