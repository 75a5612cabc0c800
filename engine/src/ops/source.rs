//! The source op: images, directories of clients, files from web servers, git repositories.

use std::sync::Arc;

use async_trait::async_trait;
use kiln_digest::Digest;
use kiln_llb::pb;
use kiln_registry::Access;
use kiln_solver::{CacheMap, CacheMapPart, Fingerprint, Op, OpContext, OpError, ResultRef};
use kiln_source::git::{For, GitRequest, Listings, Resolved};
use kiln_source::http::{Downloads, Fetched, HttpRequest};
use kiln_source::image::{Image, ImageRequest, Origin};
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

/// What a build has found out of its sources, so that each means one thing throughout.
#[derive(Debug, Default)]
pub(crate) struct Resolutions {
    images: kiln_source::image::Resolutions,
    downloads: Downloads,
    pub(crate) listings: Listings,
}

/// What a source op names.
#[derive(Clone, Debug)]
pub(crate) enum SourceKind {
    Image(ImageRequest),
    Local(LocalRequest),
    Http(HttpRequest),
    Git(Box<GitRequest>),
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
            "http" | "https" => Ok(Self::Http(HttpRequest::from_attrs(&op.identifier, &op.attrs)?)),
            "git" => Ok(Self::Git(Box::new(GitRequest::from_attrs(rest, &op.attrs)?))),
            "docker-image+blob" | "oci-layout+blob" => {
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
        .resolve(request, &memory.images, Access::new(&credentials), &lending.layouts(), &cx.progress)
        .await
}

/// Fetches a file with the secrets of who waits.
pub(crate) async fn fetch(
    worker: &Arc<Worker>,
    cx: &OpContext,
    request: &HttpRequest,
    memory: &Resolutions,
) -> kiln_source::Result<Fetched> {
    let lending = Lending::new(worker, cx);
    worker.http.fetch(request, &memory.downloads, &lending.lender, &cx.progress).await
}

/// Finds out what a git reference stands for, with the secrets and agents of who waits.
pub(crate) async fn git_resolve(
    worker: &Arc<Worker>,
    cx: &OpContext,
    request: &GitRequest,
    memory: &Resolutions,
) -> kiln_source::Result<Resolved> {
    let lending = Lending::new(worker, cx);
    worker.git.resolve(request, &memory.listings, git_for(&lending, cx)).await
}

pub(crate) fn git_for<'a>(lending: &'a Lending, cx: &'a OpContext) -> For<'a> {
    For { lender: &lending.lender, progress: &cx.progress, cancel: &cx.cancel }
}

#[async_trait]
impl Op for SourceOp {
    fn known_map(&self) -> Option<CacheMap> {
        match &self.kind {
            SourceKind::Http(request) => request.known_map(),
            SourceKind::Image(_) | SourceKind::Local(_) | SourceKind::Git(_) => None,
        }
    }

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
            SourceKind::Http(request) => {
                if let Some(map) = request.known_map() {
                    return Ok(CacheMapPart { map, last: true });
                }
                let fetched = cancellable(cx, fetch(&self.worker, cx, request, &self.resolutions)).await?;
                Ok(request.cache_map(&fetched))
            }
            SourceKind::Git(request) => {
                let resolved = git_resolve(&self.worker, cx, request, &self.resolutions).await;
                Ok(request.cache_map(&resolved.map_err(op_error)?))
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
            SourceKind::Http(request) => {
                let fetched = cancellable(cx, fetch(&self.worker, cx, request, &self.resolutions)).await?;
                Ok(vec![Some(common::result(fetched.state))])
            }
            SourceKind::Git(request) => {
                let lending = Lending::new(&self.worker, cx);
                let memory = &self.resolutions.listings;
                // It ends what it runs by itself.
                let made = self.worker.git.snapshot(request, memory, git_for(&lending, cx)).await;
                Ok(vec![Some(common::result(made.map_err(op_error)?))])
            }
        }
    }

    async fn fingerprint(&self, cx: &OpContext) -> Fingerprint {
        let mut out = Fingerprint::default();
        let request = match &self.kind {
            SourceKind::Image(request) => request,
            SourceKind::Http(request) => {
                out.set_kin(&format!("file {}", request.shown()));
                out.add("address", &request.shown());
                if let Some(checksum) = &request.checksum {
                    out.add("checksum", &checksum.to_string());
                }
                return out;
            }
            SourceKind::Git(request) => {
                out.set_kin(&format!("git {}", request.remote));
                out.add("repository", request.remote.as_str());
                out.add("ref", &request.reference);
                out.add("directory", &request.subdir);
                // It has been looked up for its key, and is remembered.
                if let Ok(found) = git_resolve(&self.worker, cx, request, &self.resolutions).await {
                    out.add("commit", found.commit_sha());
                }
                return out;
            }
            // Directories of clients are looked at in every build.
            SourceKind::Local(_) => return out,
        };
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
        done = work => done.map_err(op_error),
        () = cx.cancel.cancelled() => Err(OpError::cancelled()),
    }
}

fn op_error(error: kiln_source::Error) -> OpError {
    match error {
        kiln_source::Error::Cancelled => OpError::cancelled(),
        error if error.is_of_lender() => OpError::not_lent(error),
        error => OpError::failed(error),
    }
}
