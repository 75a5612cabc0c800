//! Sessions over a loopback, transfers against recorded ones, and laws of transfers.

mod harness;
mod recorded;
mod roundtrip;
mod services;
