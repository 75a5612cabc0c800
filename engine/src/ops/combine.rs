//! Ops that make states out of states without looking into them: merge, diff and passthrough.

use std::sync::Arc;

use async_trait::async_trait;
use kiln_cache::{RecordOptions, RecordType, Ref};
use kiln_solver::{OpContext, OpError, ResultRef};

use crate::ops::common;
use crate::ops::keyed::Action;
use crate::worker::Worker;

/// What becomes of the inputs, in the order of the vertex's inputs. They stay lazy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Combination {
    /// On top of each other, the last one uppermost.
    Merge,
    /// What one has over the other. The vertex has an input for each side that is there. If neither is built on the
    /// other, they are unpacked and compared.
    Diff { lower: bool, upper: bool },
    /// Each output is another reference to the input of this index.
    Passthrough { outputs: Vec<i64> },
}

/// A merge, diff or passthrough op on a worker.
#[derive(Debug)]
pub(crate) struct CombineOp {
    pub(crate) worker: Arc<Worker>,
    pub(crate) combination: Combination,
    pub(crate) name: String,
}

#[async_trait]
impl Action for CombineOp {
    async fn exec(
        &self,
        cx: &OpContext,
        inputs: Vec<Option<ResultRef>>,
    ) -> Result<Vec<Option<ResultRef>>, OpError> {
        match &self.combination {
            Combination::Merge => self.merge(&inputs).await,
            Combination::Diff { lower, upper } => self.diff(cx, &inputs, *lower, *upper).await,
            Combination::Passthrough { outputs } => pass(&inputs, outputs),
        }
    }
}

impl CombineOp {
    async fn merge(&self, inputs: &[Option<ResultRef>]) -> Result<Vec<Option<ResultRef>>, OpError> {
        let states: Vec<Ref> = common::refs(inputs)?.into_iter().flatten().collect();
        let merged = self.worker.cache.merge(&states, self.record()).await;
        match merged.map_err(failed)? {
            Some(merged) => Ok(vec![Some(common::result(merged))]),
            // Out of nothing comes no result at all.
            None => Err(OpError::failed("invalid response from exec need 0 index but 0 results received")),
        }
    }

    async fn diff(
        &self,
        cx: &OpContext,
        inputs: &[Option<ResultRef>],
        has_lower: bool,
        has_upper: bool,
    ) -> Result<Vec<Option<ResultRef>>, OpError> {
        let mut states = common::refs(inputs)?.into_iter();
        let lower = if has_lower { states.next().flatten() } else { None };
        let upper = if has_upper { states.next().flatten() } else { None };
        let provider = common::provider(&self.worker, cx);
        let computed = self.worker.cache.diff(lower.as_ref(), upper.as_ref(), &provider, self.record());
        let difference = tokio::select! {
            difference = computed => difference.map_err(failed)?,
            () = cx.cancel.cancelled() => return Err(OpError::cancelled()),
        };
        Ok(vec![difference.map(common::result)])
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

#[cfg(test)]
mod tests {
    use kiln_solver::ResultValue;

    use super::*;

    #[derive(Debug)]
    struct Numbered(u8);

    impl ResultValue for Numbered {}

    #[test]
    fn outputs_are_the_inputs_that_they_name() {
        let inputs: Vec<Option<ResultRef>> =
            vec![Some(Arc::new(Numbered(7))), None, Some(Arc::new(Numbered(9)))];
        for (outputs, want) in [
            (&[0][..], "7"),
            (&[2, 1, 2], "9 - 9"),
            (&[3], "invalid passthrough output input index 3"),
            (&[0, -1], "invalid passthrough output input index -1"),
        ] {
            let shown = |result: &Option<ResultRef>| {
                let number = result.as_ref().and_then(|r| r.downcast::<Numbered>());
                number.map_or("-".to_owned(), |n| n.0.to_string())
            };
            let got = match pass(&inputs, outputs) {
                Ok(results) => results.iter().map(shown).collect::<Vec<_>>().join(" "),
                Err(error) => error.to_string(),
            };
            assert_eq!(got, want, "{outputs:?}");
        }
    }
}
