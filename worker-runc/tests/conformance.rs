//! The conformance suite of executors, with each runtime that is installed. Needs root.
#![expect(clippy::unwrap_used, reason = "tests")]

mod support;

use std::path::PathBuf;
use std::sync::Arc;

use kiln_executor::Error;
use kiln_executor::testing::conformance::{Step, Suite};
use kiln_worker_runc::{RuncExecutor, RuncOptions};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn builtin() {
    check("builtin").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runc() {
    check("runc").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crun() {
    check("crun").await;
}

async fn check(binary: &str) {
    let Some(busybox) = support::ready(binary) else { return };
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("executor");
    let executor = RuncExecutor::open(support::options(&root, binary)).unwrap();
    let suite = Suite::new(Arc::new(executor.clone()), dir.path(), &busybox);
    suite.check_all().await;
    executor.close().await;
    let left: Vec<PathBuf> = std::fs::read_dir(&root)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir() && !path.ends_with("run-state"))
        .collect();
    assert_eq!(left, Vec::<PathBuf>::new(), "bundles are left");
    assert_eq!(std::fs::read_dir(root.join("run-state")).unwrap().count(), 0, "state is left");
    let closed = suite.run(Step::shell("true")).await;
    assert!(matches!(closed.exit, Err(Error::Cancelled)), "{closed:?}");
}

#[test]
fn a_missing_runtime_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = RuncOptions::new(dir.path());
    options.binary = Some("no-such-runtime".to_owned());
    let error = RuncExecutor::open(options).unwrap_err();
    assert_eq!(error.to_string(), "failed to find no-such-runtime binary");
}

#[tokio::test]
async fn a_broken_runtime_is_named() {
    use std::os::unix::fs::PermissionsExt as _;
    let Some(busybox) = support::ready("sh") else { return };
    let dir = tempfile::tempdir().unwrap();
    let binary = dir.path().join("broken");
    std::fs::write(&binary, "#!/bin/sh\necho it is broken >&2\nexit 3\n").unwrap();
    std::fs::set_permissions(&binary, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut options = RuncOptions::new(dir.path().join("executor"));
    options.binary = Some(binary.to_str().unwrap().to_owned());
    let suite = Suite::new(Arc::new(RuncExecutor::open(options).unwrap()), dir.path(), &busybox);
    let error = suite.run(Step::shell("true")).await.exit.unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(
        matches!(error, Error::RuntimeMissing { .. }) && source.contains("it is broken"),
        "{error}: {source}"
    );
}
