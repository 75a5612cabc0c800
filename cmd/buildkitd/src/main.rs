//! buildkitd.
fn main() {}
