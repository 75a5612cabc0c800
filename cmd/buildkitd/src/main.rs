//! The build daemon: flags, configuration, composition, and nothing else.
#![forbid(unsafe_code)]

mod args;
mod check;
mod compose;
mod config;
mod listen;
mod logging;
mod networks;
mod notify;
mod place;
mod platforms;
mod settings;
mod signals;
mod units;

use std::process::ExitCode;

use anyhow::{Context, Result};
use kiln_runtime::Ids;

use crate::args::Args;
use crate::place::Place;
use crate::settings::Settings;

/// The version of the reference whose behaviour this daemon has, with our own as build metadata.
const VERSION: &str = concat!("v0.32.2+kiln.", env!("CARGO_PKG_VERSION"));
const PACKAGE: &str = "github.com/moby/buildkit";

#[expect(
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "the command line answers before there is a log"
)]
fn main() -> ExitCode {
    // First of all: the runtime's helper is this program under another name, and has one thread.
    if kiln_runtime::is_helper() {
        return ExitCode::from(kiln_runtime::run_helper());
    }
    let args = match Args::parse_go_style(std::env::args_os()) {
        Ok(args) => args,
        Err(error) => {
            let code = if error.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
            error.print().ok();
            return code;
        }
    };
    if args.version {
        println!("buildkitd {PACKAGE} {VERSION} kiln");
        return ExitCode::SUCCESS;
    }
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("buildkitd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    // Before there is another thread: a process moves as a whole.
    let ids = match rustix::process::geteuid().is_root() {
        true => None,
        false => Some(kiln_runtime::enter_user_namespace().context(
            "cannot make a user namespace to run in as an ordinary user: run the daemon as root, or with RootlessKit",
        )?),
    };
    let place = Place::find(ids.is_some());
    let settings = Settings::load(args, &place)?;
    logging::init(&settings);
    if let Some(Ids::RootOnly(reason)) = ids {
        tracing::warn!(
            reason,
            "steps have one user id: what belongs to other users than root cannot be made or unpacked"
        );
    }
    if !settings.without_effect.is_empty() {
        tracing::warn!(settings = settings.without_effect.join(", "), "these settings have no effect yet");
    }
    // File modes of results are exact: the umask has no say.
    rustix::process::umask(rustix::fs::Mode::empty());
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(std::thread::available_parallelism().map_or(2, usize::from))
        .thread_name("buildkitd")
        .enable_all()
        .build()
        .context("failed to start the runtime")?;
    let outcome = match args.fsck.as_deref() {
        Some(how) => runtime.block_on(check::run(&settings, how == "repair")),
        None => runtime.block_on(compose::serve(settings)),
    };
    // Blocking work that ignores its cancellation must not keep the process from ending.
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    outcome
}

/// Many files are open at once while trees are walked and streams are served.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let now = getrlimit(Resource::Nofile);
    let wanted = Rlimit { current: now.maximum, maximum: now.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, wanted) {
        tracing::debug!(%error, "limit of open files not raised");
    }
}
