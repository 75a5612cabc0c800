//! `dockerfile-frontend`: the Dockerfile language as the program of a frontend image. It takes no arguments: the daemon
//! that runs the image says in the environment what it wants.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use kiln_frontend_dockerfile::DockerfileFrontend;

#[expect(clippy::print_stderr, reason = "standard output belongs to the connection with the daemon")]
fn main() -> ExitCode {
    let served =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(anyhow::Error::from);
    let served = served.and_then(|runtime| {
        let served = runtime.block_on(kiln_frontend_process::run(&DockerfileFrontend));
        // A read of standard input may be under way, and cannot be taken back.
        runtime.shutdown_background();
        Ok(served?)
    });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dockerfile-frontend: {error:#}");
            ExitCode::FAILURE
        }
    }
}
