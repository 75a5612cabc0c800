//! Calls under way in a simulation: how they start, what they ask for, how they end.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures::FutureExt as _;

use crate::driver::load_everywhere;
use crate::error::OpError;
use crate::keys::{CacheKeys, Origin};
use crate::op::{ResultRef, Slot};
use crate::scheduler::{Call, Event, JobId, Reply, WorkId};
use crate::testing::memory_keys::MemoryKeys;
use crate::testing::oracle::{context, now};
use crate::testing::script::Value;
use crate::testing::simulation::checks::name;
use crate::testing::simulation::{GONE, INJECTED, Session, Simulation, Step, UNLENT};

/// How rarely a slow call gets on when it could, in percent.
const SLOW_PACE: u64 = 10;

pub(super) struct Running {
    pub(super) call: Call,
    cancelled: bool,
    /// For runs: what is computed.
    pub(super) text: Option<String>,
    reply: Reply,
    /// How often it will ask whoever waits for something.
    asks: usize,
    slow: bool,
}

impl Running {
    pub(super) fn is_run(&self) -> bool {
        matches!(self.call, Call::Exec { .. }) && !self.cancelled
    }

    /// Whether somebody has to wait for it.
    pub(super) fn needs_waiters(&self) -> bool {
        !self.cancelled && !matches!(self.call, Call::Save { .. } | Call::Lost { .. })
    }

    pub(super) fn shown(&self) -> String {
        name(&self.call)
    }

    /// Writes what is to be saved, if it is a saving call; returns the names.
    pub(super) fn save(&self, keys: &MemoryKeys) -> Vec<Vec<crate::key::KeyId>> {
        let Call::Save { items } = &self.call else { return Vec::new() };
        let save = |(new, result): &(Vec<crate::keys::NewKey>, Option<ResultRef>)| {
            keys.save(new, result.as_ref()).now_or_never().and_then(Result::ok)
        };
        items.iter().filter_map(save).collect()
    }
}

impl Simulation {
    pub(super) fn start(&mut self, work: WorkId, call: Call, before: &[JobId]) -> Step {
        self.state.called(work);
        let mut text = None;
        let lost = self.rng.chance(self.disturbances.losses);
        let reply = match &call {
            Call::CacheMap { op, index } => Reply::CacheMap(now(op.cache_map(&context(), *index))),
            Call::ContentKey { input, result: Some(result), .. } if lost || self.is_lost(result) => {
                Reply::ContentKey(Err(self.lose(*input, result)))
            }
            Call::ContentKey { op, input, result } => {
                Reply::ContentKey(now(op.content_key(&context(), *input, result.as_ref())))
            }
            Call::Exec { inputs, .. } if lost && inputs.first().is_some_and(Option::is_some) => {
                let input = self.rng.below(inputs.len());
                match &inputs[input] {
                    Some(result) => Reply::Exec(Err(self.lose(input, result))),
                    None => Reply::Exec(Err(OpError::cancelled())),
                }
            }
            Call::Exec { inputs, .. } if inputs.iter().flatten().any(|result| self.is_lost(result)) => {
                let is_lost = |result: &Option<ResultRef>| result.as_ref().is_some_and(|r| self.is_lost(r));
                let input = inputs.iter().position(is_lost).unwrap_or_default();
                Reply::Exec(Err(OpError::lost_input(input, GONE)))
            }
            Call::Exec { .. } if self.rng.chance(self.disturbances.failures) => {
                self.injected = true;
                Reply::Exec(Err(OpError::failed(INJECTED)))
            }
            Call::Exec { op, inputs } => {
                self.report.runs += 1;
                let made = now(op.exec(&context(), inputs.clone()));
                if let Ok(made) = &made {
                    text = Some(Value::text(made[0].as_ref()).to_owned());
                }
                Reply::Exec(made)
            }
            Call::Load { .. } => Reply::Load(Ok(None)),
            Call::Save { .. } => Reply::Save(Ok(Vec::new())),
            Call::Lost { .. } => Reply::Lost,
        };
        self.note(|| format!("  start {work:?} {} {}", name(&call), text.as_deref().unwrap_or("")));
        if matches!(call, Call::Exec { .. }) {
            self.ledger.check_start(work, &self.state.scheduler, |record| self.has(record))?;
            self.ledger.take_turn(work, &self.state.scheduler, before);
        }
        // A vertex that ignores the cache may run beside one that does not.
        let twice = text.is_some() && self.calls.values().any(|other| other.text == text);
        if twice && self.disturbances.forced == 0 {
            return Err(format!("{text:?} runs twice at once"));
        }
        self.check_room(&call)?;
        let borrows = match &call {
            Call::CacheMap { .. } => true,
            Call::Exec { op, .. } => op.slot() == Slot::Process,
            _ => false,
        };
        let asks = if borrows && self.disturbances.deaths > 0 { self.rng.below(3) } else { 0 };
        let slow = self.rng.chance(self.disturbances.slow);
        let running = Running { call, cancelled: false, text, reply, asks, slow };
        if self.calls.insert(work, running).is_some() {
            return Err(format!("{work:?} started while it runs"));
        }
        Ok(())
    }

