//! Executions: found by cache key, looked up a last time, run, saved, handed to all who wait.

use std::sync::Arc;

use kiln_digest::Digest;

use crate::error::{OpError, OpErrorKind, Result};
use crate::key::{KeyDigest, KeyId};
use crate::keys::{CacheRecord, KeyAndSelector, NewKey};
use crate::op::{Op, ResultRef, Slot};
use crate::outcome::{Hit, Matched, Outcome};
use crate::reason::{InputFacts, RunFacts};
use crate::scheduler::node::{Done, Level, Node, NodeId, sort_best_last};
use crate::scheduler::work::{Kind, Phase, Work};
use crate::scheduler::{
    Asker, Call, Completion, Effect, Found, JobId, Query, QueryId, Reply, Scheduler, WorkId,
};
use crate::tables::{HashMap, push_tight};
use crate::vertex::OutputIndex;

/// One run of an op, for all outputs.
#[derive(Debug)]
pub(super) struct Exec {
    op: Arc<dyn Op>,
    inputs: Vec<Option<ResultRef>>,
    keys: ExecKeys,
    forced: bool,
    /// The outputs for which a last look-up is made; those its first node wants.
    wanted: Vec<OutputIndex>,
    /// What that look-up found for the output in turn.
    ids: Vec<KeyId>,
    records: Vec<CacheRecord>,
    loading: Option<CacheRecord>,
    /// Results, by look-up so far or complete.
    finished: Vec<Finished>,
    ran: bool,
    raw: Vec<Option<ResultRef>>,
    /// How many nodes of which job have its results.
    holders: HashMap<JobId, usize>,
}

/// What identifies an execution. Two that share a digest and, for each input, an alternative, are the same; so are two
/// that share a name, whichever ways have led there.
#[derive(Clone, Debug)]
struct ExecKeys {
    digests: Vec<KeyDigest>,
    inputs: Vec<InputKeys>,
    /// Names that look-ups have found for what is wanted, without a result that could be loaded.
    names: Vec<KeyId>,
}

#[derive(Clone, Debug, Default)]
struct InputKeys {
    /// By definition or content, for look-ups.
    offered: Vec<KeyAndSelector>,
    /// Only for saving: an input that was made anew is not what these have stood for.
    hidden: Vec<KeyAndSelector>,
    /// Stands for an input without offered keys of its own: the very run that made it.
    fresh: Option<Alternative>,
    content: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Alternative {
    /// Of a source: there are no inputs.
    Source,
    Key(KeyAndSelector),
    Run(WorkId, OutputIndex, Option<Digest>),
}

#[derive(Clone, Debug)]
struct Finished {
    output: OutputIndex,
    result: Option<ResultRef>,
    outcome: Outcome,
    ids: Vec<KeyId>,
    hidden: Vec<KeyId>,
}

/// Finds executions by what identifies them.
#[derive(Debug, Default)]
pub(super) struct WorkIndex(HashMap<IndexKey, Vec<WorkId>>);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum IndexKey {
    /// An op and one of its inputs, by number; of a source, number 0.
    Input(KeyDigest, usize, Alternative),
    Name(KeyId),
}

impl Exec {
    pub(super) fn slot(&self) -> Slot {
        self.op.slot()
    }

    pub(super) fn call(&self) -> Call {
        Call::Exec { op: Arc::clone(&self.op), inputs: self.inputs.clone() }
    }

    #[cfg(any(test, feature = "testing"))]
    pub(super) fn inspect(&self) -> crate::scheduler::Execution {
        crate::scheduler::Execution {
            digests: self.keys.digests.clone(),
            deps: self.keys.offered(),
            outputs: self.wanted.clone(),
            forced: self.forced,
            slot: self.slot(),
        }
    }

    fn add_holder(&mut self, job: JobId) {
        *self.holders.entry(job).or_default() += 1;
    }

