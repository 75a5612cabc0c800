//! An op that can also say what it is made of.

use std::sync::Arc;

use async_trait::async_trait;
use kiln_cache::ContentSelector;
use kiln_digest::Digest;
use kiln_llb::pb;
use kiln_solver::{CacheMapPart, ContentChange, Fingerprint, Op, OpContext, OpError, ResultRef, Slot};

use crate::keys::{self, fingerprint::fingerprint};
use crate::ops::common;
use crate::worker::Worker;

/// An op with its definition beside it. What explanations need is made of the definition when they are asked for:
/// most vertices are found, and are never asked.
#[derive(Debug)]
pub(crate) struct Explained {
    pub(crate) inner: Arc<dyn Op>,
    pub(crate) definition: Arc<pb::Op>,
    pub(crate) worker: Arc<Worker>,
}

impl Explained {
    fn selectors(&self, input: usize) -> Option<Vec<ContentSelector>> {
        Some(keys::op_key(&self.definition).ok()??.content_selectors(input))
    }
}

#[async_trait]
impl Op for Explained {
    async fn cache_map(&self, cx: &OpContext, index: usize) -> Result<CacheMapPart, OpError> {
        self.inner.cache_map(cx, index).await
    }

    async fn content_key(
        &self,
        cx: &OpContext,
        input: usize,
        result: Option<&ResultRef>,
    ) -> Result<Digest, OpError> {
        self.inner.content_key(cx, input, result).await
    }

    async fn exec(
        &self,
        cx: &OpContext,
        inputs: Vec<Option<ResultRef>>,
    ) -> Result<Vec<Option<ResultRef>>, OpError> {
        self.inner.exec(cx, inputs).await
    }

    fn slot(&self) -> Slot {
        self.inner.slot()
    }

    async fn fingerprint(&self, _cx: &OpContext) -> Fingerprint {
        fingerprint(&self.definition).unwrap_or_default()
    }

    async fn listing(&self, cx: &OpContext, input: usize, result: Option<&ResultRef>) -> Option<Vec<u8>> {
        let state = common::state(result?).ok()?;
        let provider = common::provider(&self.worker, cx);
        let selectors = self.selectors(input)?;
        let listing = tokio::select! {
            listing = state.listing(&selectors, &provider) => listing,
            () = cx.cancel.cancelled() => return None,
        };
        listing.inspect_err(|error| tracing::debug!(%error, input, "cannot list an input")).ok()
    }

    async fn content_change(
        &self,
        cx: &OpContext,
        _input: usize,
        result: Option<&ResultRef>,
        then: &[u8],
        now: &[u8],
    ) -> Option<ContentChange> {
        let state = common::state(result?).ok()?;
        let provider = common::provider(&self.worker, cx);
        let change = tokio::select! {
            change = state.listing_change(then, now, &provider) => change,
            () = cx.cancel.cancelled() => return None,
        };
        let change =
            change.inspect_err(|error| tracing::debug!(%error, "cannot compare listings")).ok()??;
        let mut told = ContentChange::new(change.path, change.what);
        (told.was, told.is, told.further) = (change.was, change.is, change.further);
        Some(told)
    }
}
