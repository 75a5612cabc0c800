//! The built-in runtime's helper as a program of its own, for programs that cannot be started again as one: tests.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    if kiln_runtime::is_helper() { ExitCode::from(kiln_runtime::run_helper()) } else { ExitCode::FAILURE }
}
