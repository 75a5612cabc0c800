//! What a node does next.
//!
//! A node climbs from cheap knowledge to dear one, each time looking for its keys with all it knows by then: the keys
//! its inputs have by definition; then, of inputs that lead nowhere, those that contents of *their* inputs give; then
//! the content of inputs whose op wants that; and when nothing is found, all inputs are made and the op runs.

use crate::error::{OpError, Result};
use crate::keys::KeyAndSelector;
use crate::scheduler::node::{Level, NodeId, Out, Stage};
use crate::scheduler::work::{Work, WorkKey};
use crate::scheduler::{Asker, Call, Effect, Found, Query, QueryId, Scheduler};
use crate::vertex::OutputIndex;

impl Scheduler {
    /// Goes on with a node until it is satisfied or waits for something.
    pub(super) fn advance(&mut self, id: NodeId, effects: &mut Vec<Effect>) {
        if self.nodes.get(id).is_none() {
            return;
        }
        self.nodes[id].ready = false;
        if self.nodes[id].wait.pending > 0 {
            return;
        }
        self.prune(id);
        while self.nodes[id].wait.pending == 0 && self.nodes[id].unsatisfied() {
            if self.nodes[id].forced() {
                // Offers no key, whatever is known: its users are to see its new result.
                self.settle(id, Level::Slow, effects);
                if !self.nodes[id].incomplete() {
                    return;
                }
                self.make(id, effects);
                continue;
            }
            match self.nodes[id].stage.clone() {
                Stage::Start => self.begin(id, effects),
                Stage::Begun if self.nodes[id].maps.is_empty() && !self.want_map(id, 0, effects) => {}
                Stage::Begun => self.nodes[id].stage = Stage::Lookup { slow: false },
                Stage::Lookup { slow } => {
                    if !self.look(id, effects) {
                        self.look_further(id, slow, effects);
                    }
                }
                Stage::Contents(inputs) => {
                    if self.want_contents(id, &inputs, effects) {
                        let node = &mut self.nodes[id];
                        node.version += 1;
                        node.stage = Stage::Lookup { slow: true };
                    }
                }
                Stage::Inputs if !self.nodes[id].incomplete() => {
                    self.nodes[id].stage = Stage::Lookup { slow: true };
                }
                Stage::Inputs => self.make(id, effects),
            }
        }
    }

    /// Asks for the op's map and for the inputs' keys, which are needed in any case.
    fn begin(&mut self, id: NodeId, effects: &mut Vec<Effect>) {
        self.nodes[id].stage = Stage::Begun;
        if self.nodes[id].maps.is_empty() {
            self.want_map(id, 0, effects);
        }
        let inputs = 0..self.nodes[id].inputs.len();
        self.demand_inputs(id, inputs, Level::Fast);
    }

    /// Looks for keys and results with what is known. Returns whether that takes time.
    fn look(&mut self, id: NodeId, effects: &mut Vec<Effect>) -> bool {
        let node = &self.nodes[id];
        let version = node.version;
        let to_ask: Vec<_> = node
            .outs
            .iter()
            .filter(|out| out.unsatisfied())
            .filter(|out| out.looked < version || (out.lacks_result() && !out.looked_for_records))
            .map(|out| (out.output, out.lacks_result()))
            .collect();
        if !to_ask.is_empty() {
            let deps = self.known_keys(id);
            for (output, records) in to_ask {
                if deps.iter().any(Vec::is_empty) {
                    let out = self.nodes[id].out_mut(output);
                    out.looked = version;
                    out.looked_for_records = records;
                    out.reached = deps.iter().map(|dep| !dep.is_empty()).collect();
                } else {
                    self.ask(id, output, deps.clone(), records, effects);
                }
            }
        }
        if self.nodes[id].wait.pending == 0 {
            self.load(id, effects);
        }
        self.nodes[id].wait.pending > 0
    }

    fn ask(
        &mut self,
        node: NodeId,
        output: OutputIndex,
        deps: Vec<Vec<KeyAndSelector>>,
        records: bool,
        effects: &mut Vec<Effect>,
    ) {
        let id = QueryId(self.fresh_id());
        let (epoch, version) = (self.nodes[node].wait.epoch, self.nodes[node].version);
        self.queries.insert(id, Asker::Node { node, epoch, output, version, records });
        let digests = self.nodes[node].digests();
        let jobs = vec![self.nodes[node].job];
        effects.push(Effect::Query(Query { id, digests, deps, output, jobs, records }));
        self.begin_wait(node, None);
    }

