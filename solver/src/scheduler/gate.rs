//! A gate that lets jobs pass in turn.

use std::collections::{BTreeMap, VecDeque};

use crate::scheduler::{JobId, WorkId};
use crate::tables::HashMap;

/// Lets a number of works run at once and takes the next from each job in turn, so that none waits behind another's
/// hundred. A work that several jobs want stands in the queue of each, once; whoever comes first takes it along.
///
/// What stands here is exactly what jobs wait for: who leaves a queue leaves nothing behind, so a queue is never
/// longer than its job has nodes.
#[derive(Debug)]
pub(super) struct Gate {
    limit: usize,
    running: usize,
    /// By order of arrival.
    queues: HashMap<JobId, BTreeMap<u64, WorkId>>,
    places: HashMap<WorkId, Vec<(JobId, u64)>>,
    /// Every job that has a queue, the next to pass first. A queue that has run empty goes when its turn comes.
    turns: VecDeque<JobId>,
    arrived: u64,
}

impl Gate {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit: limit.max(1),
            running: 0,
            queues: HashMap::default(),
            places: HashMap::default(),
            turns: VecDeque::new(),
            arrived: 0,
        }
    }

    /// Puts a work into a job's queue, unless it stands there.
    pub(super) fn enqueue(&mut self, job: JobId, work: WorkId) {
        let places = self.places.entry(work).or_default();
        if places.iter().any(|(other, _)| *other == job) {
            return;
        }
        self.arrived += 1;
        places.push((job, self.arrived));
        let queue = self.queues.entry(job).or_insert_with(|| {
            self.turns.push_back(job);
            BTreeMap::new()
        });
        queue.insert(self.arrived, work);
    }

    /// Takes a work out of a job's queue.
    pub(super) fn withdraw(&mut self, job: JobId, work: WorkId) {
        let Some(places) = self.places.get_mut(&work) else { return };
        let Some(position) = places.iter().position(|(other, _)| *other == job) else { return };
        let (_, place) = places.swap_remove(position);
        if places.is_empty() {
            self.places.remove(&work);
        }
        if let Some(queue) = self.queues.get_mut(&job) {
            queue.remove(&place);
        }
    }

    /// Lets the next work pass, if there is room.
    pub(super) fn pass(&mut self) -> Option<WorkId> {
        if self.running >= self.limit {
            return None;
        }
        while let Some(job) = self.turns.pop_front() {
            let next = self.queues.get_mut(&job).and_then(BTreeMap::pop_first);
            let Some((_, work)) = next else {
                self.queues.remove(&job);
                continue;
            };
            self.turns.push_back(job);
            for (other, place) in self.places.remove(&work).unwrap_or_default() {
                if let Some(queue) = self.queues.get_mut(&other) {
                    queue.remove(&place);
                }
            }
            self.running += 1;
            return Some(work);
        }
        None
    }

    /// Takes note that a work that passed has ended.
    pub(super) fn leave(&mut self) {
        self.running = self.running.saturating_sub(1);
    }

    /// Forgets a job that waits for nothing any more.
    pub(super) fn forget(&mut self, job: JobId) {
        let queue = self.queues.remove(&job).unwrap_or_default();
        for work in queue.into_values() {
            if let Some(places) = self.places.get_mut(&work) {
                places.retain(|(other, _)| *other != job);
                if places.is_empty() {
                    self.places.remove(&work);
                }
            }
        }
        self.turns.retain(|other| *other != job);
    }

    #[cfg(any(test, feature = "testing"))]
    pub(super) fn is_empty(&self) -> bool {
        self.running == 0 && self.places.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passing(gate: &mut Gate) -> Vec<u64> {
        std::iter::from_fn(|| gate.pass().map(|work| work.0)).collect()
    }

    #[test]
    fn jobs_pass_in_turn() {
        let mut gate = Gate::new(4);
        for work in 0..10 {
            gate.enqueue(JobId(1), WorkId(work));
        }
        gate.enqueue(JobId(2), WorkId(20));
        gate.enqueue(JobId(3), WorkId(0));
        assert_eq!(passing(&mut gate), [0, 20, 1, 2]);
    }

    #[test]
    fn who_leaves_leaves_nothing_behind() {
        let mut gate = Gate::new(9);
        for _ in 0..100 {
            gate.enqueue(JobId(1), WorkId(1));
            gate.enqueue(JobId(2), WorkId(1));
            gate.enqueue(JobId(1), WorkId(2));
            gate.withdraw(JobId(1), WorkId(1));
        }
        assert_eq!(gate.queues.values().map(BTreeMap::len).sum::<usize>(), 2);
        assert_eq!(passing(&mut gate), [2, 1]);
        gate.enqueue(JobId(3), WorkId(3));
        gate.forget(JobId(3));
        assert_eq!(passing(&mut gate), [] as [u64; 0]);
        assert!(gate.places.is_empty() && gate.queues.is_empty() && gate.turns.is_empty());
    }

    #[test]
    fn a_queue_that_ran_empty_keeps_its_turn() {
        let mut gate = Gate::new(1);
        let mut passed = Vec::new();
        for round in 0..3 {
            for work in 0..5 {
                gate.enqueue(JobId(1), WorkId(round * 100 + work));
            }
            gate.enqueue(JobId(2), WorkId(round * 100 + 50));
            for _ in 0..3 {
                passed.extend(gate.pass().map(|work| work.0));
                gate.leave();
            }
        }
        assert_eq!(passed, [0, 50, 1, 150, 2, 3, 4, 250, 100]);
    }
}
