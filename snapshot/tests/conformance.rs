//! The conformance suite, and what is particular to overlayfs. Mounting needs root.
#![expect(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "tests; a skip is to be seen")]

use kiln_snapshot::testing::{PlainSnapshotter, conformance};
use kiln_snapshot::{Mount, NativeSnapshotter, OverlaySnapshotter, SnapshotId, Snapshotter as _};

#[tokio::test]
async fn plain_directories() {
    let dir = tempfile::tempdir().unwrap();
    conformance::lifecycle(|| PlainSnapshotter::open(dir.path()).unwrap()).await;
}

#[tokio::test]
async fn native_lifecycle() {
    let dir = tempfile::tempdir().unwrap();
    conformance::lifecycle(|| NativeSnapshotter::open(dir.path()).unwrap()).await;
}

#[tokio::test]
async fn native_stacking() {
    let dir = tempfile::tempdir().unwrap();
    conformance::stacking(&NativeSnapshotter::open(dir.path()).unwrap()).await;
}

#[tokio::test]
async fn native_copies_keep_what_files_have() {
    use std::os::unix::fs::{FileExt as _, MetadataExt as _};
    let dir = tempfile::tempdir().unwrap();
    let store = NativeSnapshotter::open(dir.path()).unwrap();
    let [a, b] = ["a", "b"].map(|name| SnapshotId::new(name).unwrap());
    let staged = store.staging(&a).await.unwrap();
    let sparse = std::fs::File::create(staged.join("sparse")).unwrap();
    sparse.write_all_at(b"end", 64 << 20).unwrap();
    drop(sparse);
    std::fs::write(staged.join("one"), "linked").unwrap();
    std::fs::hard_link(staged.join("one"), staged.join("two")).unwrap();
    std::fs::write(staged.join("able"), "x").unwrap();
    let root = kiln_rootdir::Root::open(&staged).unwrap();
    root.set_xattr("able", "user.mark", b"y").unwrap();
    root.chown("able", 5, 6).unwrap();
    root.chmod("able", 0o4711).unwrap();
    // Version 2, effective, net_bind_service.
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    root.set_xattr("able", "security.capability", &capability).unwrap();
    store.publish(&a).await.unwrap();

    store.prepare(&b, Some(&a)).await.unwrap();
    let mounted = store.active_mount(&b, std::slice::from_ref(&a)).await.unwrap().with_temp().unwrap();
    let at = |name: &str| mounted.path().join(name).symlink_metadata().unwrap();
    assert_eq!(at("sparse").len(), (64 << 20) + 3);
    assert!(at("sparse").blocks() * 512 < 1 << 20, "{} blocks", at("sparse").blocks());
    assert_eq!((at("one").ino(), at("one").nlink()), (at("two").ino(), 2));
    assert_eq!((at("able").mode() & 0o7777, at("able").uid(), at("able").gid()), (0o4711, 5, 6));
    let copy = kiln_rootdir::Root::open(mounted.path()).unwrap();
    assert_eq!(copy.get_xattr("able", "user.mark").unwrap().as_deref(), Some(b"y".as_slice()));
    assert_eq!(copy.get_xattr("able", "security.capability").unwrap().as_deref(), Some(&capability[..]));
    // Written in place, under the same length and time: only the filesystem knows.
    let before = at("able").modified().unwrap();
    let file = std::fs::File::options().write(true).open(mounted.path().join("able")).unwrap();
    file.write_all_at(b"z", 0).unwrap();
    file.set_modified(before).unwrap();
    std::fs::hard_link(mounted.path().join("one"), mounted.path().join("three")).unwrap();
    store.commit(&b).await.unwrap();
    let kept = conformance::tree(&store.diff_dir(&b).await.unwrap());
    let names: Vec<&str> = kept.keys().map(String::as_str).collect();
    assert_eq!(names, ["able", "one", "three", "two"]);
    let below = store.diff_dir(&a).await.unwrap();
    assert_eq!(std::fs::read_to_string(below.join("able")).unwrap(), "x");
}

#[tokio::test]
async fn overlay_drops_what_only_native_shows() {
    let Some(dir) = privileged() else { return };
    let native = NativeSnapshotter::open(dir.path()).unwrap();
    let [a, b] = ["a", "b"].map(|name| SnapshotId::new(name).unwrap());
    native.prepare(&a, None).await.unwrap();
    native.commit(&a).await.unwrap();
    native.prepare(&b, Some(&a)).await.unwrap();
    native.active_mount(&b, std::slice::from_ref(&a)).await.unwrap();
    assert!(NativeSnapshotter::open(dir.path()).unwrap().exists(&b).await.unwrap());
    let overlay = OverlaySnapshotter::open(dir.path()).unwrap();
    assert!(!overlay.exists(&b).await.unwrap() && overlay.exists(&a).await.unwrap());
    OverlaySnapshotter::works_at(dir.path()).unwrap();
}

