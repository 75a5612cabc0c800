//! What running a step costs over the bare runtime. Prints; run with `--nocapture`, in release mode.

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use kiln_executor::testing::conformance::{Step, Suite};
use kiln_worker_runc::RuncExecutor;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn print_the_time_of_a_step() {
    for binary in ["builtin", "runc", "crun"] {
        let Some(busybox) = support::ready(binary) else { continue };
        let dir = tempfile::tempdir().unwrap();
        let executor = RuncExecutor::open(support::options(&dir.path().join("executor"), binary)).unwrap();
        let suite = Suite::new(Arc::new(executor.clone()), dir.path(), &busybox);
        let mut times: Vec<Duration> = Vec::new();
        for _ in 0..15 {
            let since = Instant::now();
            suite.run(Step::args(&["/bin/true"])).await.exit.unwrap();
            times.push(since.elapsed());
        }
        times.sort();
        println!("{binary}: median {:?}, best {:?}", times[times.len() / 2], times[0]);
        executor.close().await;
    }
}
