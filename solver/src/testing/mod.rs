//! For tests of users and implementations: an in-memory [`CacheKeys`](crate::CacheKeys), the conformance suite that
//! every implementation passes, scripted ops.

mod conformance;
mod memory_keys;
mod script;

pub use crate::testing::conformance::conformance;
pub use crate::testing::memory_keys::MemoryKeys;
pub use crate::testing::script::{Script, ScriptOp, Value};
