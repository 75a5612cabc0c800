//! Ops that make states out of states without looking into them: merge, diff and passthrough.

use std::sync::Arc;

use async_trait::async_trait;
use kiln_cache::{RecordOptions, RecordType, Ref};
use kiln_digest::Digest;
use kiln_solver::{CacheMap, CacheMapPart, Op, OpContext, OpError, ResultRef};

use crate::keys::OpKey;
use crate::ops::common;
use crate::worker::Worker;

/// What becomes of the inputs, in the order of the vertex's inputs. They stay lazy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Combination {
    /// On top of each other, the last one uppermost.
    Merge,
    /// What one has over the other. The vertex has an input for each side that is there.
    Diff { lower: bool, upper: bool },
    /// Each output is another reference to the input of this index.
    Passthrough { outputs: Vec<i64> },
}

/// A merge, diff or passthrough op on a worker.
#[derive(Debug)]
pub(crate) struct CombineOp {
    pub(crate) worker: Arc<Worker>,
    pub(crate) combination: Combination,
    pub(crate) key: OpKey,
    pub(crate) name: String,
}

#[async_trait]
impl Op for CombineOp {
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
        _cx: &OpContext,
        inputs: Vec<Option<ResultRef>>,
    ) -> Result<Vec<Option<ResultRef>>, OpError> {
        match &self.combination {
            Combination::Merge => self.merge(&inputs).await,
            Combination::Diff { lower, upper } => self.diff(&inputs, *lower, *upper).await,
            Combination::Passthrough { outputs } => pass(&inputs, outputs),
        }
    }
}

impl CombineOp {
    async fn merge(&self, inputs: &[Option<ResultRef>]) -> Result<Vec<Option<ResultRef>>, OpError> {
        let states: Vec<Ref> = common::refs(inputs)?.into_iter().flatten().collect();
        let merged = self.worker.cache.merge(&states, self.record()).await;
        // Out of nothing comes no result at all, which is an error for whoever wants it.
        Ok(merged.map_err(failed)?.map(common::result).map(Some).into_iter().collect())
    }

    async fn diff(
        &self,
        inputs: &[Option<ResultRef>],
        has_lower: bool,
        has_upper: bool,
    ) -> Result<Vec<Option<ResultRef>>, OpError> {
        let mut states = common::refs(inputs)?.into_iter();
        let lower = if has_lower { states.next().flatten() } else { None };
        let upper = if has_upper { states.next().flatten() } else { None };
        let difference = self.worker.cache.diff(lower.as_ref(), upper.as_ref(), self.record()).await;
        Ok(vec![difference.map_err(failed)?.map(common::result)])
    }

    fn record(&self) -> RecordOptions {
        RecordOptions::new(self.name.clone(), RecordType::Regular)
    }
}

fn pass(inputs: &[Option<ResultRef>], outputs: &[i64]) -> Result<Vec<Option<ResultRef>>, OpError> {
    let pass = |output: &i64| {
        let input = usize::try_from(*output).ok().and_then(|index| inputs.get(index));
        input
            .cloned()
            .ok_or_else(|| OpError::failed(format!("invalid passthrough output input index {output}")))
    };
    outputs.iter().map(pass).collect()
}

fn failed(error: kiln_cache::Error) -> OpError {
    common::lost_or_failed(error, None)
}
