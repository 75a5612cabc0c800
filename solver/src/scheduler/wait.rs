//! Waiting: who wants how much of which edge, and what happens when it is there, fails or is wanted no more.

use std::cmp::Reverse;

use crate::error::SolveError;
use crate::scheduler::node::{Level, NodeId, Stage, Waiter, Who};
use crate::scheduler::{Effect, JobId, Scheduler, WorkId};
use crate::tables::push_tight;
use crate::vertex::OutputIndex;

impl Scheduler {
    /// Asks for an edge up to `level`; returns whether it is known so far already. If not, `who` is told later.
    pub(super) fn demand(&mut self, id: NodeId, output: OutputIndex, level: Level, who: Who) -> bool {
        let out = self.nodes[id].out_mut(output);
        if out.has(level) {
            return true;
        }
        push_tight(&mut out.waiters, Waiter { who, level });
        out.want(level);
        self.make_ready(id);
        false
    }

    /// Asks for some inputs of a node; returns whether all are known up to `level`. If not, the node waits.
    pub(super) fn demand_inputs(
        &mut self,
        id: NodeId,
        inputs: impl IntoIterator<Item = usize>,
        level: Level,
    ) -> bool {
        let epoch = self.nodes[id].wait.epoch;
        let mut all = true;
        for input in inputs {
            let (below, output) = self.nodes[id].inputs[input];
            if !self.demand(below, output, level, Who::Node { node: id, epoch, input }) {
                self.begin_wait(id, None);
                all = false;
            }
        }
        all
    }

    /// Makes a node wait for one thing more.
    pub(super) fn begin_wait(&mut self, id: NodeId, work: Option<WorkId>) {
        let node = &mut self.nodes[id];
        node.wait.pending += 1;
        if let Some(work) = work {
            push_tight(&mut node.wait.works, work);
        }
        if node.wait.pending == 1 {
            let job = node.job;
            if let Some(job) = self.jobs.get_mut(&job) {
                job.waiting.insert(id);
            }
        }
    }

    /// Takes note that one thing a node waits for has come; the node goes on when it was the last.
    pub(super) fn waited(&mut self, id: NodeId) {
        let node = &mut self.nodes[id];
        node.wait.pending = node.wait.pending.saturating_sub(1);
        if node.wait.pending == 0 {
            node.wait.works.clear();
            let job = node.job;
            if let Some(job) = self.jobs.get_mut(&job) {
                job.waiting.remove(&id);
            }
            self.make_ready(id);
        }
    }

    pub(super) fn make_ready(&mut self, id: NodeId) {
        let node = &mut self.nodes[id];
        if !node.ready {
            node.ready = true;
            self.ready.push_back(id);
        }
    }

    /// Returns the node if it still waits under this epoch.
    pub(super) fn waits(&self, id: NodeId, epoch: u64) -> bool {
        self.nodes.get(id).is_some_and(|node| node.wait.epoch == epoch)
    }

    /// Drops waiters that have gone, and what only they wanted.
    pub(super) fn prune(&mut self, id: NodeId) {
        let mut outs = std::mem::take(&mut self.nodes[id].outs);
        for out in &mut outs {
            out.waiters.retain(|waiter| match waiter.who {
                Who::Node { node, epoch, .. } => self.waits(node, epoch),
                Who::Build(build) => self.builds.contains_key(&build),
            });
            (out.want, out.want_keys) = Default::default();
            for level in out.waiters.iter().map(|waiter| waiter.level).collect::<Vec<_>>() {
                out.want(level);
            }
        }
        self.nodes[id].outs = outs;
    }

    /// Marks the unsatisfied outputs of a node as known up to `level`.
    pub(super) fn settle(&mut self, id: NodeId, level: Level, effects: &mut Vec<Effect>) {
        let node = &mut self.nodes[id];
        let source = node.inputs.is_empty();
        let mut changed = Vec::new();
        for out in node.outs.iter_mut().filter(|out| out.unsatisfied()) {
            // A key that is known needs no second way to be found; a source has some left to ask for.
            let level = if out.ids.is_empty() || source { level } else { Level::Slow };
            if level > out.settled {
                out.settled = level;
                changed.push(out.output);
            }
        }
        for output in changed {
            self.notify(id, output, effects);
        }
    }

    /// Marks the outputs whose keys were found as known: who asks for keys needs no contents on top.
    pub(super) fn settle_known(&mut self, id: NodeId, effects: &mut Vec<Effect>) {
        let mut changed = Vec::new();
        for out in self.nodes[id].outs.iter_mut().filter(|out| out.unsatisfied() && !out.ids.is_empty()) {
            if out.settled < Level::Slow {
                out.settled = Level::Slow;
                changed.push(out.output);
            }
        }
        for output in changed {
            self.notify(id, output, effects);
        }
    }

