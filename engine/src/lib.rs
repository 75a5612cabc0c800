//! LLB operations on a worker: loading, executing, exporting.
