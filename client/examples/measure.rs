//! Solves the same thing several times over one connection and prints how long each solve took, in seconds, a line each:
//! `measure <address> [--times <n>] [--until-started] <definition>` for a marshalled definition in a file, or
//! `measure <address> [--times <n>] --dockerfile <context>` for a directory with a Dockerfile.
//!
//! With `--until-started` it measures until the daemon starts the first step or finds it cached, by the time that the
//! daemon gives for that, and then withdraws the build.
#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::error::Error;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use kiln_client::api::control::StatusResponse;
use kiln_client::api::pb::Definition;
use kiln_client::{Client, ConnectOptions, SolveOptions};
use prost::Message as _;
use tokio::sync::mpsc;

const USAGE: &str =
    "usage: measure <address> [--times <n>] [--until-started] (<definition> | --dockerfile <context>)";

struct Arguments {
    address: String,
    times: usize,
    until_started: bool,
    options: SolveOptions,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments = arguments()?;
    let client = Client::connect(&arguments.address, ConnectOptions::default()).await?;
    for _ in 0..arguments.times {
        let took = if arguments.until_started {
            until_started(&client, arguments.options.clone()).await?
        } else {
            whole(&client, arguments.options.clone()).await?
        };
        println!("{:.6}", took.as_secs_f64());
    }
    Ok(())
}

async fn whole(client: &Client, options: SolveOptions) -> Result<Duration, Box<dyn Error>> {
    let (progress, mut updates) = mpsc::channel::<StatusResponse>(64);
    let drained = async { while updates.recv().await.is_some() {} };
    let start = Instant::now();
    let (outcome, ()) = tokio::join!(client.solve(options, progress), drained);
    outcome?;
    Ok(start.elapsed())
}

async fn until_started(client: &Client, options: SolveOptions) -> Result<Duration, Box<dyn Error>> {
    let (progress, mut updates) = mpsc::channel::<StatusResponse>(64);
    let started = async {
        while let Some(update) = updates.recv().await {
            let mut started = update.vertexes.into_iter().filter_map(|vertex| vertex.started);
            if let Some(started) = started.next() {
                return SystemTime::try_from(started);
            }
        }
        std::future::pending().await
    };
    let start = SystemTime::now();
    tokio::select! {
        biased;
        started = started => Ok(started?.duration_since(start)?),
        outcome = client.solve(options, progress) => Ok(outcome.map(|_| start.elapsed())??),
    }
}

fn arguments() -> Result<Arguments, Box<dyn Error>> {
    let mut words = std::env::args().skip(1);
    let address = words.next().ok_or(USAGE)?;
    let (mut times, mut until_started, mut options) = (1, false, None);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--times" => times = words.next().ok_or(USAGE)?.parse()?,
            "--until-started" => until_started = true,
            "--dockerfile" => options = Some(dockerfile(words.next().ok_or(USAGE)?.into())),
            file => {
                let mut solve = SolveOptions::default();
                solve.definition = Some(Definition::decode(std::fs::read(file)?.as_slice())?);
                options = Some(solve);
            }
        }
    }
    Ok(Arguments { address, times, until_started, options: options.ok_or(USAGE)? })
}

fn dockerfile(context: PathBuf) -> SolveOptions {
    let mut options = SolveOptions::default();
    options.frontend = "dockerfile.v0".to_owned();
    options.shared_key = context.display().to_string();
    options.locals.insert("context".to_owned(), context.clone());
    options.locals.insert("dockerfile".to_owned(), context);
    options
}
