//! The conformance suite, and what is particular to overlayfs. Mounting needs root.
#![expect(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "tests; a skip is to be seen")]

use kiln_snapshot::testing::{PlainSnapshotter, conformance};
use kiln_snapshot::{Mount, OverlaySnapshotter, SnapshotId, Snapshotter as _};

#[tokio::test]
async fn plain_directories() {
    let dir = tempfile::tempdir().unwrap();
    conformance::lifecycle(|| PlainSnapshotter::open(dir.path()).unwrap()).await;
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