    pub(super) fn node_found(
        &mut self,
        (id, output): (NodeId, OutputIndex),
        (version, records): (u32, bool),
        found: Result<Found>,
        effects: &mut Vec<Effect>,
    ) {
        let found = match found {
            Ok(found) => found,
            Err(error) => return self.fail_vertex(id, OpError::failed(error), effects),
        };
        let contents = self.nodes[id].contents.iter().any(Option::is_some);
        let out = self.nodes[id].out_mut(output);
        let was_unknown = out.ids.is_empty();
        out.looked = version;
        out.looked_for_records = records;
        out.reached = found.reached;
        for (key, records) in found.keys {
            if !out.ids.contains(&key) {
                out.ids.push(key);
            }
            out.add_records(records);
        }
        if was_unknown && !out.ids.is_empty() && contents {
            out.by_content = true;
            self.link(id, output, effects);
        }
        self.waited(id);
    }

    /// Tries the best record of each output whose result is wanted.
    fn load(&mut self, id: NodeId, effects: &mut Vec<Effect>) {
        let node = &mut self.nodes[id];
        let mut records = Vec::new();
        for out in node.outs.iter_mut().filter(|out| out.lacks_result()) {
            // One whose load was given up is tried again.
            if let Some(record) = out.loading.take().or_else(|| out.records.pop()) {
                out.loading = Some(record.clone());
                records.push((out.output, record));
            }
        }
        for (output, record) in records {
            let key = WorkKey::Load(record.id.clone());
            self.join_or_start(key, id, output, effects, |_| Call::Load { record });
        }
    }

    /// Nothing was found with what is known: gets to know more, or gives up.
    fn look_further(&mut self, id: NodeId, slow: bool, effects: &mut Vec<Effect>) {
        if self.nodes[id].inputs.is_empty() {
            return self.look_further_at_source(id, effects);
        }
        if !slow {
            self.settle(id, Level::Fast, effects);
            let node = &mut self.nodes[id];
            if node.unsatisfied() {
                node.stage = Stage::Lookup { slow: true };
                node.version += 1;
                self.demand_keys_of_lacking_inputs(id);
            }
            return;
        }
        self.settle_known(id, effects);
        let contents = if self.nodes[id].hopeless { Vec::new() } else { self.useful_contents(id) };
        if contents.is_empty() {
            self.settle(id, Level::Slow, effects);
            if self.nodes[id].unsatisfied() {
                self.nodes[id].stage = Stage::Inputs;
            }
        } else {
            self.nodes[id].stage = Stage::Contents(contents);
        }
    }

    /// A source has no inputs to ask, but may have further keys.
    fn look_further_at_source(&mut self, id: NodeId, effects: &mut Vec<Effect>) {
        let node = &self.nodes[id];
        let mut open = node.outs.iter().filter(|out| out.unsatisfied());
        let more = |out: &Out| out.ids.is_empty() || out.lacks_result() || out.want_keys == Level::Slow;
        if !node.maps_last && open.any(more) {
            let next = node.maps.len();
            self.want_map(id, next, effects);
            return;
        }
        let level = if node.maps_last { Level::Slow } else { Level::Fast };
        self.settle(id, level, effects);
        if self.nodes[id].unsatisfied() {
            self.nodes[id].stage = Stage::Inputs;
        }
    }

    /// Asks for the keys that contents give to inputs which lead nowhere by definition.
    fn demand_keys_of_lacking_inputs(&mut self, id: NodeId) {
        for input in self.lacking_inputs(id) {
            let node = &self.nodes[id];
            let (below, output) = node.inputs[input];
            let unmatched = self.nodes[below]
                .out(output)
                .is_some_and(|out| out.level() == Level::Slow && out.ids.is_empty());
            if unmatched && !node.dep(input).content {
                self.nodes[id].hopeless = true;
                return;
            }
            self.demand_inputs(id, [input], if unmatched { Level::Complete } else { Level::Slow });
        }
    }

    /// Returns the inputs through which some wanted output cannot be reached by definition.
    fn lacking_inputs(&self, id: NodeId) -> Vec<usize> {
        let node = &self.nodes[id];
        let open: Vec<&Out> = node.outs.iter().filter(|out| out.unsatisfied()).collect();
        let lacks = |input: &usize| open.iter().any(|out| !out.reached.get(*input).copied().unwrap_or(false));
        (0..node.inputs.len()).filter(lacks).collect()
    }

