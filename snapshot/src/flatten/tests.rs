use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::*;
use crate::testing::{describe, scribble};
use crate::{Mount, OverlaySnapshotter, Snapshotter as _};

fn ids(count: usize) -> Vec<SnapshotId> {
    (0..count).map(|n| SnapshotId::new(format!("layer{n}")).unwrap()).collect()
}

fn runs(mut ids: &[SnapshotId]) -> Vec<Vec<SnapshotId>> {
    let mut runs = Vec::new();
    while !ids.is_empty() {
        let (run, rest) = ids.split_at(run_length(ids));
        runs.push(run.to_vec());
        ids = rest;
    }
    runs
}

#[test]
fn runs_do_not_move_with_what_is_below_or_above_them() {
    let all = ids(5000);
    let whole = runs(&all);
    assert!((20..100).contains(&whole.len()), "{}", whole.len());
    assert!(whole.iter().all(|run| (1..=MAX_RUN).contains(&run.len())));
    for cut in [1, 100, 1234] {
        let shifted = runs(&all[cut..]);
        let shared = shifted.iter().filter(|run| whole.contains(run)).count();
        assert!(shared + 3 + cut / 64 >= whole.len(), "{shared} of {}", whole.len());
    }
    let shorter = runs(&all[..3000]);
    assert_eq!(shorter[..shorter.len() - 1], whole[..shorter.len() - 1]);
}

#[test]
fn a_merged_run_shows_what_its_layers_show() {
    let Ok(dir) = tempfile::tempdir() else { return };
    for name in ["a", "b"] {
        std::fs::create_dir(dir.path().join(name)).unwrap();
    }
    let lowers = vec![dir.path().join("a"), dir.path().join("b")];
    if let Err(error) = (Mount::Overlay { lowers, upper: None }).with_temp() {
        assert!(std::env::var_os("CI").is_none(), "cannot mount an overlay: {error}");
        println!("skipped: cannot mount an overlay: {error}");
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut runner = TestRunner::new(Config { cases: 96, failure_persistence: None, ..Config::default() });
    let scripts = prop::collection::vec(prop::collection::vec(any::<[u8; 4]>(), 1..10), 4..7);
    let law = |scripts: Vec<Vec<[u8; 4]>>| {
        runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let store = OverlaySnapshotter::open(dir.path()).unwrap();
            let ids = ids(scripts.len());
            for (number, script) in scripts.iter().enumerate() {
                store.prepare(&ids[number], ids[..number].last()).await.unwrap();
                let mount = store.active_mount(&ids[number], &ids[..number]).await.unwrap();
                scribble(mount.with_temp().unwrap().path(), script);
                drop(mount);
                store.commit(&ids[number]).await.unwrap();
            }
            let places = store.places();
            let dir_of = |id: &SnapshotId| places.committed(id).unwrap();
            let last = ids.len() - 1;
            let want = store.view(&ids).await.unwrap();
            let want = describe(want.with_temp().unwrap().path());
            // In the middle, at the bottom, and all but the bottom.
            for (from, to) in [(1, last), (0, last), (1, last + 1)] {
                let mut lowers: Vec<PathBuf> = ids[..from].iter().map(dir_of).collect();
                lowers.push(merged(places, &ids[from..to]).unwrap());
                lowers.extend(ids[to..].iter().map(dir_of));
                let shown = Mount::Overlay { lowers, upper: None };
                assert_eq!(describe(shown.with_temp().unwrap().path()), want, "{from}..{to}");
            }
        });
        Ok(())
    };
    runner.run(&scripts, law).unwrap();
}

#[test]
fn a_later_process_finds_what_is_merged() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let ids = ids(4);
    let store = OverlaySnapshotter::open(dir.path()).unwrap();
    runtime.block_on(async {
        for id in &ids {
            std::fs::write(store.staging(id).await.unwrap().join(id.as_str()), "").unwrap();
            store.publish(id).await.unwrap();
        }
    });
    let made = merged(store.places(), &ids[..3]).unwrap();
    let inode = |path: &Path| std::os::unix::fs::MetadataExt::ino(&path.metadata().unwrap());
    let first = inode(&made);
    drop(store);
    std::fs::create_dir(dir.path().join("merged/half-made")).unwrap();
    let store = OverlaySnapshotter::open(dir.path()).unwrap();
    assert_eq!(inode(&merged(store.places(), &ids[..3]).unwrap()), first);
    assert!(!dir.path().join("merged/half-made").exists());
    forget(store.places(), &ids[3]).unwrap();
    assert!(made.exists());
    forget(store.places(), &ids[1]).unwrap();
    assert!(!made.exists());
    assert!(merged(store.places(), &ids[..3]).unwrap().join("layer1").exists());
}
