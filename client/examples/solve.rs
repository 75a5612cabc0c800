//! Builds the Dockerfile in a directory into another directory:
//! `cargo run -p kiln-client --example solve -- <address> <context> <destination>`.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "an example shows what it does")]

use std::error::Error;

use kiln_client::api::control::StatusResponse;
use kiln_client::attach::Target;
use kiln_client::{Client, ConnectOptions, ExportEntry, ExportTarget, SolveOptions};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let [address, context, destination]: [String; 3] = std::env::args()
        .skip(1)
        .collect::<Vec<_>>()
        .try_into()
        .map_err(|_| "usage: solve <address> <context> <destination>")?;
    let client = Client::connect(&address, ConnectOptions::default()).await?;
    println!("daemon: {}", client.info().await?.version);
    let mut options = SolveOptions::default();
    options.frontend = "dockerfile.v0".to_owned();
    options.locals.insert("context".to_owned(), context.clone().into());
    options.locals.insert("dockerfile".to_owned(), context.into());
    options.exports = vec![ExportEntry {
        kind: "local".to_owned(),
        attrs: Default::default(),
        target: ExportTarget::Files(Target::dir(destination)),
    }];
    let (progress, mut updates) = tokio::sync::mpsc::channel::<StatusResponse>(16);
    let showing = async {
        while let Some(update) = updates.recv().await {
            for vertex in update.vertexes.iter().filter(|vertex| vertex.completed.is_some()) {
                println!("{} {}{}", vertex.name, if vertex.cached { "CACHED " } else { "" }, vertex.error);
            }
            for log in &update.logs {
                print!("{}", String::from_utf8_lossy(&log.msg));
            }
        }
    };
    let (outcome, ()) = tokio::join!(client.solve(options, progress), showing);
    match outcome {
        Ok(outcome) => println!("{:?}", outcome.exporter_response),
        Err(kiln_client::Error::Solve(error)) => {
            for source in &error.sources {
                eprint!("{source}");
            }
            eprintln!("error: {error}");
            std::process::exit(1);
        }
        Err(error) => return Err(error.into()),
    }
    Ok(())
}
