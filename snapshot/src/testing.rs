//! For tests of this crate and others.
