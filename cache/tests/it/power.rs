//! A power loss below the database and the stores: the log ends anywhere, and files written since are empty or gone.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Command,
};

use kiln_cache::{CheckOptions, NoProvider, PruneOptions, RecordOptions, RecordType};
use rusqlite::Connection;

use crate::support::{Fixture, check, digest, files_of, write};

const REPAIR: CheckOptions = CheckOptions { digests: true, repair: true };

/// What happens to files that were written after the last checkpoint.
#[derive(Clone, Copy, Debug)]
enum Files {
    Kept,
    Emptied,
    Gone,
}

/// A machine that stopped: its disk, and what of it was safe.
struct Stopped {
    dir: tempfile::TempDir,
    /// Snapshots that were there at the last checkpoint.
    safe: BTreeSet<PathBuf>,
    log: u64,
}

fn snapshots(dir: &Path) -> BTreeSet<PathBuf> {
    let kinds = ["committed", "active"].map(|kind| dir.join("snapshots").join(kind));
    let entries = kinds.iter().flat_map(|kind| std::fs::read_dir(kind).unwrap());
    entries.map(|entry| entry.unwrap().path().strip_prefix(dir).unwrap().to_owned()).collect()
}

fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files(&path, found) } else { found.push(path) }
    }
}

fn context() -> RecordOptions {
    RecordOptions::new("context", RecordType::LocalSource)
}

/// A run that is synced, and another one that the machine stops in.
async fn run() -> Stopped {
    let fixture = Fixture::new().await;
    for op in ["base", "pruned"] {
        let layer = fixture.layer(None, op, "safe").await;
        fixture.save(op, &layer).await;
    }
    let received = fixture.cache.local_source("ctx", context()).await.unwrap();
    write(&received.mount().await.unwrap(), "context", "old!");
    let received = received.commit().await.unwrap();
    fixture.save("context, old", &received).await;
    drop(received);
    let fixture = fixture.reopen().await;

    let safe = snapshots(fixture.dir.path());
    let base = fixture.find("base").await.unwrap();
    let top = fixture.layer(Some(&base), "top", "new").await;
    fixture.save("top", &top).await;
    let above = fixture.layer(Some(&top), "above", "new").await;
    fixture.save("above", &above).await;
    drop((base, top, above));
    let received = fixture.cache.local_source("ctx", context()).await.unwrap();
    assert!(!received.is_fresh());
    write(&received.mount().await.unwrap(), "context", "new!");
    let received = received.commit().await.unwrap();
    fixture.save("context, new", &received).await;
    drop(received);
    let (tell, mut told) = tokio::sync::mpsc::channel(8);
    let pruned = PruneOptions { filters: vec!["description~=pruned".into()], ..PruneOptions::default() };
    let (outcome, removed) = tokio::join!(fixture.cache.prune(&pruned, tell), told.recv());
    outcome.unwrap();
    assert!(removed.is_some());

    let dir = copy(fixture.dir.path());
    let log = std::fs::metadata(dir.path().join("kiln/catalogue.db-wal")).unwrap().len();
    Stopped { dir, safe, log }
}

fn copy(from: &Path) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    let mut source = from.as_os_str().to_owned();
    source.push("/.");
    assert!(Command::new("cp").arg("-a").arg(source).arg(to.path()).status().unwrap().success());
    to
}

impl Stopped {
    /// Starts again on a copy of the disk with so much of the log, and checks what can be seen.
    async fn start(&self, log: u64, fate: Files) {
        let what = format!("{log} of {} bytes of the log, files {fate:?}", self.log);
        let dir = copy(self.dir.path());
        let database = dir.path().join("kiln/catalogue.db");
        let file =
            std::fs::File::options().write(true).open(dir.path().join("kiln/catalogue.db-wal")).unwrap();
        file.set_len(log).unwrap();
        for snapshot in snapshots(dir.path()).difference(&self.safe) {
            let mut written = Vec::new();
            files(&dir.path().join(snapshot), &mut written);
            for file in written {
                match fate {
                    Files::Kept => {}
                    Files::Emptied => drop(std::fs::File::create(file).unwrap()),
                    Files::Gone => std::fs::remove_file(file).unwrap(),
                }
            }
        }
        let connection = Connection::open(database).unwrap();
        let other = "UPDATE meta SET value = CAST('another boot' AS BLOB) WHERE key = 'boot'";
        assert_eq!(connection.execute(other, []).unwrap(), 1);
        drop(connection);

        let fixture = Fixture::open(dir).await;
        let seen = async |op: &str| {
            let found = fixture.find(op).await?;
            let mount = found.mount(&NoProvider).await;
            assert!(mount.as_ref().err().is_none_or(kiln_cache::Error::is_lost), "{what}: {mount:?}");
            mount.ok().map(|mount| format!("{:?}", files_of(&mount)))
        };
        assert_eq!(seen("base").await.as_deref(), Some(r#"{"base": "safe"}"#), "{what}");
        for (op, right) in [
            ("pruned", r#"{"pruned": "safe"}"#),
            ("top", r#"{"base": "safe", "top": "new"}"#),
            ("above", r#"{"above": "new", "base": "safe", "top": "new"}"#),
            ("context, old", r#"{"context": "old!"}"#),
            ("context, new", r#"{"context": "new!"}"#),
        ] {
            let got = seen(op).await;
            assert!(got.as_deref().is_none_or(|got| got == right), "{what}: {op} is {got:?}");
        }
        let received = fixture.cache.local_source("ctx", context()).await.unwrap();
        assert!(received.is_fresh(), "{what}: nobody knows what is in it");
        drop(received);
        check(&fixture.cache, REPAIR).await;
        assert_eq!(check(&fixture.cache, REPAIR).await, [] as [&str; 0], "{what}");
        let layer = fixture.layer(None, "next", "1").await;
        fixture.save("next", &layer).await;
        drop(layer);
        let keys = fixture.cache.keys();
        assert!(!keys.query(&[], &digest("next"), kiln_solver::OutputIndex(0)).unwrap().keys.is_empty());
    }
}

#[tokio::test]
async fn whatever_a_power_loss_leaves_is_right_or_a_miss() {
    let stopped = run().await;
    // Frames of the log are a header of 24 bytes and a page of 4096.
    let frames = (stopped.log - 32) / 4120;
    assert!(frames >= 10, "{frames} frames");
    let cuts = (0..=frames).step_by(3).map(|frame| 32 + frame * 4120);
    for (round, log) in [0].into_iter().chain(cuts).chain([stopped.log - 1, stopped.log]).enumerate() {
        let fate = [Files::Emptied, Files::Gone, Files::Kept][round % 3];
        stopped.start(log, fate).await;
        // In the middle of a frame.
        stopped.start(log.saturating_sub(1000), Files::Emptied).await;
    }
}
