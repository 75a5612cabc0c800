//! buildctl.
fn main() {}
