//! Why a vertex was found or had to run, as the status stream carries it.

use kiln_api::control::{VertexDifference, VertexReason};
use kiln_solver::{Difference, GoneWhy, Matched, Miss, Origin, Outcome, VertexEvent};

use crate::convert::timestamp;

/// The reason that the last event of a vertex has.
pub(crate) fn of(event: &VertexEvent) -> Option<VertexReason> {
    let mut reason = VertexReason::default();
    match &event.outcome {
        Some(Outcome::Hit(hit)) => {
            reason.outcome = "hit".to_owned();
            reason.record = hit.record.0.to_string();
            reason.origin = match &hit.origin {
                Origin::Imported(name) => name.to_string(),
                _ => String::new(),
            };
            reason.by_content = hit.matched == Matched::Content;
            reason.created = Some(timestamp(hit.created_at));
        }
        Some(Outcome::Shared) => reason.outcome = "shared".to_owned(),
        Some(Outcome::Forced) => reason.outcome = "forced".to_owned(),
        // A step that failed has run too, if it is known why.
        outcome => {
            if outcome.is_none() && event.miss.is_none() {
                return None;
            }
            reason.outcome = "ran".to_owned();
            if let Some(miss) = &event.miss {
                add_miss(&mut reason, miss);
            }
        }
    }
    Some(reason)
}

fn add_miss(reason: &mut VertexReason, miss: &Miss) {
    let kind = match miss {
        Miss::Session => "session",
        Miss::Same { created_at, gone } => {
            reason.created = Some(timestamp(*created_at));
            if let Some((at, why)) = gone {
                reason.gone = if *why == GoneWhy::Lost { "lost" } else { "pruned" }.to_owned();
                reason.gone_at = Some(timestamp(*at));
            }
            "same"
        }
        Miss::Differs { name, created_at, differences, further } => {
            reason.nearest.clone_from(name);
            reason.created = Some(timestamp(*created_at));
            reason.differences = differences.iter().map(difference).collect();
            reason.further = number(*further);
            "differs"
        }
        Miss::NotImported => "not imported",
        _ => "new",
    };
    reason.miss = kind.to_owned();
}

fn difference(difference: &Difference) -> VertexDifference {
    match difference {
        Difference::Op(change) => VertexDifference {
            kind: "op".to_owned(),
            name: change.name.clone(),
            was: change.was.clone(),
            now: change.is.clone(),
            hidden: change.hidden,
            ..VertexDifference::default()
        },
        Difference::Input { index, name, was, anew } => VertexDifference {
            kind: "input".to_owned(),
            name: if name.is_empty() { was.clone() } else { name.clone() },
            was: (!was.is_empty()).then(|| was.clone()),
            now: (!name.is_empty()).then(|| name.clone()),
            input: number(*index),
            anew: *anew,
            ..VertexDifference::default()
        },
        Difference::Content { index, name, change } => {
            let change = change.clone().unwrap_or_default();
            VertexDifference {
                kind: "content".to_owned(),
                name: name.clone(),
                was: change.was,
                now: change.is,
                input: number(*index),
                path: change.path,
                what: change.what,
                further: number(change.further),
                ..VertexDifference::default()
            }
        }
        _ => VertexDifference::default(),
    }
}

fn number(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}