    /// Whether it makes, or has made, this output.
    fn gives(&self, output: OutputIndex) -> bool {
        self.ran || self.finished.iter().any(|finished| finished.output == output)
    }
}

impl ExecKeys {
    /// Returns by what an input is found, that of a source for number 0 if there are none.
    fn index_keys_of(&self, input: usize) -> impl Iterator<Item = IndexKey> + '_ {
        let alternatives: Vec<_> = match self.inputs.get(input) {
            None => vec![Alternative::Source],
            Some(input) => input.alternatives().collect(),
        };
        self.digests.iter().flat_map(move |digest| {
            alternatives.clone().into_iter().map(move |one| IndexKey::Input(*digest, input, one))
        })
    }

    fn index_keys(&self) -> impl Iterator<Item = IndexKey> + '_ {
        let inputs = (0..self.inputs.len().max(1)).flat_map(|input| self.index_keys_of(input));
        inputs.chain(self.names.iter().cloned().map(IndexKey::Name))
    }

    /// Whether a name, or else a digest and an alternative of each input, is in common.
    fn agrees(&self, other: &Self) -> bool {
        if self.names.iter().any(|name| other.names.contains(name)) {
            return true;
        }
        self.digests.iter().any(|digest| other.digests.contains(digest))
            && self.inputs.len() == other.inputs.len()
            && self.inputs.iter().zip(&other.inputs).all(|(ours, theirs)| {
                ours.alternatives().any(|ours| theirs.alternatives().any(|t| t == ours))
            })
    }

    fn offered(&self) -> Vec<Vec<KeyAndSelector>> {
        self.inputs.iter().map(|input| input.offered.clone()).collect()
    }

    /// Returns the keys to save an output under, and for each whether it is hidden from users in this job.
    fn to_save(&self, output: OutputIndex, forced: bool) -> Vec<(NewKey, bool)> {
        let mut keys = Vec::new();
        let hidden = |input: &InputKeys| {
            if input.hidden.is_empty() { savable(&input.offered) } else { input.hidden.clone() }
        };
        let any_hidden = self.inputs.iter().any(|input| !input.hidden.is_empty());
        let offered = self.inputs.iter().map(|input| savable(&input.offered)).collect();
        let variants = [
            (offered, forced),
            (if any_hidden { self.inputs.iter().map(hidden).collect() } else { vec![Vec::new()] }, true),
        ];
        for (deps, hidden) in variants {
            if deps.iter().all(|dep| !dep.is_empty()) {
                for digest in &self.digests {
                    keys.push((NewKey { digest: *digest, output, deps: deps.clone() }, hidden));
                }
            }
        }
        keys
    }
}

/// Leaves out the names that imported caches gave: what is saved has to be found without them.
fn savable(keys: &[KeyAndSelector]) -> Vec<KeyAndSelector> {
    keys.iter().filter(|key| !key.key.is_imported()).cloned().collect()
}

impl InputKeys {
    fn alternatives(&self) -> impl Iterator<Item = Alternative> + '_ {
        self.offered.iter().cloned().map(Alternative::Key).chain(self.fresh.clone())
    }
}

impl WorkIndex {
    fn add(&mut self, id: WorkId, exec: &Exec) {
        for key in exec.keys.index_keys() {
            push_tight(self.0.entry(key).or_default(), id);
        }
    }

    pub(super) fn remove(&mut self, id: WorkId, exec: &Exec) {
        for key in exec.keys.index_keys() {
            if let Some(works) = self.0.get_mut(&key) {
                works.retain(|work| *work != id);
                if works.is_empty() {
                    self.0.remove(&key);
                }
            }
        }
    }

    /// Returns the executions that may be the same: all under the input that has the fewest. A base that a thousand
    /// steps stand on tells nothing.
    fn candidates(&self, keys: &ExecKeys) -> Vec<WorkId> {
        let under = |key: IndexKey| self.0.get(&key).map(Vec::as_slice).unwrap_or_default();
        let count = |input: &usize| keys.index_keys_of(*input).map(|key| under(key).len()).sum::<usize>();
        let rarest = (0..keys.inputs.len().max(1)).min_by_key(count).unwrap_or_default();
        let names = keys.names.iter().cloned().map(IndexKey::Name);
        names.chain(keys.index_keys_of(rarest)).flat_map(under).copied().collect()
    }