    /// Tells those who waited for no more of an output than is known now.
    pub(super) fn notify(&mut self, id: NodeId, output: OutputIndex, effects: &mut Vec<Effect>) {
        let out = self.nodes[id].out_mut(output);
        let unmatched = out.done.is_none() && out.ids.is_empty();
        let waiters = std::mem::take(&mut out.waiters);
        let (told, kept) = waiters.into_iter().partition(|waiter| out.has(waiter.level));
        out.waiters = kept;
        for waiter in told {
            match waiter.who {
                Who::Build(build) => self.build_got(build, effects),
                Who::Node { node: user, epoch, .. } if !self.waits(user, epoch) => {}
                Who::Node { node: user, epoch, input } if waiter.level == Level::Slow && unmatched => {
                    self.unmatched_input(user, input, effects);
                    if self.waits(user, epoch) {
                        // Its result is needed in any case, for its content if not for itself.
                        let ready = self.demand(id, output, Level::Complete, waiter.who);
                        debug_assert!(!ready, "an unmatched output has no result");
                    }
                }
                Who::Node { node: user, .. } => self.waited(user),
            }
        }
    }

    /// An input turned out to have no known key. Without a content key for it the user cannot be found either, and
    /// stops waiting for others' keys.
    fn unmatched_input(&mut self, user: NodeId, input: usize, effects: &mut Vec<Effect>) {
        let node = &mut self.nodes[user];
        if node.stage == (Stage::Lookup { slow: true }) && !node.dep(input).content {
            node.hopeless = true;
            let inputs: Vec<_> = node.inputs.iter().map(|(input, _)| *input).collect();
            self.doubtful.extend(inputs);
            self.stop_waiting(user, effects);
            self.make_ready(user);
        }
    }

    /// Makes a node wait for nothing, as if it had never asked.
    pub(super) fn stop_waiting(&mut self, id: NodeId, effects: &mut Vec<Effect>) {
        let epoch = self.fresh_id();
        let node = &mut self.nodes[id];
        node.wait.epoch = epoch;
        node.wait.pending = 0;
        let (job, works) = (node.job, std::mem::take(&mut node.wait.works));
        if let Some(job) = self.jobs.get_mut(&job) {
            job.waiting.remove(&id);
        }
        for work in works {
            self.leave_work(work, id, None, effects);
        }
    }

    /// Fails a node and all that wait for it. Nothing sticks: whoever asks again makes it try again.
    pub(super) fn fail(&mut self, id: NodeId, error: &SolveError, effects: &mut Vec<Effect>) {
        let mut failing = vec![id];
        let mut builds = Vec::new();
        while let Some(id) = failing.pop() {
            self.stop_waiting(id, effects);
            let mut waiters = Vec::new();
            for out in &mut self.nodes[id].outs {
                waiters.append(&mut out.waiters);
                (out.want, out.want_keys) = Default::default();
            }
            for waiter in waiters {
                match waiter.who {
                    Who::Build(build) => builds.push(build),
                    Who::Node { node, epoch, .. } if self.waits(node, epoch) => failing.push(node),
                    Who::Node { .. } => {}
                }
            }
        }
        for build in builds {
            self.end_build(build, Err(error.clone()), effects);
        }
    }

    /// Fails a node with an error of its own.
    pub(super) fn fail_vertex(
        &mut self,
        id: NodeId,
        source: crate::error::OpError,
        effects: &mut Vec<Effect>,
    ) {
        let vertex = self.nodes[id].vertex();
        let error = SolveError::Vertex { vertex: vertex.digest, name: vertex.name.clone(), source };
        self.fail(id, &error, effects);
    }

    /// Stops what nobody has asked for again since it was given up.
    pub(super) fn let_go(&mut self, effects: &mut Vec<Effect>) {
        while let Some(id) = self.doubtful.pop() {
            if self.nodes.get(id).is_none_or(|node| node.wait.pending == 0) {
                continue;
            }
            self.prune(id);
            if !self.nodes[id].unsatisfied() {
                self.doubtful.extend(self.nodes[id].inputs.iter().map(|(input, _)| *input));
                self.suspend(id, effects);
            }
        }
    }

    /// Takes a node's wishes back.
    fn suspend(&mut self, id: NodeId, effects: &mut Vec<Effect>) {
        self.stop_waiting(id, effects);
        for out in &mut self.nodes[id].outs {
            // Whoever waits for no more than is known is about to be told: an op has several outputs, and the first one
            // may have ended a build.
            let waiters = std::mem::take(&mut out.waiters);
            out.waiters = waiters.into_iter().filter(|waiter| out.has(waiter.level)).collect();
            (out.want, out.want_keys) = Default::default();
        }
    }

    /// Takes back the wishes of a job that none of its builds has any more: users first, so that what only they wanted
    /// follows. Whoever is still waited for forgets those that have gone; a job may ask and give up without end.
    pub(super) fn withdraw(&mut self, job: JobId, effects: &mut Vec<Effect>) {
        let Some(state) = self.jobs.get(&job) else { return };
        let mut waiting: Vec<_> = state.waiting.iter().copied().collect();
        waiting.sort_unstable_by_key(|id| Reverse(self.nodes[*id].seq));
        for id in waiting {
            self.prune(id);
            if !self.nodes[id].unsatisfied() {
                self.suspend(id, effects);
            }
        }
    }
}
