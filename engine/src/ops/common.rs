//! What several ops share.

use std::sync::Arc;

use futures::future::try_join_all;
use kiln_cache::{ContentSelector, Ref};
use kiln_content::Platform;
use kiln_digest::Digest;
use kiln_llb::pb;
use kiln_snapshot::Mount;
use kiln_solver::{CacheMap, CacheMapPart, Dep, OpContext, OpError, ResultRef};
use kiln_source::image::ImageProvider;
use rand::Rng as _;

use crate::keys::OpKey;
use crate::lending::Lending;
use crate::worker::Worker;

/// Wraps a state for the solver.
pub(crate) fn result(state: Ref) -> ResultRef {
    Arc::new(state)
}

/// The states behind results; nil results stay `None`.
pub(crate) fn refs(results: &[Option<ResultRef>]) -> Result<Vec<Option<Ref>>, OpError> {
    results.iter().map(|r| r.as_ref().map(state).transpose()).collect()
}

/// The state behind a result.
pub(crate) fn state(result: &ResultRef) -> Result<Ref, OpError> {
    result
        .downcast::<Ref>()
        .cloned()
        .ok_or_else(|| OpError::failed(format!("result {result:?} is no filesystem state")))
}

/// Unpacks all inputs at once, so that the layers of all of them are under way together.
pub(crate) async fn unlazy_all(
    inputs: &[Option<Ref>],
    provider: &Provider,
    cx: &OpContext,
) -> Result<(), OpError> {
    let all = inputs.iter().enumerate().filter_map(|(index, input)| Some((index, input.as_ref()?)));
    let all = try_join_all(all.map(|(index, input)| async move {
        input.unlazy(provider).await.map_err(|e| lost_or_failed(e, Some(index)))
    }));
    tokio::select! {
        done = all => done.map(drop),
        () = cx.cancel.cancelled() => Err(OpError::cancelled()),
    }
}

/// A read-only mount of a state, of the input of this index if it is one; of none, an error of the caller's.
pub(crate) async fn view(
    state: Option<&Ref>,
    provider: &Provider,
    input: Option<usize>,
) -> Result<Mount, OpError> {
    let state = state.ok_or_else(|| OpError::failed("an empty state cannot be mounted"))?;
    state.mount(provider).await.map_err(|e| lost_or_failed(e, input))
}

/// The content key of one input, for ops whose keys say which parts matter.
pub(crate) async fn content_key(
    worker: &Arc<Worker>,
    cx: &OpContext,
    key: &OpKey,
    input: usize,
    result: Option<&ResultRef>,
) -> Result<Digest, OpError> {
    let selectors = key.content_selectors(input);
    let Some(result) = result else {
        return kiln_cache::nil_content_digest(&selectors).map_err(OpError::failed);
    };
    let state = state(result)?;
    let provider = provider(worker, cx);
    tokio::select! {
        digest = state.content_digest(&selectors, &provider) => digest.map_err(|e| lost_or_failed(e, Some(input))),
        () = cx.cancel.cancelled() => Err(OpError::cancelled()),
    }
}

/// An error of the catalogue: the loss of an input where it says so, else a failure.
pub(crate) fn lost_or_failed(error: kiln_cache::Error, input: Option<usize>) -> OpError {
    match input {
        Some(input) if error.is_lost() => OpError::lost_input(input, error),
        _ if is_of_lender(&error) => OpError::not_lent(error),
        _ => OpError::failed(error),
    }
}

/// Whether a layer could not be fetched for want of what another client may be able to lend.
fn is_of_lender(error: &kiln_cache::Error) -> bool {
    let kiln_cache::Error::Fetch { source, .. } = error else { return false };
    source.downcast_ref::<kiln_source::Error>().is_some_and(kiln_source::Error::is_of_lender)
}

/// Runs blocking work off the runtime.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, OpError> + Send + 'static,
) -> Result<T, OpError> {
    if kiln_snapshot::may_block() {
        return work();
    }
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(OpError::failed(error)),
    }
}

/// 25 random characters of base 36.
pub(crate) fn random_id() -> String {
    const ALPHABET: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let mut rng = rand::rng();
    (0..25).map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())])).collect()
}

/// Fetches lazy layers with the credentials and layouts of whoever waits at that moment.
pub(crate) type Provider = ImageProvider;

/// A provider for one call of an op.
pub(crate) fn provider(worker: &Arc<Worker>, cx: &OpContext) -> Provider {
    let lending = Lending::new(worker, cx);
    ImageProvider::new(
        worker.images(),
        Arc::new(lending.credentials()),
        Arc::new(lending.layouts()),
        cx.progress.clone(),
    )
}

/// A platform of the wire as images name it.
pub(crate) fn platform(platform: Option<&pb::Platform>) -> Platform {
    let Some(p) = platform else { return Platform::default() };
    Platform {
        os: p.os.clone(),
        architecture: p.architecture.clone(),
        variant: p.variant.clone(),
        os_version: p.os_version.clone(),
        os_features: p.os_features.clone(),
    }
}

impl OpKey {
    /// This key as the solver's cache map.
    pub(crate) fn map(&self) -> CacheMap {
        let deps = self.deps.iter().map(|d| Dep { selector: d.selector, content: d.content.is_some() });
        CacheMap { digest: self.digest.into(), deps: deps.collect() }
    }

    /// The only part of it.
    pub(crate) fn part(&self) -> CacheMapPart {
        CacheMapPart { map: self.map(), last: true }
    }

    pub(crate) fn content_selectors(&self, input: usize) -> Vec<ContentSelector> {
        let selectors = self.deps.get(input).and_then(|d| d.content.clone()).unwrap_or_default();
        let convert = |s: crate::keys::ContentSelector| ContentSelector {
            path: s.path,
            wildcard: s.wildcard,
            follow_links: s.follow_links,
            include: s.include_patterns,
            exclude: s.exclude_patterns,
            required: s.required_paths,
        };
        selectors.into_iter().map(convert).collect()
    }
}
