//! Sending an image to a registry: blobs first, then manifests from the leaves to the root.

use std::collections::{BTreeMap, HashSet};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{FutureExt, StreamExt, TryStreamExt};
use kiln_content::{ContentStore, Descriptor, media_type};
use kiln_digest::Digest;
use reqwest::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, LOCATION};
use reqwest::{Method, StatusCode, Url};

use crate::access::Access;
use crate::client::Registry;
use crate::document::{Document, is_document};
use crate::error::{BoxError, Error, Result};
use crate::gate::Traffic;
use crate::hosts::Target;
use crate::reference::Reference;
use crate::resolve::{announced_digest, repository_call};
use crate::retry::with_retries;
use crate::scope::Scopes;
use crate::send::{self, Answer, CallUrl, Upload as _, Whole};
use crate::upload::{self, StoredBlob};

/// Blobs on their way at a time.
const PARALLEL: usize = 4;
/// More documents than this below one root are not pushed.
const MAX_DOCUMENTS: usize = 10_000;

/// How an image is pushed.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct PushOptions<'a> {
    /// Name the root by its digest only; the reference's tag is left alone.
    pub by_digest: bool,
    /// Repositories of which a blob is known to be part; those on the same host are mounted from.
    pub origins: Option<&'a BTreeMap<Digest, Vec<Reference>>>,
    /// Brings blobs that are not in the store, when it turns out that the registry lacks them.
    pub supply: Option<&'a dyn Supply>,
}

impl<'a> PushOptions<'a> {
    /// Returns options that name the root by digest.
    #[must_use]
    pub fn by_digest(mut self, by_digest: bool) -> Self {
        self.by_digest = by_digest;
        self
    }

    /// Returns options with known origins of blobs.
    #[must_use]
    pub fn origins(mut self, origins: &'a BTreeMap<Digest, Vec<Reference>>) -> Self {
        self.origins = Some(origins);
        self
    }

    /// Returns options with a supplier of missing blobs.
    #[must_use]
    pub fn supply(mut self, supply: &'a dyn Supply) -> Self {
        self.supply = Some(supply);
        self
    }
}

/// Makes blobs present in the content store at the moment they are needed.
#[async_trait]
pub trait Supply: std::fmt::Debug + Send + Sync {
    /// Makes the blob present.
    async fn supply(&self, descriptor: &Descriptor) -> std::result::Result<(), BoxError>;
}

/// What is common to all requests of one push.
#[derive(Clone, Copy)]
struct Push<'a> {
    reference: &'a Reference,
    target: &'a Target,
    store: &'a dyn ContentStore,
    options: PushOptions<'a>,
    access: Access<'a>,
}

/// What hangs below a root, each once.
#[derive(Default)]
struct Tree {
    blobs: Vec<Descriptor>,
    /// Children before parents; the root is last.
    documents: Vec<(Descriptor, Bytes)>,
}

impl Registry {
    /// Pushes what `root` describes, with everything below it, as `reference`. What the registry has is
    /// not sent; layers that must not be distributed are left out.
    ///
    /// # Errors
    /// [`Error::PushDenied`], [`Error::Supply`], or whatever the registry answered.
    ///
    /// # Cancel safety
    /// Blobs that arrived stay; the tag changes only at the end.
    pub async fn push(
        &self,
        reference: &Reference,
        root: &Descriptor,
        store: &dyn ContentStore,
        options: PushOptions<'_>,
        access: Access<'_>,
    ) -> Result<()> {
        let targets = self.config().targets(reference.host());
        let Some(target) = targets.iter().find(|target| !target.mirror) else {
            return Err(Error::NoHosts { action: "push", host: reference.host().to_owned() });
        };
        let push = Push { reference, target, store, options, access };
        let tree = self.tree(push, root).await?;
        // Boxed and collected: a stream of borrowing closures would not be known to be `Send`.
        let work: Vec<_> = tree
            .blobs
            .iter()
            .map(|blob| {
                async move {
                    with_retries(self.config(), access.observer, || self.push_blob(push, blob))
                        .await
                        .map_err(push_error)
                }
                .boxed()
            })
            .collect();
        futures::stream::iter(work).buffer_unordered(PARALLEL).try_collect::<()>().await?;
        for (descriptor, bytes) in &tree.documents {
            let object = match reference.tag() {
                Some(tag) if descriptor.digest == root.digest && !options.by_digest => tag.to_owned(),
                _ => descriptor.digest.to_string(),
            };
            with_retries(self.config(), access.observer, || {
                self.push_document(push, descriptor, bytes, &object)
            })
            .await
            .map_err(push_error)?;
        }
        Ok(())
    }

