//! The disk's hard limit, on a disk that is as full as a test says.

use std::{
    io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use kiln_cache::{Disks, Error, Room};

use crate::support::{Fixture, options, write};

const MIB: u64 = 1 << 20;

/// A disk on which snapshots take an exact mebibyte and a thousand inodes each, and something else takes the rest.
#[derive(Debug)]
struct Counting {
    snapshots: PathBuf,
    room: u64,
    others: AtomicU64,
}

impl Disks for Counting {
    fn free(&self) -> io::Result<Room> {
        let mut used = self.others.load(Ordering::SeqCst);
        for kind in ["active", "committed", "staging"] {
            used += std::fs::read_dir(self.snapshots.join(kind)).map_or(0, |dir| dir.count() as u64);
        }
        let left = self.room.saturating_sub(used);
        Ok(Room { bytes: left * MIB, inodes: left * 1000 })
    }
}

/// A disk with room for so many snapshots, one of which has to stay free.
async fn full_at(room: u64, floor: Room, patience: Duration) -> (Fixture, Arc<Counting>) {
    let dir = tempfile::tempdir().unwrap();
    let snapshots = dir.path().join("snapshots");
    let disk = Arc::new(Counting { snapshots, room, others: AtomicU64::new(0) });
    let fixture = Fixture::open_with(dir, |options| {
        options.disk = Some(disk.clone());
        options.floor = floor;
        options.patience = patience;
    });
    (fixture.await, disk)
}

const BYTES: Room = Room { bytes: MIB, inodes: 0 };
const INODES: Room = Room { bytes: 0, inodes: 1000 };
const PATIENCE: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn what_nobody_uses_goes_first() {
    for floor in [BYTES, INODES] {
        let (fixture, _disk) = full_at(4, floor, PATIENCE).await;
        let kept = fixture.layer(None, "kept", "1").await;
        fixture.save("kept", &kept).await;
        for number in 0..10 {
            let layer = fixture.layer(None, "a", "1").await;
            fixture.save(&format!("layer {number}"), &layer).await;
        }
        assert!(fixture.find("layer 0").await.is_none(), "it had to go");
        assert!(fixture.find("layer 9").await.is_some());
        assert!(fixture.find("kept").await.is_some(), "it is in use");
    }
}

#[tokio::test]
async fn who_works_alone_fails_at_once() {
    let (fixture, disk) = full_at(4, BYTES, PATIENCE).await;
    disk.others.store(4, Ordering::SeqCst);
    let error = fixture.cache.new_mutable(None, options("a step")).await.unwrap_err();
    assert!(matches!(error, Error::NoSpace { .. }), "{error}");
    let text = error.to_string();
    assert!(
        text.contains("0 bytes and 0 inodes are free, 1048576 bytes and 0 inodes have to stay"),
        "{text}"
    );
    disk.others.store(0, Ordering::SeqCst);
    fixture.cache.new_mutable(None, options("a step")).await.unwrap();
}

#[tokio::test]
async fn work_waits_for_other_work_to_end() {
    let (fixture, disk) = full_at(2, BYTES, PATIENCE).await;
    let first = fixture.cache.new_mutable(None, options("first")).await.unwrap();
    disk.others.store(1, Ordering::SeqCst);
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn({
        let cache = fixture.cache.clone();
        async move { cache.new_mutable(None, options("second")).await }
    });
    tokio::task::yield_now().await;
    // It is the only one at work, and the largest.
    let reason = first.out_of_space().await;
    assert!(matches!(reason, Error::NoSpace { .. }), "{reason}");
    assert!(tasks.try_join_next().is_none(), "there is work that may end");
    disk.others.store(0, Ordering::SeqCst);
    drop(first);
    tasks.join_next().await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn waiting_has_an_end() {
    let (fixture, disk) = full_at(3, BYTES, Duration::from_millis(50)).await;
    let _first = fixture.cache.new_mutable(None, options("first")).await.unwrap();
    disk.others.store(3, Ordering::SeqCst);
    let error = fixture.cache.new_mutable(None, options("second")).await.unwrap_err();
    assert!(matches!(error, Error::NoSpace { .. }), "{error}");
}

#[tokio::test]
async fn the_largest_work_is_stopped_and_no_other() {
    let (fixture, disk) = full_at(8, BYTES, PATIENCE).await;
    let small = fixture.cache.new_mutable(None, options("small")).await.unwrap();
    write(&small.mount().await.unwrap(), "a", "1");
    let large = fixture.cache.new_mutable(None, options("large")).await.unwrap();
    write(&large.mount().await.unwrap(), "a", &"x".repeat(500_000));
    let last = fixture.cache.new_mutable(None, options("last")).await.unwrap();
    disk.others.store(6, Ordering::SeqCst);
    tokio::select! {
        reason = large.out_of_space() => assert!(matches!(reason, Error::NoSpace { .. })),
        _ = small.out_of_space() => unreachable!("it is not the largest"),
        _ = last.out_of_space() => unreachable!("it is empty"),
    }
    drop(large);
    disk.others.store(0, Ordering::SeqCst);
    small.commit().await.unwrap();
    last.commit().await.unwrap();
}
