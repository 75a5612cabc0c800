use serde::Serialize;

use crate::status::Timestamp;

/// Why a step was found or had to run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Reason {
    /// `hit`, `shared` with a build that was still active, `forced` to ignore the cache, or `ran`.
    pub outcome: String,
    /// The record that was found.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub record: String,
    /// The imported cache that it came from; empty: the daemon's own.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub origin: String,
    /// Contents led to it, not definitions alone.
    #[serde(rename = "byContent", skip_serializing_if = "std::ops::Not::not")]
    pub by_content: bool,
    /// When the record, or what a run is compared with, was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<Timestamp>,
    /// Of a run: `new`, `session` for what holds in one session only, `same` for a step whose result has gone,
    /// `differs`, `not imported` for one that the imported caches lack and that nothing recorded here is like.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub miss: String,
    /// The step that a run is compared with.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub nearest: String,
    /// In what it differs, the decisive ones first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub differences: Vec<Difference>,
    /// How many further differences there are.
    #[serde(skip_serializing_if = "is_zero")]
    pub further: usize,
    /// `pruned` or `lost`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub gone: String,
    /// When that was.
    #[serde(rename = "goneAt", skip_serializing_if = "Option::is_none")]
    pub gone_at: Option<Timestamp>,
}

/// In what a step differs from the one it is compared with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// `op`, `input` or `content`.
    pub kind: String,
    /// The component of the operation, or the step that makes the input.
    pub name: String,
    /// What it was; none: it was not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub was: Option<String>,
    /// What it is; none: it is not there any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub now: Option<String>,
    /// The values are not shown.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub hidden: bool,
    /// Position of the input.
    #[serde(skip_serializing_if = "is_zero")]
    pub input: usize,
    /// The input was made anew without regard to the cache.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub anew: bool,
    /// Of a content: where; empty if that is not known.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// What of it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub what: String,
    /// In how many further places.
    #[serde(skip_serializing_if = "is_zero")]
    pub further: usize,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde calls")]
fn is_zero(n: &usize) -> bool {
    *n == 0
}
