//! Laws of stacks, on any trees. Mounting needs root.
#![expect(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "tests; a skip is to be seen")]

use std::path::PathBuf;

use kiln_snapshot::testing::{describe, scribble};
use kiln_snapshot::{Mount, NativeSnapshotter, OverlaySnapshotter, SnapshotId, Snapshotter, difference};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

type Script = Vec<[u8; 4]>;

fn scripts(layers: std::ops::Range<usize>) -> impl Strategy<Value = Vec<Script>> {
    prop::collection::vec(prop::collection::vec(any::<[u8; 4]>(), 0..12), layers)
}

/// Puts a layer for each script on `stack`.
async fn grow(
    store: &dyn Snapshotter,
    name: &str,
    stack: &[SnapshotId],
    scripts: &[Script],
) -> Vec<SnapshotId> {
    let mut stack = stack.to_vec();
    for (number, script) in scripts.iter().enumerate() {
        let id = SnapshotId::new(format!("{name}{number}")).unwrap();
        store.prepare(&id, stack.last()).await.unwrap();
        let mount = store.active_mount(&id, &stack).await.unwrap();
        scribble(mount.with_temp().unwrap().path(), script);
        drop(mount);
        store.commit(&id).await.unwrap();
        stack.push(id);
    }
    stack
}

async fn dirs(store: &OverlaySnapshotter, stack: &[SnapshotId]) -> Vec<PathBuf> {
    let mut dirs = Vec::new();
    for id in stack {
        dirs.push(store.diff_dir(id).await.unwrap());
    }
    dirs
}

#[test]
fn a_difference_on_its_lower_state_is_its_upper_state() {
    if !can_mount() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut runner = TestRunner::new(Config { cases: 96, failure_persistence: None, ..Config::default() });
    let states = (scripts(0..3), scripts(0..3), scripts(0..3));
    let law = |(shared, left, right): (Vec<Script>, Vec<Script>, Vec<Script>)| {
        runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let store = OverlaySnapshotter::open(dir.path()).unwrap();
            let shared = grow(&store, "s", &[], &shared).await;
            let lower = grow(&store, "a", &shared, &left).await;
            let upper = grow(&store, "b", &shared, &right).await;
            let id = SnapshotId::new("d").unwrap();
            let to = store.staging(&id).await.unwrap();
            let (below, above) = (dirs(&store, &lower).await, dirs(&store, &upper).await);
            difference(&below, &above, &to, &|| false).unwrap();
            store.publish(&id).await.unwrap();
            let merged = [lower, vec![id]].concat();
            let got = describe(store.view(&merged).await.unwrap().with_temp().unwrap().path());
            let want = describe(store.view(&upper).await.unwrap().with_temp().unwrap().path());
            assert_eq!(got, want);
        });
        Ok(())
    };
    runner.run(&states, law).unwrap();
}

#[test]
fn both_snapshotters_show_and_keep_the_same() {
    if !can_mount() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut runner = TestRunner::new(Config { cases: 96, failure_persistence: None, ..Config::default() });
    let law = |layers: Vec<Script>| {
        runtime.block_on(async {
            let (left, right) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let native = NativeSnapshotter::open(left.path()).unwrap();
            let overlay = OverlaySnapshotter::open(right.path()).unwrap();
            let stack = grow(&native, "s", &[], &layers).await;
            grow(&overlay, "s", &[], &layers).await;
            let show = async |store: &dyn Snapshotter, stack: &[SnapshotId]| {
                describe(store.view(stack).await.unwrap().with_temp().unwrap().path())
            };
            // The other one reads what either has kept.
            let swapped = OverlaySnapshotter::open(left.path()).unwrap();
            let back = NativeSnapshotter::open(right.path()).unwrap();
            for depth in 2..=stack.len() {
                let stack = &stack[..depth];
                let want = show(&overlay, stack).await;
                assert_eq!(show(&native, stack).await, want, "native, {depth} layers");
                assert_eq!(show(&swapped, stack).await, want, "kept by native, {depth} layers");
                assert_eq!(show(&back, stack).await, want, "read by native, {depth} layers");
            }
        });
        Ok(())
    };
    runner.run(&scripts(2..4), law).unwrap();
}

#[test]
fn what_both_states_have_is_in_no_difference() {
    if !can_mount() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let store = OverlaySnapshotter::open(dir.path()).unwrap();
        let make = [[0, 0, 0, 0], [3, 1, 0, 1], [0, 6, 1, 0]];
        let left = grow(&store, "a", &[], &[make.to_vec()]).await;
        let right = grow(&store, "b", &[], &[make.to_vec(), vec![[0, 2, 2, 2]]]).await;
        let to = store.staging(&SnapshotId::new("d").unwrap()).await.unwrap();
        difference(&dirs(&store, &left).await, &dirs(&store, &right).await, &to, &|| false).unwrap();
        assert_eq!(describe(&to).into_keys().collect::<Vec<_>>(), [PathBuf::from("/c")]);
        let stopped = difference(&dirs(&store, &left).await, &dirs(&store, &right).await, &to, &|| true);
        assert!(matches!(stopped, Err(kiln_snapshot::Error::Interrupted)));
    });
}

fn can_mount() -> bool {
    let dir = tempfile::tempdir().unwrap();
    let lowers = vec![dir.path().join("a"), dir.path().join("b")];
    lowers.iter().for_each(|lower| std::fs::create_dir(lower).unwrap());
    match (Mount::Overlay { lowers, upper: None }).with_temp() {
        Ok(_) => true,
        Err(error) if std::env::var_os("CI").is_some() => panic!("cannot mount an overlay: {error}"),
        Err(error) => {
            println!("skipped: cannot mount an overlay: {error}");
            false
        }
    }
}
