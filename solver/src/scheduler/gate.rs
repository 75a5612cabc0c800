//! A gate that lets jobs pass in turn.

use std::collections::{HashMap, VecDeque};

use crate::scheduler::{JobId, WorkId};

/// Lets a number of works run at once and takes the next from each job in turn, so that none waits behind another's
/// hundred. A work that several jobs want stands in the queue of each; whoever comes first takes it.
#[derive(Debug)]
pub(super) struct Gate {
    limit: usize,
    running: usize,
    queues: HashMap<JobId, VecDeque<WorkId>>,
    turns: VecDeque<JobId>,
}

impl Gate {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit: limit.max(1), running: 0, queues: HashMap::new(), turns: VecDeque::new() }
    }

    pub(super) fn enqueue(&mut self, job: JobId, work: WorkId) {
        let queue = self.queues.entry(job).or_insert_with(|| {
            self.turns.push_back(job);
            VecDeque::new()
        });
        queue.push_back(work);
    }

    /// Lets the next work for which `wanted` holds pass, if there is room.
    pub(super) fn pass(&mut self, mut wanted: impl FnMut(WorkId, JobId) -> bool) -> Option<WorkId> {
        if self.running >= self.limit {
            return None;
        }
        while let Some(job) = self.turns.pop_front() {
            let Some(queue) = self.queues.get_mut(&job) else { continue };
            let mut next = None;
            while let Some(work) = queue.pop_front() {
                if wanted(work, job) {
                    next = Some(work);
                    break;
                }
            }
            if queue.is_empty() {
                self.queues.remove(&job);
            } else {
                self.turns.push_back(job);
            }
            if next.is_some() {
                self.running += 1;
                return next;
            }
        }
        None
    }

    /// Takes note that a work that passed has ended.
    pub(super) fn leave(&mut self) {
        self.running = self.running.saturating_sub(1);
    }

    pub(super) fn forget(&mut self, job: JobId) {
        self.queues.remove(&job);
        self.turns.retain(|other| *other != job);
    }

    #[cfg(any(test, feature = "testing"))]
    pub(super) fn is_empty(&self) -> bool {
        self.running == 0 && self.queues.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_pass_in_turn() {
        let mut gate = Gate::new(4);
        for work in 0..10 {
            gate.enqueue(JobId(1), WorkId(work));
        }
        gate.enqueue(JobId(2), WorkId(20));
        gate.enqueue(JobId(3), WorkId(0));
        let mut started = Vec::new();
        while let Some(work) = gate.pass(|work, _| !started.contains(&work)) {
            started.push(work);
        }
        assert_eq!(started, [WorkId(0), WorkId(20), WorkId(1), WorkId(2)]);
    }
}