#[tokio::test]
async fn overlay_lifecycle() {
    let Some(dir) = privileged() else { return };
    conformance::lifecycle(|| OverlaySnapshotter::open(dir.path()).unwrap()).await;
}

#[tokio::test]
async fn overlay_stacking() {
    let Some(dir) = privileged() else { return };
    conformance::stacking(&OverlaySnapshotter::open(dir.path()).unwrap()).await;
}

#[tokio::test]
async fn overlay_long_paths() {
    let Some(dir) = privileged() else { return };
    let long = dir.path().join("l".repeat(200)).join("m".repeat(200));
    conformance::stacking(&OverlaySnapshotter::open(long).unwrap()).await;
}

#[tokio::test]
async fn stacks_deeper_than_the_kernel_takes() {
    let Some(dir) = privileged() else { return };
    let store = OverlaySnapshotter::open(dir.path()).unwrap();
    let mut stack = Vec::new();
    for layer in 0..1010 {
        let id = SnapshotId::new(format!("s{layer}")).unwrap();
        let staged = store.staging(&id).await.unwrap();
        std::fs::write(staged.join("last"), layer.to_string()).unwrap();
        std::fs::write(staged.join(format!("f{layer}")), "").unwrap();
        if layer % 100 == 0 {
            std::fs::create_dir(staged.join("dir")).unwrap();
            std::fs::write(staged.join("dir").join(format!("d{layer}")), "").unwrap();
        }
        if layer == 300 {
            // Hides everything below.
            let opaque = kiln_rootdir::Root::open(&staged).unwrap();
            opaque.set_xattr("dir", "trusted.overlay.opaque", b"y").unwrap();
            opaque.mknod("f7", kiln_rootdir::Kind::CharDevice, 0, (0, 0)).unwrap();
        }
        store.publish(&id).await.unwrap();
        stack.push(id);
    }
    let view = store.view(&stack).await.unwrap();
    let Mount::Overlay { lowers, .. } = &view else { panic!("{view:?}") };
    assert!(lowers.len() <= 500, "{}", lowers.len());
    let mounted = view.with_temp().unwrap();
    assert_eq!(std::fs::read_to_string(mounted.path().join("last")).unwrap(), "1009");
    assert!(!mounted.path().join("f7").exists());
    assert!(mounted.path().join("f8").exists());
    assert!(mounted.path().join("f1009").exists());
    assert!(!mounted.path().join("dir/d200").exists());
    assert!(mounted.path().join("dir/d300").exists());
    assert!(mounted.path().join("dir/d1000").exists());
    assert_eq!(store.view(&stack).await.unwrap(), view, "the merged part is kept");
    drop(mounted);
    let merged = || std::fs::read_dir(dir.path().join("merged")).unwrap().count();
    let before = merged();
    store.remove(&stack[3]).await.unwrap();
    assert_eq!(merged(), before - 1, "what was merged from it is gone, the rest stays");
}

#[tokio::test]
async fn a_second_start_finds_no_mounts() {
    let Some(dir) = privileged() else { return };
    let store = OverlaySnapshotter::open(dir.path()).unwrap();
    let (a, b) = (SnapshotId::new("a").unwrap(), SnapshotId::new("b").unwrap());
    store.prepare(&a, None).await.unwrap();
    store.commit(&a).await.unwrap();
    store.prepare(&b, Some(&a)).await.unwrap();
    let mount = store.active_mount(&b, &[a]).await.unwrap();
    let left = mount.with_temp().unwrap();
    let path = left.path().to_owned();
    std::fs::write(path.join("x"), "").unwrap();
    std::mem::forget(left);
    OverlaySnapshotter::open(dir.path()).unwrap();
    assert!(!path.join("x").exists());
}

/// A directory, if this process may mount there. Says so if not, and fails where CI promises it.
fn privileged() -> Option<tempfile::TempDir> {
    let dir = tempfile::tempdir().unwrap();
    for name in ["a", "b"] {
        std::fs::create_dir(dir.path().join(name)).unwrap();
    }
    let lowers = vec![dir.path().join("a"), dir.path().join("b")];
    match (Mount::Overlay { lowers, upper: None }).with_temp() {
        Ok(_) => Some(tempfile::tempdir().unwrap()),
        Err(error) if std::env::var_os("CI").is_some() => panic!("cannot mount an overlay: {error}"),
        Err(error) => {
            println!("skipped: cannot mount an overlay: {error}");
            None
        }
    }
}
