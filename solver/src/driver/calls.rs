//! Calls and look-ups.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use futures::FutureExt as _;

use crate::driver::limits::Measured;
use crate::driver::{Shared, State};
use crate::error::{Error, OpError, Result};
use crate::key::KeyId;
use crate::keys::{Asked, Lookup, NewKey};
use crate::op::OpContext;
use crate::reason::{Memo, RunFacts, Study, study};
use crate::scheduler::{Call, Effect, Event, Found, Query, Reply, WorkId};

/// Look-ups handed to the store at once, before other tasks get their turn.
const LOOKUPS_PER_TURN: usize = 512;
/// Answers applied before others get the lock.
const ANSWERS_PER_TURN: usize = 64;

/// What follows from an event and takes a moment. Whoever brought the event does it, one thing after the other, so that
/// what waits anywhere is bounded by the calls under way and the vertices they concern.
#[derive(Debug, Default)]
pub(super) struct FollowUp {
    queries: VecDeque<Query>,
    links: Vec<(NewKey, KeyId)>,
}

impl FollowUp {
    pub(super) fn is_empty(&self) -> bool {
        self.queries.is_empty() && self.links.is_empty()
    }
}

impl Shared {
    /// Carries out an effect, or puts it off. None of them takes time here.
    pub(super) fn carry_out(self: &Arc<Self>, state: &mut State, effect: Effect, later: &mut FollowUp) {
        match effect {
            Effect::Query(query) => later.queries.push_back(query),
            Effect::Link { key, to } => later.links.push((key, to)),
            Effect::Start { work, call } => self.start(state, work, call),
            Effect::BuildDone { build, result } => {
                if let Some(reply) = state.replies.remove(&build) {
                    // Whoever asked may have gone.
                    let _ = reply.send(result);
                }
            }
            Effect::Cancel(work) => {
                if let Some(live) = state.works.get(&work).and_then(|watch| watch.live.as_ref()) {
                    live.cancel.cancel();
                    let over = live.over.clone();
                    state.stopping.push(over);
                }
            }
            Effect::Joined { work, job, vertex } => {
                state.show(Effect::Joined { work, job, vertex });
                self.guard(state, work);
            }
            shown => state.show(shown),
        }
    }

    fn start(self: &Arc<Self>, state: &mut State, work: WorkId, call: Call) {
        // What runs is studied meanwhile, and what that gives is saved with the results.
        let facts = matches!(call, Call::Exec { .. }).then(|| state.scheduler.facts(work)).flatten();
        let live = state.called(work);
        live.guard.measured = match &call {
            Call::Exec { op, .. } => Measured::start(op),
            _ => None,
        };
        let context = live.context();
        let study = state.works.get(&work).and_then(|watch| watch.study.as_ref());
        let memo = study.and_then(|study| study.memo.clone());
        self.guard(state, work);
        let simple = matches!(call, Call::Load { .. } | Call::Lost { .. });
        let shared = Arc::clone(self);
        let task = async move {
            let failed = failure(&call);
            let done = AssertUnwindSafe(shared.call(call, &context, facts, memo)).catch_unwind().await;
            // A panic has been reported by the hook; the vertex fails with it.
            let (reply, study) =
                done.unwrap_or_else(|_| (failed(OpError::failed("internal error: the step panicked")), None));
            let later = {
                let mut state = shared.lock();
                if let Some(study) = study {
                    state.studied(work, study);
                }
                let later = shared.apply(&mut state, Event::Done { work, reply });
                if simple {
                    state.forget_if_unseen(work);
                }
                later
            };
            shared.follow_up(later).await;
        };
        self.tracker.spawn_on(task, &self.runtime);
    }

    async fn call(
        &self,
        call: Call,
        cx: &OpContext,
        facts: Option<RunFacts>,
        memo: Option<Arc<Memo>>,
    ) -> (Reply, Option<Study>) {
        let reply = match call {
            Call::CacheMap { op, index } => Reply::CacheMap(op.cache_map(cx, index).await),
            Call::ContentKey { op, input, result } => {
                Reply::ContentKey(op.content_key(cx, input, result.as_ref()).await)
            }
            Call::Exec { op, inputs } => {
                let studying = async {
                    let study = study(&*self.keys, &*op, cx, &inputs, facts?);
                    // Without a reason a vertex is as good.
                    AssertUnwindSafe(study).catch_unwind().await.ok()
                };
                let (results, study) = futures::join!(op.exec(cx, inputs.clone()), studying);
                return (Reply::Exec(results), study);
            }
            Call::Load { record } => Reply::Load(self.load(&record).await),
            Call::Save { items } => {
                let mut ids = Vec::with_capacity(items.len());
                for (keys, result) in items {
                    match self.keys.save_with(&keys, result.as_ref(), memo.as_deref()).await {
                        Ok(saved) => ids.push(saved),
                        Err(error) => return (Reply::Save(Err(error)), None),
                    }
                }
                Reply::Save(Ok(ids))
            }
            Call::Lost { result } => {
                if let Err(error) = self.keys.lost(&result).await {
                    tracing::warn!(%error, "cannot take note of a lost result");
                }
                Reply::Lost
            }
        };
        (reply, None)
    }

