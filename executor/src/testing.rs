//! For tests of executors: the conformance suite.

pub mod conformance;
