//! A look from outside, for simulations: what a scheduler itself need not know.

use crate::key::KeyDigest;
use crate::keys::KeyAndSelector;
use crate::op::Slot;
use crate::scheduler::node::{NodeId, Who};
use crate::scheduler::work::{Kind, Phase, Work};
use crate::scheduler::{Asker, JobId, QueryId, Scheduler, WorkId};
use crate::tables::{HashMap, HashSet};
use crate::vertex::OutputIndex;

/// What identifies an execution.
#[derive(Clone, Debug)]
pub(crate) struct Execution {
    pub(crate) digests: Vec<KeyDigest>,
    pub(crate) deps: Vec<Vec<KeyAndSelector>>,
    pub(crate) outputs: Vec<OutputIndex>,
    pub(crate) forced: bool,
    pub(crate) slot: Slot,
}

impl Scheduler {
    /// Returns what identifies an execution.
    pub(crate) fn execution(&self, work: WorkId) -> Option<Execution> {
        match &self.works.get(&work)?.kind {
            Kind::Exec(exec) => Some(exec.inspect()),
            Kind::Simple { .. } => None,
        }
    }

    /// Returns the execution whose last look-up this is.
    pub(crate) fn probed(&self, query: QueryId) -> Option<WorkId> {
        match self.queries.get(&query)? {
            Asker::Work(work) => Some(*work),
            Asker::Node { .. } => None,
        }
    }

    /// Returns the jobs that wait for work.
    pub(crate) fn waiting_for(&self, work: WorkId) -> HashSet<JobId> {
        let waiters = self.works.get(&work).map(|work| work.waiters.as_slice()).unwrap_or_default();
        waiters.iter().filter_map(|waiting| Some(self.nodes.get(waiting.node)?.job)).collect()
    }

    /// Returns the jobs that wait for something before the gate of processes, whatever the gate says.
    pub(crate) fn before_gate(&self) -> Vec<JobId> {
        let process = |work: &&Work| {
            work.phase == Phase::Queued
                && matches!(&work.kind, Kind::Exec(exec) if exec.slot() == Slot::Process)
        };
        let mut jobs: Vec<JobId> = self.works.values().filter(process).flat_map(Work::jobs).collect();
        jobs.sort_unstable();
        jobs.dedup();
        jobs
    }

    /// Returns all work that an open build waits for, by whatever chain of vertices, or that is being saved.
    pub(crate) fn wanted_works(&self) -> HashSet<WorkId> {
        let mut live = HashMap::default();
        let mut wanted = HashSet::default();
        for (id, work) in &self.works {
            let waited_for = work.waiters.iter().any(|waiting| self.is_wanted(waiting.node, &mut live));
            if waited_for || work.phase == Phase::Saving {
                wanted.insert(*id);
            }
        }
        wanted
    }

    fn is_wanted(&self, id: NodeId, known: &mut HashMap<NodeId, bool>) -> bool {
        if let Some(known) = known.get(&id) {
            return *known;
        }
        // Users stand above their inputs, so this ends; graphs of simulations are not deep.
        let wanted = self.nodes.get(id).is_some_and(|node| {
            node.outs.iter().flat_map(|out| &out.waiters).any(|waiter| match waiter.who {
                Who::Build(build) => self.builds.contains_key(&build),
                Who::Node { node, epoch, .. } => self.waits(node, epoch) && self.is_wanted(node, known),
            })
        });
        known.insert(id, wanted);
        wanted
    }
}