    /// Does look-ups, those that follow from their answers, and then adds links, for which nobody waits.
    pub(super) async fn follow_up(self: &Arc<Self>, mut later: FollowUp) {
        while !later.queries.is_empty() {
            let turn = later.queries.len().min(LOOKUPS_PER_TURN);
            let mut here = Vec::with_capacity(turn);
            {
                let state = self.lock();
                for query in later.queries.drain(..turn) {
                    let imports = state.imports_of(&query.jobs);
                    match imports.is_empty() {
                        true => here.push(query),
                        false => self.look_everywhere(query, imports),
                    }
                }
            }
            let mut found = self.find_all(&here).into_iter();
            for queries in here.chunks(ANSWERS_PER_TURN) {
                let mut state = self.lock();
                for (query, found) in queries.iter().zip(&mut found) {
                    let next = self.apply(&mut state, Event::Queried { query: query.id, found });
                    later.queries.extend(next.queries);
                    later.links.extend(next.links);
                }
            }
            tokio::task::yield_now().await;
        }
        for (key, to) in later.links {
            if let Err(error) = self.keys.link(&key, &to).await {
                tracing::warn!(%error, key = %to, "cannot link cache key");
            }
        }
    }

    /// Looks up. A store that panics fails the vertices, which would wait for ever otherwise.
    fn find_all(&self, queries: &[Query]) -> Vec<Result<Found>> {
        let find = |queries: &[Query]| {
            let found = catch_unwind(AssertUnwindSafe(|| find_all(&*self.keys, queries)));
            found
                .unwrap_or_else(|_| Err(Error::keys("look-up", "internal error: the store of keys panicked")))
        };
        match find(queries) {
            Ok(found) => found.into_iter().map(Ok).collect(),
            Err(error) if queries.len() == 1 => vec![Err(error)],
            // Only those fail that would have alone.
            Err(_) => queries.iter().flat_map(|query| self.find_all(std::slice::from_ref(query))).collect(),
        }
    }
}

/// Answers a look-up.
pub(crate) fn find(keys: &dyn crate::keys::CacheKeys, query: &Query) -> Result<Found> {
    Ok(find_all(keys, std::slice::from_ref(query))?.pop().unwrap_or_default())
}

/// Answers look-ups.
pub(crate) fn find_all(keys: &dyn crate::keys::CacheKeys, queries: &[Query]) -> Result<Vec<Found>> {
    let mut asked = Vec::with_capacity(queries.len());
    for Query { deps, digests, output, .. } in queries {
        asked.extend(digests.iter().map(|digest| Asked { deps, digest, output: *output }));
    }
    let mut lookups = keys.query_all(&asked)?.into_iter();
    let mut all = Vec::with_capacity(queries.len());
    for query in queries {
        let mut found = Found { keys: Vec::new(), reached: vec![false; query.deps.len()] };
        for Lookup { keys: ids, reached } in lookups.by_ref().take(query.digests.len()) {
            for (all, reached) in found.reached.iter_mut().zip(reached) {
                *all |= reached;
            }
            for id in ids {
                if found.keys.iter().all(|(known, _)| *known != id) {
                    let records = if query.records { keys.records(&id)? } else { Vec::new() };
                    found.keys.push((id, records));
                }
            }
        }
        all.push(found);
    }
    Ok(all)
}

/// Returns how a call that ends without an answer is answered.
fn failure(call: &Call) -> fn(OpError) -> Reply {
    match call {
        Call::CacheMap { .. } => |error| Reply::CacheMap(Err(error)),
        Call::ContentKey { .. } => |error| Reply::ContentKey(Err(error)),
        Call::Exec { .. } => |error| Reply::Exec(Err(error)),
        Call::Load { .. } => |_| Reply::Load(Ok(None)),
        Call::Save { .. } => |error| Reply::Save(Err(crate::error::Error::keys("save", error))),
        Call::Lost { .. } => |_| Reply::Lost,
    }
}