    /// Reads the documents below `root` out of the store.
    async fn tree(&self, push: Push<'_>, root: &Descriptor) -> Result<Tree> {
        let mut tree = Tree::default();
        let mut seen = HashSet::new();
        // The second visit of a document comes after its children were put down.
        let mut open: Vec<(Descriptor, Option<Bytes>)> = vec![(root.clone(), None)];
        while let Some((descriptor, visited)) = open.pop() {
            if let Some(bytes) = visited {
                tree.documents.push((descriptor, bytes));
                continue;
            }
            if !seen.insert(descriptor.digest) || media_type::is_non_distributable(&descriptor.media_type) {
                continue;
            }
            if !is_document(&descriptor.media_type) {
                tree.blobs.push(descriptor);
                continue;
            }
            if seen.len() > MAX_DOCUMENTS {
                return Err(Error::InvalidManifest {
                    reason: format!("more than {MAX_DOCUMENTS} manifests and blobs belong to it"),
                });
            }
            let file = present(push, &descriptor).await?;
            let bytes = upload::read_all(file, self.config().max_document, &descriptor)?;
            let document = Document::parse(&bytes)?;
            open.push((descriptor, Some(bytes)));
            for child in document.children().into_iter().rev() {
                open.push((child.clone(), None));
            }
        }
        Ok(tree)
    }

    async fn push_blob(&self, push: Push<'_>, blob: &Descriptor) -> Result<()> {
        let sent = |at| push.access.observer.sent(&blob.digest, at, blob.size);
        let Some(location) = self.needs_blob(push, blob).await? else {
            sent(blob.size);
            return Ok(());
        };
        let file = present(push, blob).await?;
        let body = StoredBlob::new(file, blob);
        let counter = body.counter();
        let upload = self.put_blob(push, blob, location, &body);
        tokio::pin!(upload);
        let mut ticks = tokio::time::interval(std::time::Duration::from_millis(100));
        loop {
            tokio::select! {
                result = &mut upload => {
                    if result.is_ok() {
                        sent(blob.size);
                    }
                    return result;
                }
                _ = ticks.tick() => sent(counter.load(std::sync::atomic::Ordering::Relaxed)),
            }
        }
    }

    /// Returns where to upload a blob; `None` when the registry has it, by now.
    async fn needs_blob(&self, push: Push<'_>, blob: &Descriptor) -> Result<Option<Url>> {
        let mut head = repository_call(
            push.reference,
            push.target,
            Method::HEAD,
            &format!("blobs/{}", blob.digest),
            true,
        );
        head.scopes = Scopes::push(push.reference.path());
        head.traffic = Traffic::Document;
        match self.send(&head, push.access).await {
            Ok(answer) if answer.response.status().is_success() => return Ok(None),
            Ok(answer) => self.check_missing(answer, "HEAD").await?,
            // Who may not look may still be allowed to push.
            Err(error) if error.is_authorization_failure() => {}
            Err(error) => return Err(error),
        }
        if let Some(from) = mount_candidate(push, blob)
            && let Some(done) = self.mount(push, blob, &from).await?
        {
            return Ok(done);
        }
        let answer = self.start_upload(push, Vec::new(), Scopes::default()).await?;
        self.upload_location(answer).await
    }

