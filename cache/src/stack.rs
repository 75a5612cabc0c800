//! Stacks of layers: what merging and taking a difference mean.

use std::collections::HashSet;

use crate::{Error, RecordId, Ref, Result};

/// Layers that one state may have. Beyond this a definition is taken for hostile.
const MAX_LAYERS: usize = 10_000;

/// The layers of several states on top of each other. A layer that comes again higher up hides itself below, so only
/// the topmost occurrence stays; overlayfs would refuse a directory that is stacked twice.
pub(crate) fn merge(refs: &[Ref]) -> Result<Vec<Ref>> {
    // Of a state that comes several times only the topmost counts, so only that one is looked at.
    let mut states = HashSet::new();
    let stacks: Vec<Vec<Ref>> =
        refs.iter().rev().filter(|one| states.insert(one.id())).map(Ref::stack).collect();
    let mut seen: HashSet<&RecordId> = HashSet::new();
    let mut top_down = Vec::new();
    for stack in &stacks {
        for layer in stack.iter().rev() {
            if seen.insert(layer.id()) {
                top_down.push(layer.clone());
            }
        }
        if top_down.len() > MAX_LAYERS {
            return Err(Error::Unsupported(format!("a merge of more than {MAX_LAYERS} layers")));
        }
    }
    top_down.reverse();
    Ok(top_down)
}

/// The layers of `upper` above `lower`; none if `upper` was not built on it.
pub(crate) fn diff(lower: Option<&Ref>, upper: Option<&Ref>) -> Option<Vec<Ref>> {
    let lower = lower.map(Ref::stack).unwrap_or_default();
    let upper = upper.map(Ref::stack).unwrap_or_default();
    upper.strip_prefix(lower.as_slice()).map(<[Ref]>::to_vec)
}