    /// Returns the inputs whose content may still lead to a key: those that lead nowhere otherwise, else all.
    fn useful_contents(&self, id: NodeId) -> Vec<usize> {
        let node = &self.nodes[id];
        let mut useful = vec![false; node.inputs.len()];
        for out in node.outs.iter().filter(|out| out.unsatisfied()) {
            let reached = |input: usize| out.reached.get(input).copied().unwrap_or(false);
            let open = |input: usize| node.contents[input].is_none() && node.dep(input).content;
            if (0..node.inputs.len()).any(|input| !reached(input) && !open(input)) {
                continue;
            }
            let unreached: Vec<_> = (0..node.inputs.len()).filter(|input| !reached(*input)).collect();
            if unreached.is_empty() {
                (0..node.inputs.len()).filter(|input| open(*input)).for_each(|input| useful[input] = true);
            } else {
                unreached.into_iter().for_each(|input| useful[input] = true);
            }
        }
        (0..useful.len()).filter(|input| useful[*input]).collect()
    }

    /// Makes a node's result: all inputs, all that its keys can be saved under, then the run.
    fn make(&mut self, id: NodeId, effects: &mut Vec<Effect>) {
        let inputs = self.nodes[id].inputs.len();
        if !self.demand_inputs(id, 0..inputs, Level::Complete) {
            return;
        }
        // Under all keys of sources, so that whoever comes by another one finds the run, or later its result.
        if !self.demand_inputs(id, 0..inputs, Level::Slow) {
            return;
        }
        while !self.nodes[id].maps_last {
            let next = self.nodes[id].maps.len();
            if !self.want_map(id, next, effects) {
                return;
            }
        }
        let node = &self.nodes[id];
        let contents: Vec<_> = (0..inputs).filter(|input| node.dep(*input).content).collect();
        if self.want_contents(id, &contents, effects) {
            self.want_exec(id, effects);
        }
    }

    /// Asks for the op's map number `index`; returns whether it is there.
    fn want_map(&mut self, id: NodeId, index: usize, effects: &mut Vec<Effect>) -> bool {
        let node = &mut self.nodes[id];
        let digest = node.vertex().digest;
        let shared = self.shared.entry(digest).or_default();
        if shared.maps.is_empty()
            && let Some(map) = node.vertex().op.known_map().filter(|map| map.deps.len() == node.inputs.len())
        {
            // Anything else about it is for the call to find out, and to fail with.
            shared.maps.push(std::sync::Arc::new(map));
            shared.last = true;
        }
        if let Some(map) = shared.maps.get(index) {
            node.maps.push(std::sync::Arc::clone(map));
            node.maps_last = shared.last && shared.maps.len() == index + 1;
            node.version += 1;
            return true;
        }
        self.join_or_start(WorkKey::Map(digest, index), id, OutputIndex(0), effects, |node| Call::CacheMap {
            op: std::sync::Arc::clone(&node.vertex().op),
            index,
        });
        false
    }

    /// Asks for the content keys of these inputs; returns whether all are there.
    fn want_contents(&mut self, id: NodeId, inputs: &[usize], effects: &mut Vec<Effect>) -> bool {
        let missing: Vec<_> =
            inputs.iter().copied().filter(|input| self.nodes[id].contents[*input].is_none()).collect();
        if !self.demand_inputs(id, missing.iter().copied(), Level::Complete) {
            return false;
        }
        for input in &missing {
            let (below, output) = self.nodes[id].inputs[*input];
            let Some(done) = self.nodes[below].out(output).and_then(|out| out.done.as_ref()) else {
                continue;
            };
            let result = done.result.clone();
            let digest = self.nodes[id].vertex().digest;
            let key = WorkKey::Content(digest, *input, Work::address(result.as_ref()));
            self.join_or_start(key, id, OutputIndex(0), effects, |node| Call::ContentKey {
                op: std::sync::Arc::clone(&node.vertex().op),
                input: *input,
                result,
            });
        }
        missing.is_empty()
    }

    /// Returns, per input, the keys it offers: by definition, and by content as far as computed.
    pub(super) fn known_keys(&self, id: NodeId) -> Vec<Vec<KeyAndSelector>> {
        let node = &self.nodes[id];
        let keys = |(input, (below, output)): (usize, &(NodeId, OutputIndex))| {
            let mut keys = Vec::new();
            if let Some(out) = self.nodes[*below].out(*output) {
                keys.extend(out.alternatives(node.dep(input).selector));
            }
            let content = node.contents[input].as_ref();
            keys.extend(content.map(|(_, key)| KeyAndSelector { key: key.clone(), selector: None }));
            keys
        };
        node.inputs.iter().enumerate().map(keys).collect()
    }
}
