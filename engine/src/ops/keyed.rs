//! What all ops with a definition of their own have in common: it alone says what identifies them, which contents of
//! their inputs count, and what they are made of.

use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;
use kiln_digest::Digest;
use kiln_llb::pb;
use kiln_solver::{
    CacheMap, CacheMapPart, ContentChange, Fingerprint, Op, OpContext, OpError, ResultRef, Slot,
};

use crate::keys::{OpKey, fingerprint::fingerprint};
use crate::ops::common;
use crate::worker::Worker;

/// What an op does once it has to run; as [`Op::exec`] and [`Op::slot`].
#[async_trait]
pub(crate) trait Action: Debug + Send + Sync + 'static {
    async fn exec(
        &self,
        cx: &OpContext,
        inputs: Vec<Option<ResultRef>>,
    ) -> Result<Vec<Option<ResultRef>>, OpError>;

    fn slot(&self) -> Slot {
        Slot::None
    }
}

/// An op on a worker. What explanations need is made of the definition when they are asked for: most vertices are
/// found, and are never asked.
#[derive(Debug)]
pub(crate) struct KeyedOp {
    pub(crate) action: Box<dyn Action>,
    pub(crate) key: OpKey,
    pub(crate) definition: Arc<pb::Op>,
    pub(crate) worker: Arc<Worker>,
}

#[async_trait]
impl Op for KeyedOp {
    async fn cache_map(&self, _cx: &OpContext, _index: usize) -> Result<CacheMapPart, OpError> {
        Ok(self.key.part())
    }

    fn known_map(&self) -> Option<CacheMap> {
        Some(self.key.map())
    }

    async fn content_key(
        &self,
        cx: &OpContext,
        input: usize,
        result: Option<&ResultRef>,
    ) -> Result<Digest, OpError> {
        common::content_key(&self.worker, cx, &self.key, input, result).await
    }

    async fn exec(
        &self,
        cx: &OpContext,
        inputs: Vec<Option<ResultRef>>,
    ) -> Result<Vec<Option<ResultRef>>, OpError> {
        self.action.exec(cx, inputs).await
    }

    fn slot(&self) -> Slot {
        self.action.slot()
    }

    async fn fingerprint(&self, _cx: &OpContext) -> Fingerprint {
        fingerprint(&self.definition).unwrap_or_default()
    }

    async fn listing(&self, cx: &OpContext, input: usize, result: Option<&ResultRef>) -> Option<Vec<u8>> {
        let state = common::state(result?).ok()?;
        let provider = common::provider(&self.worker, cx);
        let selectors = self.key.content_selectors(input);
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
