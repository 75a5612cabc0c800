//! What a step costs without an engine: runs `true` in a container so many times and prints the seconds of each.
//! `bare_step [RUNTIME [TIMES]]`; wants root and the static busybox.

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use kiln_executor::{ContainerId, Executor as _, Output, ProcessIo, ProcessSpec, StepMount};
use kiln_snapshot::Mount;
use kiln_worker_runc::{RuncExecutor, RuncOptions};
use tokio_util::sync::CancellationToken;

const BUSYBOX: &str = "/bin/busybox";

fn main() -> Result<ExitCode, Box<dyn Error>> {
    if kiln_runtime::is_helper() {
        return Ok(ExitCode::from(kiln_runtime::run_helper()));
    }
    let mut args = std::env::args().skip(1);
    let runtime = args.next().unwrap_or_else(|| "builtin".to_owned());
    let times = args.next().map_or(Ok(100), |times| times.parse())?;
    let tokio = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    tokio.block_on(run(&runtime, times))?;
    Ok(ExitCode::SUCCESS)
}

#[expect(clippy::print_stdout, reason = "the numbers are what it is for")]
async fn run(runtime: &str, times: usize) -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let base = dir.path().join("base");
    std::fs::create_dir_all(base.join("bin"))?;
    std::fs::copy(BUSYBOX, base.join("bin/true"))?;
    let mut options = RuncOptions::new(dir.path().join("executor"));
    options.binary = Some(runtime.to_owned());
    let executor = RuncExecutor::open(options)?;
    for number in 0..times {
        let root = root(dir.path(), &base, number)?;
        let process = ProcessSpec { args: vec!["/bin/true".to_owned()], ..ProcessSpec::default() };
        let id = ContainerId::new(format!("b{}step{number}", std::process::id()))?;
        let (sender, mut output) = tokio::sync::mpsc::channel::<Output>(4);
        let begun = Instant::now();
        let (io, cancel) = (ProcessIo::new(sender), CancellationToken::new());
        let running = executor.run(&id, root, Vec::new(), process, io, None, cancel);
        let (exit, ()) = tokio::join!(running, async { while output.recv().await.is_some() {} });
        let took = begun.elapsed();
        match exit?.code {
            0 => println!("{:.6}", took.as_secs_f64()),
            code => return Err(format!("`true` ended with exit code {code}").into()),
        }
    }
    executor.close().await;
    Ok(())
}

/// An empty upper directory over the base.
fn root(dir: &Path, base: &Path, number: usize) -> std::io::Result<StepMount> {
    let home = dir.join(format!("step-{number}"));
    let (upper, work) = (home.join("upper"), home.join("work"));
    std::fs::create_dir_all(&upper)?;
    std::fs::create_dir_all(&work)?;
    Ok(StepMount::snapshot("/", Mount::Overlay { lowers: vec![base.to_owned()], upper: Some((upper, work)) }))
}
