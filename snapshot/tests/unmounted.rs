//! Adding to a stack without mounting it leaves what overlayfs would have left. Mounting needs root.
#![expect(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "tests; a skip is to be seen")]

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use kiln_rootdir::{Kind, Root, Time};
use kiln_snapshot::{Mount, OverlaySnapshotter, SnapshotId, Snapshotter as _};

const OLD: Time = Time { seconds: 1_000, nanoseconds: 7 };

fn id(name: &str) -> SnapshotId {
    SnapshotId::new(name).unwrap()
}

/// Two layers: `/d/e` with owners, attributes and times, `/file`, `/link` to `/d`, and `/gone` deleted by the upper one.
async fn stack(store: &OverlaySnapshotter) -> Vec<SnapshotId> {
    let lower = store.staging(&id("lower")).await.unwrap();
    std::fs::create_dir_all(lower.join("d/e")).unwrap();
    std::fs::set_permissions(lower.join("d/e"), std::fs::Permissions::from_mode(0o1751)).unwrap();
    std::fs::create_dir(lower.join("gone")).unwrap();
    std::fs::write(lower.join("d/e/old"), "old").unwrap();
    let root = Root::open(&lower).unwrap();
    root.chown("d", 5, 6).unwrap();
    root.set_xattr("d/e", "user.colour", b"blue").unwrap();
    for path in ["d/e", "d"] {
        root.set_times(path, OLD, OLD, true).unwrap();
    }
    store.publish(&id("lower")).await.unwrap();
    let upper = store.staging(&id("upper")).await.unwrap();
    std::fs::write(upper.join("file"), "").unwrap();
    std::os::unix::fs::symlink("/d", upper.join("link")).unwrap();
    Root::open(&upper).unwrap().mknod("gone", Kind::CharDevice, 0, (0, 0)).unwrap();
    store.publish(&id("upper")).await.unwrap();
    vec![id("lower"), id("upper")]
}

/// Names, modes, owners, times of directories, and attributes below `dir`, of the merged view.
fn describe(dir: &Path) -> Vec<String> {
    let root = Root::open(dir).unwrap();
    let mut lines = Vec::new();
    let mut todo = vec![Path::new("/").to_owned()];
    while let Some(path) = todo.pop() {
        for (name, metadata) in root.read_dir_stat(&path).unwrap() {
            let path = path.join(name);
            let mut line = format!(
                "{} {:?} {:o} {}:{}",
                path.display(),
                metadata.kind,
                metadata.mode,
                metadata.uid,
                metadata.gid
            );
            for name in root.list_xattrs(&path).unwrap() {
                if !name.to_string_lossy().contains(".overlay.") {
                    line.push_str(&format!(" {}", name.display()));
                }
            }
            if metadata.is_dir() {
                // What a file was made in now has the time of that; what leads there keeps its own.
                line.push_str(if metadata.mtime == OLD { " old" } else { " new" });
                todo.push(path);
            }
            lines.push(line);
        }
    }
    lines.sort();
    lines
}

/// Makes `path` in a new snapshot, with or without a mount, and returns whether there was one, and what is there then.
async fn make(path: &str, mounted: bool, restarted: bool) -> (bool, Vec<String>) {
    let dir = tempfile::tempdir().unwrap();
    let mut store = OverlaySnapshotter::open(dir.path()).unwrap();
    let mut stack = stack(&store).await;
    if restarted {
        // What an earlier process made is not known by heart.
        store = OverlaySnapshotter::open(dir.path()).unwrap();
    }
    store.prepare(&id("new"), stack.last()).await.unwrap();
    let unmounted = match mounted {
        true => None,
        false => store.to_make(&id("new"), &stack, Path::new(path)).await.unwrap(),
    };
    let was_mounted = unmounted.is_none();
    let shown = match unmounted {
        Some(shown) => shown,
        None => store.active_mount(&id("new"), &stack).await.unwrap().with_temp().unwrap(),
    };
    let root = Root::open(shown.path()).unwrap();
    root.mkdir_all(Path::new(path).parent().unwrap(), 0o755).unwrap();
    root.write(path, b"new", 0o640).unwrap();
    drop((root, shown));
    store.commit(&id("new")).await.unwrap();
    stack.push(id("new"));
    let seen = describe(store.view(&stack).await.unwrap().with_temp().unwrap().path());
    (was_mounted, seen)
}

#[tokio::test]
async fn what_is_made_looks_as_if_mounted() {
    if !privileged() {
        return;
    }
    for (path, mounts) in [
        ("/new", false),
        ("/d/new", false),
        ("/d/e/new", false),
        ("/d/./e//new", false),
        ("/fresh/a/b", false),
        ("/d/fresh/new", false),
        // Something is there already, or what leads there is no plain directory.
        ("/file", true),
        ("/d/e/old", true),
        ("/link/new", true),
        ("/gone", true),
        ("/gone/new", true),
        ("/d/../new", true),
    ] {
        let (_, want) = make(path, true, false).await;
        for restarted in [false, true] {
            let (direct, seen) = make(path, false, restarted).await;
            assert_eq!((direct, &seen), (mounts, &want), "{path}, restarted: {restarted}");
        }
    }
}

#[tokio::test]
async fn a_mounted_snapshot_is_not_changed_behind_the_mount() {
    if !privileged() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let store = OverlaySnapshotter::open(dir.path()).unwrap();
    let stack = stack(&store).await;
    store.prepare(&id("new"), stack.last()).await.unwrap();
    let first = store.active_mount(&id("new"), &stack).await.unwrap().with_temp().unwrap();
    let to_make = async |path: &str| store.to_make(&id("new"), &stack, Path::new(path)).await.unwrap();
    assert!(to_make("/new").await.is_none());
    std::fs::write(first.path().join("new"), "").unwrap();
    drop(first);
    let third = to_make("/other").await.unwrap();
    assert!(third.path().join("new").exists() && !third.path().join("file").exists());
    assert_eq!(std::fs::metadata(third.path().join("new")).unwrap().uid(), 0);
}

/// Whether this process may mount overlays. Says so if not, and fails where CI promises it.
fn privileged() -> bool {
    let dir = tempfile::tempdir().unwrap();
    for name in ["a", "b"] {
        std::fs::create_dir(dir.path().join(name)).unwrap();
    }
    let lowers = vec![dir.path().join("a"), dir.path().join("b")];
    match (Mount::Overlay { lowers, upper: None }).with_temp() {
        Ok(_) => true,
        Err(error) if std::env::var_os("CI").is_some() => panic!("cannot mount an overlay: {error}"),
        Err(error) => {
            println!("skipped: cannot mount an overlay: {error}");
            false
        }
    }
}
