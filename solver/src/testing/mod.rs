//! For tests of users and implementations: an in-memory [`CacheKeys`](crate::CacheKeys) and
//! [`KeySource`](crate::KeySource), the conformance suites that every implementation of these passes, scripted ops, random graphs, a naive evaluator, and a simulation of many jobs.

mod conformance;
mod memory_keys;
mod memory_source;
mod memos;
mod oracle;
mod random;
mod script;
mod simulation;
mod source_conformance;

pub use crate::testing::conformance::conformance;
pub use crate::testing::memory_keys::MemoryKeys;
pub use crate::testing::memory_source::MemorySource;
pub use crate::testing::memos::memo_conformance;
pub use crate::testing::oracle::Oracle;
#[cfg(test)]
pub(crate) use crate::testing::oracle::{
    context as oracle_context, expected as oracle_expected, now as oracle_now,
};
pub use crate::testing::random::{GraphSpec, Rng, VertexSpec};
pub use crate::testing::script::{Script, ScriptOp, Value};
pub use crate::testing::simulation::{Disturbances, Report, Summary, replay, simulate, simulate_many};
pub use crate::testing::source_conformance::{SourceEntry, source_conformance};
