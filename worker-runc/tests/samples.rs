//! What steps are said to use. Needs root.

mod support;

use std::sync::Arc;

use kiln_executor::testing::conformance::{Step, Suite};
use kiln_worker_runc::RuncExecutor;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_is_said_to_use_what_it_uses() {
    for binary in ["builtin", "runc"] {
        let Some(busybox) = support::ready(binary) else { continue };
        let dir = tempfile::tempdir().unwrap();
        let executor = RuncExecutor::open(support::options(&dir.path().join("executor"), binary)).unwrap();
        let suite = Suite::new(Arc::new(executor.clone()), dir.path(), &busybox);
        let greedy = "dd if=/dev/zero of=/dev/shm/all bs=1M count=32 2>/dev/null; i=0; \
                      while [ $i -lt 20000 ]; do i=$((i + 1)); done";
        let [little, much] = [suite.run(Step::shell("true")).await, suite.run(Step::shell(greedy)).await]
            .map(|outcome| outcome.exit.unwrap().samples.last().unwrap().clone());
        let cpu =
            |sample: &kiln_executor::samples::Sample| sample.cpu_stat.as_ref().unwrap().usage_nanos.unwrap();
        let peak =
            |sample: &kiln_executor::samples::Sample| sample.memory_stat.as_ref().unwrap().peak.unwrap();
        assert!(cpu(&much) > 5_000_000 && cpu(&much) > cpu(&little), "{binary}: {much:?} {little:?}");
        assert!(peak(&much) > 32 << 20 && peak(&little) < 32 << 20, "{binary}: {much:?} {little:?}");
        assert!(much.io_stat.is_some() && much.pids_stat.is_some(), "{binary}: {much:?}");
        assert_eq!(much.net_stat, None, "the host's network is not the step's");
        executor.close().await;
    }
}