    #[cfg(any(test, feature = "testing"))]
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Scheduler {
    /// Makes a node whose inputs are all there wait for its execution.
    pub(super) fn want_exec(&mut self, id: NodeId, effects: &mut Vec<Effect>) {
        let mut keys = self.exec_keys(id);
        let node = &self.nodes[id];
        let wanted: Vec<_> =
            node.outs.iter().filter(|out| out.lacks_result()).map(|out| out.output).collect();
        let Some(first) = wanted.first().copied() else { return };
        if !node.forced() {
            let known = wanted.iter().filter_map(|output| node.out(*output));
            keys.names = known.flat_map(|out| out.ids.iter().cloned()).collect();
        }
        let candidates = self.index.candidates(&keys);
        let found = candidates.into_iter().find(|work| self.may_join(*work, node, &keys, &wanted));
        if let Some(work) = found {
            if self.works.get(&work).is_some_and(|work| work.phase != Phase::Done) {
                return self.join_work(work, id, first, effects);
            }
            let (job, vertex) = (node.job, node.vertex().digest);
            self.adopt(id, work, Some(Outcome::Shared), effects);
            effects.push(Effect::Cached { job, vertex, outcome: Outcome::Shared });
            return self.check_outputs(id, effects);
        }
        let exec = Exec {
            op: Arc::clone(&node.vertex().op),
            inputs: node.inputs.iter().map(|(below, output)| self.result_of(*below, *output)).collect(),
            keys,
            forced: node.forced(),
            wanted,
            ids: Vec::new(),
            records: Vec::new(),
            loading: None,
            finished: Vec::new(),
            ran: false,
            raw: Vec::new(),
            holders: HashMap::default(),
        };
        let work = WorkId(self.fresh_id());
        self.index.add(work, &exec);
        self.works.insert(work, Work::exec(exec));
        self.join_work(work, id, first, effects);
        self.probe(work, effects);
    }

    /// Whether a node may wait for this execution instead of running its own.
    fn may_join(&self, work: WorkId, node: &Node, keys: &ExecKeys, wanted: &[OutputIndex]) -> bool {
        let Some(Work { kind: Kind::Exec(exec), phase, .. }) = self.works.get(&work) else { return false };
        let done = *phase == Phase::Done;
        if !exec.keys.agrees(keys) || (done && !wanted.iter().all(|output| exec.gives(*output))) {
            return false;
        }
        // Who ignores the cache takes nothing that may come from it, nor what others have finished before.
        !node.forced() || (exec.forced && (!done || exec.holders.contains_key(&node.job)))
    }

    fn result_of(&self, id: NodeId, output: OutputIndex) -> Option<ResultRef> {
        self.nodes[id].out(output)?.done.as_ref()?.result.clone()
    }

    fn exec_keys(&self, id: NodeId) -> ExecKeys {
        let node = &self.nodes[id];
        let keys = |(input, offered): (usize, Vec<KeyAndSelector>)| {
            let (below, output) = node.inputs[input];
            let selector = node.dep(input).selector;
            let mut keys = InputKeys { offered, ..InputKeys::default() };
            keys.content = node.contents[input].is_some();
            let Some(out) = self.nodes[below].out(output) else { return keys };
            keys.hidden =
                out.hidden.iter().map(|key| KeyAndSelector { key: key.clone(), selector }).collect();
            if out.ids.is_empty() {
                let run = out.done.as_ref().and_then(|done| done.work);
                keys.fresh = run.map(|work| Alternative::Run(work, output, selector));
            }
            keys
        };
        let inputs = self.known_keys(id).into_iter().enumerate().map(keys).collect();
        ExecKeys { digests: node.digests(), inputs, names: Vec::new() }
    }

    /// Looks a last time, for an output in turn, before running: since the node looked, somebody else may have saved
    /// the result. From here to the end of the run nobody else with these keys looks or runs.
    fn probe(&mut self, id: WorkId, effects: &mut Vec<Effect>) {
        let query = QueryId(self.fresh_id());
        let Some(exec) = self.exec_mut(id) else { return };
        let next = exec.wanted.get(exec.finished.len()).copied();
        let deps = exec.keys.offered();
        let Some(output) = next.filter(|_| !exec.forced && deps.iter().all(|dep| !dep.is_empty())) else {
            return self.enqueue(id, effects);
        };
        let digests = exec.keys.digests.clone();
        let mut jobs = Vec::new();
        if let Some(work) = self.works.get_mut(&id) {
            work.phase = Phase::Probing;
            jobs = work.jobs();
        }
        self.queries.insert(query, Asker::Work(id));
        effects.push(Effect::Query(Query { id: query, digests, deps, output, jobs, records: true }));
    }

    pub(super) fn probe_found(&mut self, id: WorkId, found: Result<Found>, effects: &mut Vec<Effect>) {
        if self.works.get(&id).is_none_or(|work| work.waiters.is_empty()) {
            return self.remove_work(id, None, effects);
        }
        let found = match found {
            Ok(found) => found,
            Err(error) => return self.exec_failed(id, &OpError::failed(error), effects),
        };
        let Some(exec) = self.exec_mut(id) else { return };
        exec.ids = found.keys.iter().map(|(key, _)| key.clone()).collect();
        exec.records.clear();
        for record in found.keys.into_iter().flat_map(|(_, records)| records) {
            if exec.records.iter().all(|known| known.id != record.id) {
                exec.records.push(record);
            }
        }
        sort_best_last(&mut exec.records);
        self.probe_load(id, effects);
    }

    /// Tries the best record that the last look-up found; without any, the op has to run.
    pub(super) fn probe_load(&mut self, id: WorkId, effects: &mut Vec<Effect>) {
        let Some(exec) = self.exec_mut(id) else { return };
        exec.loading = exec.loading.take().or_else(|| exec.records.pop());
        let Some(record) = exec.loading.clone() else {
            exec.finished.clear();
            return self.enqueue(id, effects);
        };
        if let Some(work) = self.works.get_mut(&id) {
            work.phase = Phase::Loading;
            work.cancelled = false;
        }
        effects.push(Effect::Start { work: id, call: Call::Load { record } });
    }

    pub(super) fn exec_done(&mut self, id: WorkId, reply: Reply, effects: &mut Vec<Effect>) {
        let Some(exec) = self.exec_mut(id) else { return };
        match reply {
            Reply::Load(loaded) => {
                let record = exec.loading.take();
                let (Ok(Some(loaded)), Some(record)) = (loaded, record) else {
                    return self.probe_load(id, effects);
                };
                exec.ids.extend(loaded.adopted);
                let content = exec.keys.inputs.iter().any(|input| input.content);
                let matched = if content { Matched::Content } else { Matched::Definition };
                let finished = Finished {
                    output: exec.wanted[exec.finished.len()],
                    result: loaded.result,
                    outcome: Outcome::Hit(Hit::new(&record, matched)),
                    ids: std::mem::take(&mut exec.ids),
                    hidden: Vec::new(),
                };
                exec.finished.push(finished);
                if exec.finished.len() == exec.wanted.len() {
                    self.deliver(id, effects);
                } else {
                    self.probe(id, effects);
                }
            }
            Reply::Exec(Ok(results)) => {
                exec.raw = results;
                exec.ran = true;
                let item = |(output, result): (usize, &Option<ResultRef>)| {
                    let output = OutputIndex(u32::try_from(output).unwrap_or(u32::MAX));
                    let keys = exec.keys.to_save(output, exec.forced);
                    (keys.into_iter().map(|(key, _)| key).collect(), result.clone())
                };
                let items = exec.raw.iter().enumerate().map(item).collect();
                if let Some(work) = self.works.get_mut(&id) {
                    work.phase = Phase::Saving;
                }
                effects.push(Effect::Start { work: id, call: Call::Save { items } });
            }
            Reply::Exec(Err(error)) => self.exec_failed(id, &error, effects),
            Reply::Save(Ok(saved)) => {
                let outcome = if exec.forced { Outcome::Forced } else { Outcome::Ran };
                exec.finished.clear();
                for (output, result) in std::mem::take(&mut exec.raw).into_iter().enumerate() {
                    let ids = saved.get(output).cloned().unwrap_or_default();
                    let output = OutputIndex(u32::try_from(output).unwrap_or(u32::MAX));
                    let keys = exec.keys.to_save(output, exec.forced);
                    let (mut offered, mut hidden) = (Vec::new(), Vec::new());
                    for (id, (_, is_hidden)) in ids.into_iter().zip(keys) {
                        let ids = if is_hidden { &mut hidden } else { &mut offered };
                        if !ids.contains(&id) {
                            ids.push(id);
                        }
                    }
                    exec.finished.push(Finished {
                        output,
                        result,
                        outcome: outcome.clone(),
                        ids: offered,
                        hidden,
                    });
                }
                self.deliver(id, effects);
            }
            Reply::Save(Err(error)) => self.exec_failed(id, &OpError::failed(error), effects),
            Reply::CacheMap(_) | Reply::ContentKey(_) | Reply::Lost => {}
        }
    }

    fn exec_failed(&mut self, id: WorkId, error: &OpError, effects: &mut Vec<Effect>) {
        let Some(work) = self.works.get_mut(&id) else { return };
        let waiters = std::mem::take(&mut work.waiters);
        let Some(exec) = self.exec_mut(id) else { return };
        let input = match error.kind() {
            OpErrorKind::LostInput(input) => input,
            _ => usize::MAX,
        };
        let lost = exec.inputs.get(input).cloned().flatten();
        // A vertex that is about to be run again shows as ended for now, and not as failed.
        let shown = lost.is_none().then(|| error.clone());
        self.remove_work(id, Some(Completion { cached: false, error: shown, outcome: None }), effects);
        self.call_failed(&waiters, input, lost, error, effects);
    }

    /// Hands the results to all who wait, and keeps them for others with the same keys while those live.
    fn deliver(&mut self, id: WorkId, effects: &mut Vec<Effect>) {
        let Some(work) = self.works.get_mut(&id) else { return };
        work.phase = Phase::Done;
        let waiters = std::mem::take(&mut work.waiters);
        let Some(exec) = self.exec_mut(id) else { return };
        exec.inputs.clear();
        exec.records.clear();
        let shown = Completion {
            cached: !exec.ran,
            error: None,
            outcome: exec.finished.first().map(|finished| finished.outcome.clone()),
        };
        effects.push(Effect::Ended { work: id, shown: Some(shown) });
        for waiting in &waiters {
            if self.still_waits(*waiting) {
                self.adopt(waiting.node, id, None, effects);
            }
        }
        for waiting in waiters {
            if self.still_waits(waiting) {
                self.waited(waiting.node);
                self.check_outputs(waiting.node, effects);
            }
        }
        self.drop_if_unheld(id, effects);
    }

    /// Gives a node the results of an execution.
    fn adopt(&mut self, id: NodeId, work: WorkId, outcome: Option<Outcome>, effects: &mut Vec<Effect>) {
        let job = self.nodes[id].job;
        let Some(exec) = self.exec_mut(work) else { return };
        exec.add_holder(job);
        let results = exec.finished.clone();
        let known = exec.keys.offered();
        let node = &mut self.nodes[id];
        node.held.push(work);
        let mut new = Vec::new();
        for finished in results {
            let out = node.out_mut(finished.output);
            if out.done.is_some() {
                continue;
            }
            let outcome = outcome.clone().unwrap_or(finished.outcome);
            out.done = Some(Done { result: finished.result, outcome, work: Some(work) });
            out.settled = Level::Slow;
            out.ids = finished.ids;
            out.hidden = finished.hidden;
            new.push(finished.output);
        }
        // Who came to it by other ways wants to be found by them next time.
        let ours = self.known_keys(id);
        let further =
            ours.iter().zip(&known).any(|(ours, known)| ours.iter().any(|key| !known.contains(key)));
        for output in new {
            if further {
                self.link(id, output, effects);
            }
            self.notify(id, output, effects);
        }
    }

    /// Fails a node whose op has run but does not have the output wanted.
    fn check_outputs(&mut self, id: NodeId, effects: &mut Vec<Effect>) {
        let node = &self.nodes[id];
        let ran = |work: &WorkId| matches!(self.works.get(work), Some(Work { kind: Kind::Exec(exec), .. }) if exec.ran);
        let missing = node.outs.iter().find(|out| out.lacks_result());
        if let Some(out) = missing
            && node.held.last().is_some_and(ran)
        {
            let error = OpError::failed(format!("op has no output {}", out.output.0));
            self.fail_vertex(id, error, effects);
        }
    }

    /// Makes an output's keys findable through all alternatives of its inputs.
    pub(super) fn link(&mut self, id: NodeId, output: OutputIndex, effects: &mut Vec<Effect>) {
        let deps: Vec<_> = self.known_keys(id).iter().map(|keys| savable(keys)).collect();
        if deps.is_empty() || deps.iter().any(Vec::is_empty) {
            return;
        }
        let node = &self.nodes[id];
        let Some(out) = node.out(output) else { return };
        for digest in node.digests() {
            for to in out.ids.iter().filter(|key| !key.is_imported()) {
                let key = NewKey { digest, output, deps: deps.clone() };
                effects.push(Effect::Link { key, to: to.clone() });
            }
        }
    }

    /// A node has an execution's results no more.
    pub(super) fn release(&mut self, id: NodeId, work: WorkId, effects: &mut Vec<Effect>) {
        let node = &mut self.nodes[id];
        let Some(position) = node.held.iter().position(|held| *held == work) else { return };
        node.held.swap_remove(position);
        let job = node.job;
        if let Some(exec) = self.exec_mut(work)
            && let Some(count) = exec.holders.get_mut(&job)
        {
            *count -= 1;
            if *count == 0 {
                exec.holders.remove(&job);
            }
        }
        self.drop_if_unheld(work, effects);
    }

    fn drop_if_unheld(&mut self, id: WorkId, effects: &mut Vec<Effect>) {
        if let Some(Work { kind: Kind::Exec(exec), phase: Phase::Done, .. }) = self.works.get(&id)
            && exec.holders.is_empty()
        {
            self.remove_work(id, None, effects);
        }
    }

    /// Says what an execution is about to run for, to find out why it has to.
    pub(crate) fn facts(&self, id: WorkId) -> Option<RunFacts> {
        let work = self.works.get(&id)?;
        let Kind::Exec(exec) = &work.kind else { return None };
        let node = self.nodes.get(work.waiters.first()?.node)?;
        let input = |(keys, (below, _)): (&InputKeys, &(NodeId, OutputIndex))| InputFacts {
            name: self.nodes.get(*below).map(|below| below.vertex().name.clone()).unwrap_or_default(),
            offered: keys.offered.clone(),
            content: keys.content,
            anew: self.nodes.get(*below).is_some_and(Node::forced),
        };
        Some(RunFacts {
            name: node.vertex().name.clone(),
            digests: exec.keys.digests.clone(),
            output: exec.wanted.first().copied().unwrap_or_default(),
            forced: exec.forced,
            inputs: exec.keys.inputs.iter().zip(&node.inputs).map(input).collect(),
        })
    }

    fn exec_mut(&mut self, id: WorkId) -> Option<&mut Exec> {
        match &mut self.works.get_mut(&id)?.kind {
            Kind::Exec(exec) => Some(exec),
            Kind::Simple { .. } => None,
        }
    }
}