    fn is_lost(&self, result: &ResultRef) -> bool {
        self.lost.iter().any(|other| Arc::ptr_eq(other, result))
    }

    /// A result turns out to be gone, and stays so.
    fn lose(&mut self, input: usize, result: &ResultRef) -> OpError {
        if !self.is_lost(result) {
            self.lost.push(Arc::clone(result));
        }
        self.keys.drop_results(|other| other.is_some_and(|other| Arc::ptr_eq(other, result)));
        self.jobs.values().flat_map(|client| &client.caches).for_each(|cache| cache.lose(result));
        OpError::lost_input(input, GONE)
    }

    pub(super) fn cancel_call(&mut self, work: WorkId) -> Step {
        let waiting = self.ledger.waiting(work);
        if waiting > 0 {
            return Err(format!("{work:?} is cancelled though {waiting} vertices wait for it"));
        }
        match self.calls.get_mut(&work) {
            Some(running) => running.cancelled = true,
            None => return Err(format!("{work:?} is cancelled but does not run")),
        }
        Ok(())
    }

    /// Ends a call, or lets it get on.
    pub(super) fn end_call(&mut self, work: WorkId) -> Step {
        let pace = self.rng.chance(SLOW_PACE);
        let Some(running) = self.calls.get_mut(&work) else { return Ok(()) };
        if running.slow && !running.cancelled && !pace {
            self.report.steps += 1;
            return Ok(());
        }
        if running.asks > 0 && !running.cancelled {
            return self.ask(work);
        }
        let Some(running) = self.calls.remove(&work) else { return Ok(()) };
        let mut reply = running.reply.clone();
        if running.cancelled && self.rng.chance(60) {
            let error = OpError::cancelled();
            reply = match running.call {
                Call::CacheMap { .. } => Reply::CacheMap(Err(error)),
                Call::ContentKey { .. } => Reply::ContentKey(Err(error)),
                Call::Exec { .. } => Reply::Exec(Err(error)),
                Call::Load { .. } => Reply::Load(Err(crate::error::Error::keys("cancelled", error))),
                Call::Save { .. } | Call::Lost { .. } => reply,
            };
        }
        // Stores are written when a call ends, as far as anybody can tell.
        match &running.call {
            Call::Save { .. } => reply = Reply::Save(Ok(running.save(&self.keys))),
            Call::Lost { result } => {
                let _ = self.keys.lost(result).now_or_never();
            }
            Call::Load { record } if !matches!(reply, Reply::Load(Err(_))) => {
                let imports = self.state.all_imports();
                let loaded = load_everywhere(&self.keys, &imports, record).now_or_never().unwrap_or(Ok(None));
                let imported = matches!(record.origin, Origin::Imported(_));
                self.report.imported += usize::from(imported && matches!(loaded, Ok(Some(_))));
                reply = Reply::Load(loaded);
            }
            // What was told to stop and ends well all the same is thrown away, unless somebody has come since.
            Call::Exec { .. } if !running.cancelled && matches!(reply, Reply::Exec(Ok(_))) => {
                if let Some(text) = &running.text {
                    self.ledger.has_run(text, self.keeps_what_it_makes())?;
                }
            }
            _ => {}
        }
        self.step(Event::Done { work, reply })?;
        // As the driver does: what has no watchers has nothing else that ends it.
        if matches!(running.call, Call::Load { .. } | Call::Lost { .. }) {
            self.state.forget_if_unseen(work);
        }
        Ok(())
    }

    /// A call asks for something: of those who wait, the first whose session lives gives it.
    fn ask(&mut self, work: WorkId) -> Step {
        self.report.steps += 1;
        let contexts = self.state.live(work).map(|live| live.context().waiters.current());
        let contexts = contexts.unwrap_or_default();
        let sessions: Vec<_> =
            contexts.iter().filter_map(|context| context.downcast_ref::<Session>()).collect();
        let lenders: HashSet<JobId> = sessions.iter().map(|session| session.job).collect();
        let waiting = self.ledger.jobs_waiting(work);
        if lenders != waiting || lenders.iter().any(|job| !self.jobs.contains_key(job)) {
            return Err(format!("{work:?} asks {lenders:?}, but {waiting:?} wait for it"));
        }
        let lives = sessions.iter().any(|session| session.alive.load(Ordering::Relaxed));
        self.note(|| format!("  {work:?} asks {lenders:?}: {}", if lives { "given" } else { "nobody" }));
        let Some(running) = self.calls.get_mut(&work) else { return Ok(()) };
        running.asks -= 1;
        if !lives {
            running.asks = 0;
            running.text = None;
            let error = OpError::not_lent(UNLENT);
            running.reply = match running.call {
                Call::CacheMap { .. } => Reply::CacheMap(Err(error)),
                _ => Reply::Exec(Err(error)),
            };
        }
        Ok(())
    }

    /// Whether what has been made once is never made again.
    fn keeps_what_it_makes(&self) -> bool {
        let d = &self.disturbances;
        // A source whose first key an import knows does without the second when nobody lends what that takes.
        let fewer_keys = d.imports > 0 && d.deaths > 0;
        // What is asked for an output that it does not have runs again each time.
        !fewer_keys && d.losses + d.prunes + d.forced + d.restarts + d.failing == 0
    }
}
