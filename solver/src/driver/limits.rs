//! Limits of time. The scheduler has no clock: when a limit has passed, it is told so as an event.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::driver::{Shared, State};
use crate::error::OpError;
use crate::op::{Op, Slot};
use crate::scheduler::{Event, JobId, WorkId};

/// How long a job waits for steps; none for as long as it takes. A step that several jobs wait for goes on for those
/// whose limits have not passed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TimeLimits {
    /// For one run of a step, from its start on.
    pub step: Option<Duration>,
    /// For the next output of a process, or progress of its step.
    pub silence: Option<Duration>,
}

/// Which limit has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LimitKind {
    /// That of a step.
    Step,
    /// That of a step's silence.
    Silence,
    /// That of the build.
    Build,
}

/// A limit has passed: which one, and what was seen last.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LimitExceeded {
    /// Which limit.
    pub kind: LimitKind,
    /// Its value.
    pub limit: Duration,
    /// The last lines of output of the step.
    pub last_lines: Vec<String>,
}

impl LimitExceeded {
    /// Says that the limit of a build has passed.
    pub fn build(limit: Duration) -> Self {
        Self { kind: LimitKind::Build, limit, last_lines: Vec::new() }
    }
}

impl std::error::Error for LimitExceeded {}

impl fmt::Display for LimitExceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let limit = self.limit;
        match self.kind {
            LimitKind::Step => {
                write!(f, "time limit exceeded: the step ran longer than {limit:?} (step limit)")
            }
            LimitKind::Silence => {
                write!(f, "time limit exceeded: the step wrote nothing for {limit:?} (silence limit)")
            }
            LimitKind::Build => {
                write!(f, "time limit exceeded: the build took longer than {limit:?} (build limit)")
            }
        }?;
        match self.last_lines.as_slice() {
            [] if self.kind == LimitKind::Build => Ok(()),
            [] => f.write_str("; it has written nothing"),
            lines => write!(f, "; its last output:\n{}", lines.join("\n")),
        }
    }
}

/// A run whose time is measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Measured {
    begun: Instant,
    /// Whether it is expected to write something.
    speaks: bool,
}

/// What a watching task is woken by when there is something new to watch.
#[derive(Clone, Debug, Default)]
pub(super) struct Guard {
    pub(super) measured: Option<Measured>,
    guarded: bool,
    changed: Arc<Notify>,
}

/// The limit that passes next.
struct Due {
    at: Instant,
    job: JobId,
    kind: LimitKind,
    limit: Duration,
}

impl Measured {
    /// Starts measuring a run; ops that wait for others' steps are not measured.
    pub(super) fn start(op: &Arc<dyn Op>) -> Option<Self> {
        let slot = op.slot();
        (slot != Slot::Nested).then(|| Self { begun: Instant::now(), speaks: slot == Slot::Process })
    }
}

impl State {
    fn due(&self, work: WorkId) -> Option<Due> {
        let watch = self.works.get(&work)?;
        let live = watch.live.as_ref()?;
        let measured = live.guard.measured?;
        let mut due: Vec<Due> = Vec::new();
        for job in watch.jobs() {
            let Some(limits) = self.jobs.get(&job).map(|job| job.limits) else { continue };
            let step = limits.step.map(|limit| (measured.begun, LimitKind::Step, limit));
            let active = || live.progress.active().max(measured.begun);
            let silence = limits.silence.filter(|_| measured.speaks);
            let silence = silence.map(|limit| (active(), LimitKind::Silence, limit));
            for (since, kind, limit) in step.into_iter().chain(silence) {
                // A limit beyond what clocks can count never passes.
                due.extend(since.checked_add(limit).map(|at| Due { at, job, kind, limit }));
            }
        }
        due.into_iter().min_by_key(|due| due.at)
    }
}

impl Shared {
    /// Sees to it that somebody watches the limits of those who wait for this work.
    pub(super) fn guard(self: &Arc<Self>, state: &mut State, work: WorkId) {
        if state.due(work).is_none() {
            return;
        }
        let Some(live) = state.live(work) else { return };
        if live.guard.guarded {
            return live.guard.changed.notify_one();
        }
        live.guard.guarded = true;
        let (changed, over) = (Arc::clone(&live.guard.changed), live.over.clone());
        let shared = Arc::clone(self);
        self.tracker.spawn_on(async move { shared.watch_limits(work, &changed, &over).await }, &self.runtime);
    }

    async fn watch_limits(self: &Arc<Self>, work: WorkId, changed: &Notify, over: &CancellationToken) {
        loop {
            let (at, later) = {
                let mut state = self.lock();
                let Some(due) = state.due(work) else {
                    if let Some(live) = state.live(work) {
                        live.guard.guarded = false;
                    }
                    return;
                };
                if due.at > Instant::now() {
                    (due.at, None)
                } else {
                    let lines = state.live(work).map(|live| live.progress.last_lines());
                    let last_lines = lines.unwrap_or_default();
                    let error = LimitExceeded { kind: due.kind, limit: due.limit, last_lines };
                    let event = Event::Expired { work, job: due.job, error: OpError::failed(error) };
                    (due.at, Some(self.apply(&mut state, event)))
                }
            };
            if let Some(later) = later {
                self.follow_up(later).await;
                continue;
            }
            tokio::select! {
                () = tokio::time::sleep_until(at.into()) => {}
                () = changed.notified() => {}
                () = over.cancelled() => return,
            }
        }
    }

    /// Fails all that a job waits for; its vertices under way show the error.
    pub(super) fn expire(self: &Arc<Self>, state: &mut State, job: JobId, error: &LimitExceeded) {
        let waits = state.works.iter().filter(|(_, watch)| watch.jobs().contains(&job));
        let mut works: Vec<_> = waits.map(|(work, _)| *work).collect();
        works.sort_unstable();
        for work in works {
            let mut error = error.clone();
            if let Some(live) = state.live(work) {
                error.last_lines = live.progress.last_lines();
            }
            self.step(state, Event::Expired { work, job, error: OpError::failed(error) });
        }
    }
}
