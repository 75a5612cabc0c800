//! What has to be so at every step of a simulation, kept apart from what the scheduler itself keeps.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use crate::driver::find;
use crate::keys::RecordId;
use crate::op::Slot;
use crate::scheduler::{Call, Effect, Event, Execution, JobId, Query, QueryId, Scheduler, WorkId};
use crate::testing::memory_keys::MemoryKeys;
use crate::testing::oracle::Oracle;
use crate::testing::simulation::{Disturbances, Simulation, Step};
use crate::vertex::{Edge, Graph, OutputIndex, VertexDigest};

/// What a simulation has seen.
#[derive(Default)]
pub(super) struct Ledger {
    /// Who waits for what, as told by effects.
    waiting: BTreeMap<WorkId, BTreeSet<(JobId, VertexDigest)>>,
    /// The results known when an execution came up and when it looked a last time, per output.
    known: HashMap<WorkId, HashMap<OutputIndex, HashSet<RecordId>>>,
    pub(super) runs: HashMap<String, usize>,
    /// How many executions of others passed the gate since a job had its turn.
    passed: BTreeMap<JobId, usize>,
    /// Jobs since the daemon's start.
    pub(super) jobs: usize,
}

impl Ledger {
    pub(super) fn restart(&mut self) {
        self.waiting.clear();
        self.known.clear();
        self.passed.clear();
        self.jobs = 0;
    }

    pub(super) fn waiting(&self, work: WorkId) -> usize {
        self.waiting.get(&work).map_or(0, BTreeSet::len)
    }

    pub(super) fn jobs_waiting(&self, work: WorkId) -> HashSet<JobId> {
        let waiting = self.waiting.get(&work).into_iter().flatten();
        waiting.map(|(job, _)| *job).collect()
    }

    /// Takes note of what an effect says of who waits.
    pub(super) fn show(&mut self, effect: &Effect, scheduler: &Scheduler, keys: &MemoryKeys) -> Step {
        match effect {
            Effect::Joined { work, job, vertex } => {
                if !self.waiting.entry(*work).or_default().insert((*job, *vertex)) {
                    return Err(format!("{job:?} joins {work:?} twice"));
                }
                if !self.known.contains_key(work) {
                    self.probe(*work, scheduler, keys);
                }
            }
            Effect::Left { work, job, vertex, .. } => {
                let waited = self.waiting.entry(*work).or_default().remove(&(*job, *vertex));
                if !waited {
                    return Err(format!("{job:?} leaves {work:?}, for which it does not wait"));
                }
            }
            Effect::Ended { work, .. } => {
                self.waiting.remove(work);
                self.known.remove(work);
            }
            _ => {}
        }
        Ok(())
    }

    /// Takes note of the results that are there for an execution at this moment.
    pub(super) fn probe(&mut self, work: WorkId, scheduler: &Scheduler, keys: &MemoryKeys) {
        let Some(execution) = scheduler.execution(work) else { return };
        let known = self.known.entry(work).or_default();
        for output in &execution.outputs {
            known.entry(*output).or_default().extend(loadable(&execution, *output, keys));
        }
    }

    /// Takes note of the results that imported caches offer to an execution.
    pub(super) fn offered(&mut self, work: WorkId, output: OutputIndex, records: Vec<RecordId>) {
        self.known.entry(work).or_default().entry(output).or_default().extend(records);
    }

    /// Nothing starts whose result has been there at the last look-up and still is.
    pub(super) fn check_start(
        &self,
        work: WorkId,
        scheduler: &Scheduler,
        has: impl Fn(&RecordId) -> bool,
    ) -> Step {
        let Some(execution) = scheduler.execution(work).filter(|execution| !execution.forced) else {
            return Ok(());
        };
        let there = |output: &OutputIndex| {
            let known = self.known.get(&work).and_then(|known| known.get(output));
            known.is_some_and(|known| known.iter().any(&has))
        };
        if !execution.outputs.is_empty() && execution.outputs.iter().all(there) {
            return Err(format!("a lost hit: {work:?} runs though its results are there, {execution:?}"));
        }
        Ok(())
    }

    /// Takes note of a run that gave results.
    pub(super) fn has_run(&mut self, text: &str, once: bool) -> Step {
        let runs = self.runs.entry(text.to_owned()).or_default();
        *runs += 1;
        if once && *runs > 1 { Err(format!("{text} has run twice")) } else { Ok(()) }
    }

    /// An execution passes the gate of processes: the others who stand there wait one more turn.
    pub(super) fn take_turn(&mut self, work: WorkId, scheduler: &Scheduler, before: &[JobId]) {
        if scheduler.execution(work).is_none_or(|execution| execution.slot != Slot::Process) {
            return;
        }
        let served = scheduler.waiting_for(work);
        for job in before {
            let passed = self.passed.entry(*job).or_default();
            *passed = if served.contains(job) { 0 } else { *passed + 1 };
        }
    }

