//! Ops that do what they are told.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use kiln_digest::Digest;

use crate::error::OpError;
use crate::key::KeyDigest;
use crate::op::{CacheMap, CacheMapPart, Dep, Op, OpContext, ResultRef, ResultValue, Slot};
use crate::vertex::{Edge, OutputIndex, Vertex, VertexDigest, VertexIndex, VertexOptions};

/// A result that is a text.
#[derive(Debug, PartialEq, Eq)]
pub struct Value(pub String);

impl ResultValue for Value {}

impl Value {
    /// Returns the text of a result, `nil` for a nil one.
    pub fn text(result: Option<&ResultRef>) -> &str {
        result.and_then(|result| result.downcast::<Self>()).map_or("nil", |value| value.0.as_str())
    }
}

/// What a scripted op does.
#[derive(Clone, Debug, Default)]
pub struct Script {
    /// Its cache maps' texts; the op digests are their sha256.
    pub keys: Vec<String>,
    /// Whether its keys are of the `random:` kind.
    pub random: bool,
    /// Per input.
    pub deps: Vec<Dep>,
    /// How many outputs it makes.
    pub outputs: usize,
    /// Its results are `label(inputs)`; inputs with a content key count with their content only.
    pub label: String,
    /// Its content key depends on the first so many characters of an input.
    pub content_prefix: usize,
    /// Its results say the how manieth run made them, so that no two runs agree.
    pub counts: bool,
    /// The error of its runs.
    pub fails: Option<String>,
    /// The gate it passes.
    pub slot: Slot,
}

/// An op that follows a [`Script`] and counts its runs.
#[derive(Debug)]
pub struct ScriptOp {
    script: Script,
    runs: Arc<Mutex<HashMap<String, usize>>>,
}

impl Script {
    /// Makes a script with one key and one output.
    pub fn new(key: &str, inputs: usize) -> Self {
        Self {
            keys: vec![key.to_owned()],
            deps: vec![Dep::default(); inputs],
            outputs: 1,
            label: key.to_owned(),
            content_prefix: usize::MAX,
            ..Self::default()
        }
    }

    /// Lets input number `input` have a content key.
    #[must_use]
    pub fn content(mut self, input: usize) -> Self {
        self.deps[input].content = true;
        self
    }

    fn map(&self, key: &str) -> CacheMap {
        let digest = Digest::of(key);
        let digest = if self.random { KeyDigest::Random(digest) } else { KeyDigest::Stable(digest) };
        CacheMap { digest, deps: self.deps.clone() }
    }

    /// Makes a vertex of it. `inputs` are positions with outputs. Runs are counted by label in `runs`.
    pub fn vertex(
        self,
        name: &str,
        inputs: &[(u32, u32)],
        runs: &Arc<Mutex<HashMap<String, usize>>>,
    ) -> Vertex {
        let edge = |(vertex, output): &(u32, u32)| Edge {
            vertex: VertexIndex(*vertex),
            output: OutputIndex(*output),
        };
        Vertex {
            digest: VertexDigest(Digest::of(name)),
            name: name.to_owned(),
            inputs: inputs.iter().map(edge).collect(),
            op: Arc::new(ScriptOp { script: self, runs: Arc::clone(runs) }),
            options: VertexOptions::default(),
        }
    }
}

#[async_trait]
impl Op for ScriptOp {
    async fn cache_map(&self, _: &OpContext, index: usize) -> Result<CacheMapPart, OpError> {
        let key = self.script.keys.get(index).ok_or_else(|| OpError::failed("no such cache map"))?;
        Ok(CacheMapPart { map: self.script.map(key), last: index + 1 >= self.script.keys.len() })
    }

    /// Of every other op, by its label.
    fn known_map(&self) -> Option<CacheMap> {
        let [key] = self.script.keys.as_slice() else { return None };
        let known = Digest::of(&self.script.label).as_bytes()[0].is_multiple_of(2);
        known.then(|| self.script.map(key))
    }

    async fn content_key(
        &self,
        _: &OpContext,
        _: usize,
        result: Option<&ResultRef>,
    ) -> Result<Digest, OpError> {
        Ok(Digest::of(Value::text(result).chars().take(self.script.content_prefix).collect::<String>()))
    }

    async fn exec(
        &self,
        _: &OpContext,
        inputs: Vec<Option<ResultRef>>,
    ) -> Result<Vec<Option<ResultRef>>, OpError> {
        let run = {
            let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
            let run = runs.entry(self.script.label.clone()).or_default();
            *run += 1;
            *run
        };
        if let Some(error) = &self.script.fails {
            return Err(OpError::failed(error.clone()));
        }
        let inputs: Vec<String> = inputs
            .iter()
            .zip(&self.script.deps)
            .map(|(input, dep)| {
                let text = Value::text(input.as_ref());
                let prefix = if dep.content { self.script.content_prefix } else { usize::MAX };
                text.chars().take(prefix).collect()
            })
            .collect();
        let output = |output: usize| -> Option<ResultRef> {
            let mut suffix = if output == 0 { String::new() } else { format!("#{output}") };
            if self.script.counts {
                suffix.push_str(&format!("-{run}"));
            }
            // Long chains would make texts of quadratic size.
            let mut text = format!("{}{suffix}({})", self.script.label, inputs.join(","));
            if text.len() > 256 {
                text = format!("{}{suffix}({})", self.script.label, Digest::of(&text));
            }
            Some(Arc::new(Value(text)))
        };
        Ok((0..self.script.outputs).map(output).collect())
    }

    fn slot(&self) -> Slot {
        self.script.slot
    }
}
