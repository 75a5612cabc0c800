//! Sessions over a loopback, transfers against recorded ones, and laws of transfers.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking"
)]

mod harness;
mod recorded;
mod roundtrip;
mod services;
