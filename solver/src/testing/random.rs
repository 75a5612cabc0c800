//! Random numbers and random graphs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use kiln_digest::Digest;

use crate::error::Result;
use crate::op::Dep;
use crate::testing::script::Script;
use crate::vertex::{Graph, VertexDigest};

/// How much of a content counts.
const PREFIX: usize = 8;

/// A small generator of numbers (splitmix64): the same ones for the same seed, for ever.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// Makes one.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns the next number.
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Returns a number below `end`.
    pub const fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// Returns whether something happens that does so in `percent` of all cases.
    pub const fn chance(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }
}

/// A graph as plain numbers, any of which make a valid one.
#[derive(Clone, Debug, Default)]
pub struct GraphSpec {
    /// Its vertices.
    pub vertices: Vec<VertexSpec>,
}

/// A vertex as plain numbers.
#[derive(Clone, Debug, Default)]
pub struct VertexSpec {
    /// Which op; few enough of them that equal keys are frequent.
    pub op: u8,
    /// Its inputs: how far back, and which output.
    pub inputs: Vec<(u8, u8)>,
    /// Sets vertices apart that have equal keys.
    pub salt: u8,
    /// Whether it ignores the cache.
    pub forced: bool,
}

impl GraphSpec {
    /// Makes a random one of up to `size` vertices.
    pub fn random(rng: &mut Rng, size: usize, forced_percent: u64, failing_percent: u64) -> Self {
        let count = 1 + rng.below(size);
        let vertex = |index: usize| {
            let fan_in = if index == 0 { 0 } else { [0, 1, 1, 1, 2, 2, 3][rng.below(7)] };
            let near = |rng: &mut Rng| (rng.below(index.clamp(1, 4)) as u8, rng.below(2) as u8);
            let inputs = (0..fan_in).map(|_| near(rng)).collect();
            let op = if rng.chance(failing_percent) { 255 } else { rng.below(20) as u8 };
            VertexSpec { op, inputs, salt: rng.below(3) as u8, forced: rng.chance(forced_percent) }
        };
        Self { vertices: (0..count).map(vertex).collect() }
    }

    /// Makes the graph. Sources that are valid in one session only carry its number.
    ///
    /// # Errors
    /// None, whatever the numbers.
    pub fn graph(&self, session: usize, runs: &Arc<Mutex<HashMap<String, usize>>>) -> Result<Graph> {
        let mut vertices: Vec<crate::vertex::Vertex> = Vec::new();
        let mut digests = std::collections::HashMap::new();
        let mut places: Vec<u32> = Vec::new();
        let mut outputs: Vec<u32> = Vec::new();
        for (index, spec) in self.vertices.iter().enumerate() {
            let inputs: Vec<(u32, u32)> = spec
                .inputs
                .iter()
                .filter(|_| index > 0)
                .map(|(back, output)| {
                    let place = places[index - 1 - usize::from(*back) % index];
                    (place, u32::from(*output) % outputs[place as usize])
                })
                .collect();
            let script = script(spec.op, inputs.len(), session);
            let below: Vec<_> =
                inputs.iter().map(|(place, output)| (vertices[*place as usize].digest, *output)).collect();
            let digest = Digest::of(format!("{:?} {below:?} {} {}", script.keys, spec.salt, spec.forced));
            // Vertices with equal definitions are one.
            let place = *digests.entry(digest).or_insert_with(|| {
                let script_outputs = script.outputs as u32;
                let name = format!("{index} {} {}", script.label, spec.salt);
                let mut vertex = script.vertex(&name, &inputs, runs);
                vertex.digest = VertexDigest(digest);
                vertex.options.ignore_cache = spec.forced;
                vertices.push(vertex);
                outputs.push(script_outputs);
                (vertices.len() - 1) as u32
            });
            places.push(place);
        }
        Graph::new(vertices)
    }
}

const fn op_outputs(op: u8) -> u32 {
    if op % 5 == 4 { 2 } else { 1 }
}

fn script(op: u8, inputs: usize, session: usize) -> Script {
    let op_number = op % 5;
    let mut script = match (inputs, op % 4) {
        // Images: the first key is of the name they go by, the second of what they contain.
        (0, 0 | 1) => {
            let content = format!("img{}", op % 2);
            let mut script = Script::new(&format!("ref{op}"), 0);
            script.keys.push(content.clone());
            script.label = content;
            script
        }
        // Contexts: known in their session only.
        (0, 2) => {
            let mut script = Script::new(&format!("ctx-{}---{session}", op % 3), 0);
            script.random = true;
            script
        }
        (0, _) => Script::new(&format!("src{op_number}"), 0),
        _ => Script::new(&format!("op{op_number}/{inputs}"), inputs),
    };
    for input in 0..inputs {
        let kind = usize::from(op_number) + input;
        let selector = kind.is_multiple_of(2).then(|| Digest::of(b"/"));
        script.deps[input] = Dep { selector, content: kind.is_multiple_of(3) };
    }
    script.content_prefix = PREFIX;
    if inputs > 0 {
        script.outputs = op_outputs(op) as usize;
    }
    if op == 255 {
        script.keys = vec![format!("bad/{inputs}")];
        script.fails = Some("as told".to_owned());
    }
    if op.is_multiple_of(3) {
        script.slot = crate::op::Slot::Process;
    }
    script
}
