//! Integration tests through the real binaries. `cargo xtask integration` builds what they need and runs them.