    /// No job stands before the gate while each other one passes more than once.
    pub(super) fn check_turns(&mut self, scheduler: &Scheduler, before: &[JobId]) -> Step {
        let after = scheduler.before_gate();
        self.passed.retain(|job, _| after.contains(job) && before.contains(job));
        match self.passed.iter().find(|(_, passed)| **passed >= self.jobs) {
            Some((job, passed)) => Err(format!("{job:?} waits while {passed} steps of others pass")),
            None => Ok(()),
        }
    }
}

impl Simulation {
    /// Where nothing goes wrong, what runs is what the naive evaluator runs for one build after the other, if that does
    /// not depend on their order.
    pub(super) fn check_executed(&mut self) -> Step {
        if self.disturbances != (Disturbances { slow: self.disturbances.slow, ..Disturbances::default() }) {
            return Ok(());
        }
        let runs = |builds: &mut dyn Iterator<Item = &(Arc<Graph>, Vec<Edge>)>| {
            let keys = MemoryKeys::new();
            let mut ran = BTreeSet::new();
            for (graph, edges) in builds {
                let mut oracle = Oracle::new(&keys, graph);
                for edge in edges {
                    oracle.complete(*edge).map_err(|error| format!("the naive evaluator fails: {error}"))?;
                }
                ran.extend(oracle.executed);
            }
            Ok::<_, String>(ran)
        };
        let want = runs(&mut self.built.iter())?;
        if runs(&mut self.built.iter().rev())? != want {
            return Ok(());
        }
        self.report.determined += 1;
        let got: BTreeSet<_> = self.ledger.runs.keys().cloned().collect();
        if got == want {
            return Ok(());
        }
        let (needless, missing): (Vec<_>, Vec<_>) =
            (got.difference(&want).collect(), want.difference(&got).collect());
        Err(format!("runs {needless:?}, which need not run, and not {missing:?}, which have to"))
    }

    /// No more runs at once than the gates let pass.
    pub(super) fn check_room(&self, call: &Call) -> Step {
        let process = |call: &Call| matches!(call, Call::Exec { op, .. } if op.slot() == Slot::Process);
        let running = self.calls.values().filter(|running| process(&running.call)).count();
        if process(call) && running >= self.limits.processes {
            return Err(format!(
                "{} processes run at once, of {} allowed",
                running + 1,
                self.limits.processes
            ));
        }
        Ok(())
    }

    /// Nothing runs that no open build waits for, and whoever waits has been told so.
    pub(super) fn check_wanted(&self) -> Step {
        let wanted = self.state.scheduler.wanted_works();
        let orphan = |(work, running): &(&WorkId, &super::calls::Running)| {
            running.needs_waiters() && !wanted.contains(work)
        };
        match self.calls.iter().find(orphan) {
            Some((work, running)) => Err(format!("nobody waits for {work:?}, {}", running.shown())),
            None => Ok(()),
        }
    }
}

fn loadable(execution: &Execution, output: OutputIndex, keys: &MemoryKeys) -> Vec<RecordId> {
    if execution.deps.iter().any(Vec::is_empty) {
        return Vec::new();
    }
    let query = Query {
        id: QueryId(0),
        digests: execution.digests.clone(),
        deps: execution.deps.clone(),
        output,
        jobs: Vec::new(),
        records: true,
    };
    let records = find(keys, &query).map(|found| found.keys).unwrap_or_default();
    let records = records.into_iter().flat_map(|(_, records)| records).map(|record| record.id);
    records.filter(|record| keys.has(record)).collect()
}

pub(super) fn name(call: &Call) -> String {
    match call {
        Call::CacheMap { index, .. } => format!("cache map {index}"),
        Call::ContentKey { input, .. } => format!("content key {input}"),
        Call::Exec { .. } => "exec".to_owned(),
        Call::Load { record } => format!("load {}", record.id.0),
        Call::Save { .. } => "save".to_owned(),
        Call::Lost { .. } => "lost".to_owned(),
    }
}

pub(super) fn brief(event: &Event) -> String {
    match event {
        Event::BuildWanted { job, build, graph, edges } => {
            let names: Vec<_> = graph.vertices().iter().map(|vertex| vertex.name.as_str()).collect();
            let edges: Vec<_> = edges.iter().map(|edge| (edge.vertex.0, edge.output.0)).collect();
            format!("{job:?} wants {build:?}: {edges:?} of {names:?}")
        }
        Event::Queried { query, found } => {
            let keys =
                found.as_ref().map(|found| found.keys.iter().map(|(key, _)| key.clone()).collect::<Vec<_>>());
            format!("{query:?} found {keys:?}")
        }
        Event::Done { work, reply } => format!("{work:?} done {reply:?}"),
        other => format!("{other:?}"),
    }
}