    /// Asks for a blob of another repository. `None`: it was not to be had that way.
    async fn mount(&self, push: Push<'_>, blob: &Descriptor, from: &str) -> Result<Option<Option<Url>>> {
        let query = vec![("mount", blob.digest.to_string()), ("from", from.to_owned())];
        match self.start_upload(push, query, Scopes::pull(from)).await {
            // A token may be given for the other repository and still not be good for it.
            Ok(answer) if answer.response.status() == StatusCode::UNAUTHORIZED => Ok(None),
            Ok(answer) => self.upload_location(answer).await.map(Some),
            Err(error) if error.is_authorization_failure() => Ok(None),
            Err(Error::TokenFetch { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn start_upload(
        &self,
        push: Push<'_>,
        query: Vec<(&'static str, String)>,
        more: Scopes,
    ) -> Result<Answer> {
        let mut call = repository_call(push.reference, push.target, Method::POST, "blobs/uploads/", true);
        if let CallUrl::Path { query: own, .. } = &mut call.url {
            own.extend(query);
        }
        call.headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        call.scopes = Scopes::push(push.reference.path()).merge(&more);
        call.traffic = Traffic::Document;
        self.send(&call, push.access).await
    }

    /// Reads where to upload from the answer to a POST; `None` when there is nothing to upload.
    async fn upload_location(&self, answer: Answer) -> Result<Option<Url>> {
        match answer.response.status() {
            StatusCode::CREATED => return Ok(None),
            StatusCode::OK | StatusCode::ACCEPTED | StatusCode::NO_CONTENT => {}
            _ => {
                let patience = self.config().stall_timeout;
                return Err(send::unexpected_status(answer.response, "POST", patience).await);
            }
        }
        let location = answer.response.headers().get(LOCATION).and_then(|location| location.to_str().ok());
        let url = match location {
            Some(location) if location.starts_with('/') || location.contains("://") => {
                answer.url.join(location).ok()
            }
            Some(location) => Url::parse(&format!("{}://{location}", answer.url.scheme())).ok(),
            None => None,
        };
        match url {
            Some(url) if matches!(url.scheme(), "http" | "https") => Ok(Some(send::without_userinfo(url))),
            _ => Err(send::invalid(&answer.url, "it has no usable upload location")),
        }
    }

    async fn put_blob(
        &self,
        push: Push<'_>,
        blob: &Descriptor,
        mut location: Url,
        body: &StoredBlob,
    ) -> Result<()> {
        location.query_pairs_mut().append_pair("digest", &blob.digest.to_string());
        let mut call = repository_call(push.reference, push.target, Method::PUT, "", true);
        call.url = CallUrl::Absolute(location);
        call.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        call.headers.insert(CONTENT_LENGTH, HeaderValue::from(body.length()));
        call.scopes = Scopes::push(push.reference.path());
        call.body = Some(body);
        let answer = self.send(&call, push.access).await?;
        self.accepted(answer, blob).await
    }

    async fn push_document(
        &self,
        push: Push<'_>,
        descriptor: &Descriptor,
        bytes: &Bytes,
        object: &str,
    ) -> Result<()> {
        let path = format!("manifests/{object}");
        let mut head = repository_call(push.reference, push.target, Method::HEAD, &path, true);
        head.scopes = Scopes::push(push.reference.path());
        head.traffic = Traffic::Document;
        if let Ok(accept) = HeaderValue::from_str(&format!("{}, */*", descriptor.media_type)) {
            head.headers.insert(ACCEPT, accept);
        }
        match self.send(&head, push.access).await {
            Ok(answer) if answer.response.status().is_success() => {
                let same = announced_digest(&answer.response).ok().flatten() == Some(descriptor.digest);
                if same || object == descriptor.digest.to_string() {
                    return Ok(());
                }
            }
            Ok(answer) => self.check_missing(answer, "HEAD").await?,
            Err(error) if error.is_authorization_failure() => {}
            Err(error) => return Err(error),
        }
        let body = Whole::new(bytes.clone());
        let mut put = repository_call(push.reference, push.target, Method::PUT, &path, true);
        put.scopes = Scopes::push(push.reference.path());
        put.traffic = Traffic::Document;
        put.body = Some(&body);
        let kind = HeaderValue::from_str(&descriptor.media_type).map_err(|_| Error::InvalidManifest {
            reason: format!("`{}` is no media type", descriptor.media_type),
        })?;
        put.headers.insert(CONTENT_TYPE, kind);
        let answer = self.send(&put, push.access).await?;
        self.accepted(answer, descriptor).await
    }

    /// Goes on when the registry merely lacks something.
    async fn check_missing(&self, answer: Answer, method: &'static str) -> Result<()> {
        match answer.response.status() {
            StatusCode::NOT_FOUND | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Ok(()),
            _ => {
                let patience = self.config().stall_timeout;
                Err(send::unexpected_status(answer.response, method, patience).await)
            }
        }
    }

    async fn accepted(&self, answer: Answer, descriptor: &Descriptor) -> Result<()> {
        match answer.response.status() {
            StatusCode::OK | StatusCode::CREATED | StatusCode::NO_CONTENT => {}
            _ => {
                let patience = self.config().stall_timeout;
                return Err(send::unexpected_status(answer.response, "PUT", patience).await);
            }
        }
        match announced_digest(&answer.response)? {
            Some(actual) if actual != descriptor.digest => Err(Error::DigestMismatch {
                url: send::shown(&answer.url),
                expected: descriptor.digest,
                actual: actual.to_string(),
            }),
            _ => Ok(()),
        }
    }
}

/// Opens a blob of the store, and has it brought there first when it is missing.
async fn present(push: Push<'_>, descriptor: &Descriptor) -> Result<std::fs::File> {
    let digest = descriptor.digest;
    if let Some(file) = push.store.open(&digest).await.map_err(Error::content)? {
        return Ok(file);
    }
    let fail = |source: BoxError| Error::Supply { digest, source };
    match push.options.supply {
        Some(supply) => supply.supply(descriptor).await.map_err(fail)?,
        None => return Err(fail("it is not in the content store".into())),
    }
    match push.store.open(&digest).await.map_err(Error::content)? {
        Some(file) => Ok(file),
        None => Err(fail("it is still not in the content store".into())),
    }
}

/// Picks the repository to mount from: of those on the same host, the one whose path is most alike.
fn mount_candidate(push: Push<'_>, blob: &Descriptor) -> Option<String> {
    let own = push.reference;
    let mut best: Option<(usize, &str)> = None;
    for origin in push.options.origins?.get(&blob.digest)? {
        if origin.host() != own.host() || origin.path() == own.path() {
            continue;
        }
        let alike = origin.path().split('/').zip(own.path().split('/')).take_while(|(a, b)| a == b).count();
        if best.is_none_or(|(most, _)| alike > most) {
            best = Some((alike, origin.path()));
        }
    }
    best.map(|(_, path)| path.to_owned())
}

/// Says that it is about writing when a request was not authorized.
fn push_error(error: Error) -> Error {
    let denied = match &error {
        Error::Status { status, .. } => *status == StatusCode::UNAUTHORIZED,
        other => other.is_authorization_failure(),
    };
    match denied {
        true => Error::PushDenied { source: Box::new(error) },
        false => error,
    }
}
