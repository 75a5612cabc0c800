//! Memory limits, and what happens to containers when the process that runs them is killed. Needs root.
#![expect(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fs::Permissions;
use std::io::BufRead as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kiln_executor::LinuxResources;
use kiln_executor::testing::conformance::{Step, Suite};
use kiln_worker_runc::RuncExecutor;

/// Set in the process that is to be killed: where its executor lives.
const VICTIM: &str = "KILN_TEST_VICTIM";
/// The built-in runtime with a first process that a set-uid program has taken the place of: for such a process the
/// kernel forgets that it was to die with its parent.
const SETUID: &str = "setuid";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn running_out_of_memory_is_named() {
    for binary in ["builtin", "runc", "crun"] {
        let Some(busybox) = support::ready(binary) else { continue };
        let dir = tempfile::tempdir().unwrap();
        let suite = suite(dir.path(), binary, &busybox);
        let hungry =
            Step::shell("a=$(dd if=/dev/zero bs=1M count=200 2>/dev/null | tr '\\0' x); sleep 0.3; exit 9")
                .with(|process| {
                    process.resources = LinuxResources {
                        memory: 20 << 20,
                        memory_swap: 20 << 20,
                        ..LinuxResources::default()
                    };
                });
        let exit = suite.run(hungry).await.exit.unwrap();
        // crun takes the count away with the control group as soon as the process has ended.
        assert!(exit.oom || binary == "crun", "{binary}: {exit:?}");
        assert_ne!(exit.code, 0, "{binary}: {exit:?}");
        let exit = suite.run(Step::shell("exit 3")).await.exit.unwrap();
        assert!(!exit.oom && exit.code == 3, "{binary}: {exit:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn steps_end_with_the_process() {
    for binary in ["builtin", "setuid", "runc", "crun"] {
        let Some(busybox) = support::ready(if binary == SETUID { "builtin" } else { binary }) else {
            continue;
        };
        let dir = tempfile::tempdir().unwrap();
        // A user passes through on the way to the root filesystem.
        std::fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        let mut victim = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "victim", "--nocapture"])
            .env(VICTIM, format!("{binary}:{}", dir.path().display()))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = std::io::BufReader::new(victim.stdout.take().unwrap()).lines();
        while !lines.next().expect("the victim ended early").unwrap().contains("the step is up") {}
        let mark = mark(dir.path());
        assert!(alive(&mark));
        victim.kill().unwrap();
        victim.wait().unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while alive(&mark) {
            assert!(Instant::now() < deadline, "{binary}: a step outlives its daemon");
            tokio::task::yield_now().await;
        }
        // The next one finds mounts, bundles and state, and clears them away.
        let next = dir.path().join("next");
        std::fs::create_dir(&next).unwrap();
        let root = dir.path().join("executor");
        assert!(
            std::fs::read_dir(&root).unwrap().flatten().any(|entry| entry.path().join("rootfs").exists())
        );
        let suite = Suite::new(Arc::new(open(&root, binary)), &next, &busybox);
        assert!(
            !std::fs::read_dir(&root).unwrap().flatten().any(|entry| entry.path().join("rootfs").exists())
        );
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!table.contains(dir.path().to_str().unwrap()), "{binary}: {table}");
        assert_eq!(suite.run(Step::shell("exit 4")).await.exit.unwrap().code, 4);
    }
}

/// The process that is to be killed: runs a step that does not end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn victim() {
    let Ok(place) = std::env::var(VICTIM) else { return };
    let (binary, dir) = place.split_once(':').unwrap();
    let dir = Path::new(dir);
    let busybox = support::ready(if binary == SETUID { "builtin" } else { binary }).unwrap();
    let suite = suite(dir, binary, &busybox);
    let mut step =
        Step::shell(&format!("trap '' TERM HUP INT; echo up; while :; do sleep {}; done", mark(dir)));
    if binary == SETUID {
        std::fs::create_dir(dir.join("base/setuid")).unwrap();
        let program = dir.join("base/setuid/sleep");
        std::fs::copy(&busybox, &program).unwrap();
        std::fs::set_permissions(&program, Permissions::from_mode(0o4755)).unwrap();
        step = Step::shell(&format!("exec /setuid/sleep {}", mark(dir))).with(|p| p.user = "app".into());
    }
    let running = suite.run(step);
    let seen = async {
        while !alive(&mark(dir)) {
            tokio::task::yield_now().await;
        }
        println!("the step is up");
    };
    tokio::join!(running, seen);
}

fn suite(dir: &Path, binary: &str, busybox: &Path) -> Suite {
    Suite::new(Arc::new(open(&dir.join("executor"), binary)), dir, busybox)
}

fn open(root: &Path, binary: &str) -> RuncExecutor {
    let binary = if binary == SETUID { "builtin" } else { binary };
    RuncExecutor::open(support::options(root, binary)).unwrap()
}

/// A number of seconds that no other process sleeps.
fn mark(dir: &Path) -> String {
    let name = dir.file_name().unwrap().as_encoded_bytes();
    let sum = name.iter().fold(7u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
    format!("8{}", sum % 1_000_000_000)
}

fn alive(mark: &str) -> bool {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = entries.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    lines.map(|line| String::from_utf8_lossy(&line).into_owned()).any(|line| {
        line.split('\0').next().is_some_and(|name| name.ends_with("sleep")) && line.contains(mark)
    })
}
