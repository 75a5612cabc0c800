//! Finding out, while a vertex runs, why it has to.

use std::sync::Arc;

use crate::key::KeyDigest;
use crate::keys::{CacheKeys, KeyAndSelector};
use crate::op::{Op, OpContext, ResultRef};
use crate::reason::choose::{Near, nearest};
use crate::reason::fingerprint::{Fingerprint, clip};
use crate::reason::memo::{Memo, MemoInput, Wanted};
use crate::reason::miss::{Difference, Miss};
use crate::vertex::OutputIndex;

/// Inputs of a step that are looked at one by one; the keys of further ones are compared together.
const MAX_INPUTS: usize = 64;
/// Bytes of a vertex's name.
const MAX_NAME: usize = 512;
/// Differences that are told.
const MAX_DIFFERENCES: usize = 8;

/// What the scheduler knows of a step that is about to run.
#[derive(Clone, Debug)]
pub(crate) struct RunFacts {
    pub(crate) name: String,
    pub(crate) digests: Vec<KeyDigest>,
    /// The output that was looked for.
    pub(crate) output: OutputIndex,
    /// It runs whatever is known.
    pub(crate) forced: bool,
    pub(crate) inputs: Vec<InputFacts>,
}

/// What is known of one of its inputs.
#[derive(Clone, Debug)]
pub(crate) struct InputFacts {
    pub(crate) name: String,
    pub(crate) offered: Vec<KeyAndSelector>,
    /// Its content counts.
    pub(crate) content: bool,
    /// It was made anew, so that what is known of it does not count.
    pub(crate) anew: bool,
}

/// What was found out.
#[derive(Clone, Debug)]
pub(crate) struct Study {
    /// To be saved with the results; none for what holds in one session only.
    pub(crate) memo: Option<Arc<Memo>>,
    /// Why it has to run; none for what ignores the cache.
    pub(crate) miss: Option<Arc<Miss>>,
}

/// Finds out why a step has to run, and what is to be remembered of it. Takes well under a millisecond, apart from
/// the listing of contents.
pub(crate) async fn study(
    keys: &dyn CacheKeys,
    op: &dyn Op,
    cx: &OpContext,
    inputs: &[Option<ResultRef>],
    mut facts: RunFacts,
) -> Study {
    if facts.digests.iter().all(KeyDigest::is_random) {
        return Study { memo: None, miss: (!facts.forced).then(|| Arc::new(Miss::Session)) };
    }
    facts.name = clip(&facts.name, MAX_NAME);
    let mut fingerprint = op.fingerprint(cx).await;
    facts.fold_inputs(&mut fingerprint);
    if fingerprint.kin().is_empty() {
        fingerprint.set_kin(&place(&facts.name));
    }
    let near = if facts.forced { None } else { find(keys, &facts, &fingerprint) };
    let mut memo_inputs = Vec::with_capacity(facts.inputs.len());
    for (index, input) in facts.inputs.iter().enumerate() {
        let listing = match &near {
            // Equal contents have equal listings.
            Some(near) if input.content && !near.inputs.contains(&index) => remembered(keys, near, index),
            _ => None,
        };
        let listing = match listing {
            None if input.content => op.listing(cx, index, inputs.get(index).and_then(Option::as_ref)).await,
            known => known,
        };
        memo_inputs.push(MemoInput::new(clip(&input.name, MAX_NAME), listing));
    }
    let mut memo = Memo::new(facts.name.clone(), fingerprint, memo_inputs);
    let miss = match near {
        _ if facts.forced => None,
        None => Some(Miss::New),
        Some(near) if near.is_same() => {
            let remembered = &near.remembered;
            memo.again = Some(remembered.key.clone());
            Some(Miss::Same { created_at: remembered.created_at, gone: remembered.gone })
        }
        Some(near) => Some(explain(keys, op, cx, inputs, &facts, near, &memo).await),
    };
    Study { memo: Some(Arc::new(memo)), miss: miss.map(Arc::new) }
}

fn find(keys: &dyn CacheKeys, facts: &RunFacts, fingerprint: &Fingerprint) -> Option<Near> {
    let deps: Vec<_> = facts.inputs.iter().map(|input| input.offered.clone()).collect();
    let wanted = Wanted {
        name: &facts.name,
        kin: fingerprint.kin(),
        digests: &facts.digests,
        output: facts.output,
        deps: &deps,
    };
    match keys.near(&wanted) {
        Ok(remembered) => nearest(remembered, facts, fingerprint),
        Err(error) => {
            tracing::debug!(%error, "cannot look for what comes near a step");
            None
        }
    }
}

fn remembered(keys: &dyn CacheKeys, near: &Near, input: usize) -> Option<Vec<u8>> {
    keys.listing(&near.remembered.key, input).ok().flatten()
}

async fn explain(
    keys: &dyn CacheKeys,
    op: &dyn Op,
    cx: &OpContext,
    inputs: &[Option<ResultRef>],
    facts: &RunFacts,
    near: Near,
    memo: &Memo,
) -> Miss {
    let mut differences = near.differences(facts);
    let further = differences.len().saturating_sub(MAX_DIFFERENCES);
    differences.truncate(MAX_DIFFERENCES);
    for difference in &mut differences {
        let Difference::Content { index, change, .. } = difference else { continue };
        let then = remembered(keys, &near, *index);
        let now = memo.inputs.get(*index).and_then(|input| input.listing.as_deref());
        if let (Some(then), Some(now)) = (then, now) {
            let result = inputs.get(*index).and_then(Option::as_ref);
            *change = op.content_change(cx, *index, result, &then, now).await;
        }
    }
    let remembered = near.remembered;
    Miss::Differs { name: remembered.memo.name, created_at: remembered.created_at, differences, further }
}

/// The place of a step in its stage, and what kind of step it is: `[build 3/7] RUN x` is at `build 3 RUN`. By it a step
/// of which nothing else is left is found to be a version of what stood there. Empty for what stands nowhere.
fn place(name: &str) -> String {
    let Some((place, step)) = name.strip_prefix('[').and_then(|rest| rest.split_once("] ")) else {
        return String::new();
    };
    let (Some((place, _)), Some(kind)) = (place.rsplit_once('/'), step.split_whitespace().next()) else {
        return String::new();
    };
    format!("step {place} {kind}")
}

impl RunFacts {
    /// Has the keys of very many inputs count together.
    fn fold_inputs(&mut self, fingerprint: &mut Fingerprint) {
        if self.inputs.len() <= MAX_INPUTS {
            return;
        }
        let rest = self.inputs.split_off(MAX_INPUTS);
        let keys = rest.iter().map(|input| input.offered.first().map_or("", |offered| offered.key.as_str()));
        let keys = keys.collect::<Vec<_>>().join("\n");
        fingerprint.add_hidden("", &format!("inputs from number {MAX_INPUTS} on"), &keys);
    }
}
