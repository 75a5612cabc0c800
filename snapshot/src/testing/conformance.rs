//! What every [`Snapshotter`] keeps, by the numbers of its contract. Each function panics on a breach.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a suite for tests")]

use std::collections::BTreeMap;
use std::path::Path;

use crate::error::Error;
use crate::mount::Mount;
use crate::snapshotter::{SnapshotId, Snapshotter};

/// Checks what does not need stacking: contracts 1, 4, 5 and 7. `open` opens the same place each time.
pub async fn lifecycle<S: Snapshotter>(open: impl Fn() -> S) {
    let store = open();
    let a = id("a");
    store.prepare(&a, None).await.unwrap();
    let mount = store.active_mount(&a, &[]).await.unwrap();
    assert!(!mount.is_read_only());
    write(&mount, "file", "one");
    exists(store.prepare(&a, None).await, &a);
    exists(store.staging(&a).await, &a);
    not_found(store.diff_dir(&a).await, &a);
    not_found(store.view(std::slice::from_ref(&a)).await, &a);

    let store = open();
    assert_eq!(store.active_mount(&a, &[]).await.unwrap(), mount);
    assert_eq!(store.list().await.unwrap(), std::slice::from_ref(&a));
    let usage = store.commit(&a).await.unwrap();
    assert_eq!(usage.inodes, 1);
    assert!(usage.bytes > 0);
    assert_eq!(store.usage(&a).await.unwrap(), usage);
    not_found(store.commit(&a).await, &a);
    not_found(store.active_mount(&a, &[]).await, &a);
    exists(store.prepare(&a, None).await, &a);
    assert_eq!(tree(&store.diff_dir(&a).await.unwrap()), files(&[("file", "one")]));
    let view = store.view(std::slice::from_ref(&a)).await.unwrap();
    assert!(view.is_read_only());
    assert_eq!(tree(view.with_temp().unwrap().path()), files(&[("file", "one")]));

    // Opened again it is as any active one, and can be committed once more.
    for _twice in 0..2 {
        store.reopen(&a).await.unwrap();
    }
    not_found(store.diff_dir(&a).await, &a);
    assert_eq!(store.active_mount(&a, &[]).await.unwrap(), mount);
    write(&mount, "file", "two");
    store.commit(&a).await.unwrap();
    assert_eq!(tree(&store.diff_dir(&a).await.unwrap()), files(&[("file", "two")]));
    not_found(store.reopen(&id("none")).await, &id("none"));

    let b = id("b");
    not_found(store.publish(&b).await, &b);
    let dir = store.staging(&b).await.unwrap();
    std::fs::write(dir.join("x"), "x").unwrap();
    assert_eq!(tree(&store.staging(&b).await.unwrap()), files(&[]));
    std::fs::write(dir.join("y"), "y").unwrap();
    assert!(!store.exists(&b).await.unwrap());
    assert_eq!(store.publish(&b).await.unwrap().inodes, 1);
    assert!(store.exists(&b).await.unwrap());
    assert_eq!(tree(&store.diff_dir(&b).await.unwrap()), files(&[("y", "y")]));
    store.staging(&id("lost")).await.unwrap();

    let store = open();
    not_found(store.publish(&id("lost")).await, &id("lost"));
    assert_eq!(store.list().await.unwrap(), [a.clone(), b.clone()]);
    assert_eq!(tree(store.view(&[]).await.unwrap().with_temp().unwrap().path()), files(&[]));
    for snapshot in [&a, &b, &a] {
        store.remove(snapshot).await.unwrap();
        assert!(!store.exists(snapshot).await.unwrap());
        not_found(store.usage(snapshot).await, snapshot);
    }
    not_found(store.prepare(&id("c"), Some(&a)).await, &a);
    assert!(store.list().await.unwrap().is_empty());
}

/// Checks stacking: contracts 2 and 3. Needs what mounting needs.
pub async fn stacking(store: &dyn Snapshotter) {
    let (a, b, c) = (id("a"), id("b"), id("c"));
    store.prepare(&a, None).await.unwrap();
    let bottom = store.active_mount(&a, &[]).await.unwrap();
    write(&bottom, "kept", "a");
    write(&bottom, "changed", "a");
    write(&bottom, "gone", "a");
    write(&bottom, "dir/inner", "a");
    store.commit(&a).await.unwrap();

    let lowers = [a.clone()];
    store.prepare(&b, lowers.last()).await.unwrap();
    let mount = store.active_mount(&b, &lowers).await.unwrap();
    {
        let mounted = mount.with_temp().unwrap();
        let path = mounted.path();
        std::fs::write(path.join("changed"), "b").unwrap();
        std::fs::remove_file(path.join("gone")).unwrap();
        std::fs::remove_dir_all(path.join("dir")).unwrap();
        std::fs::create_dir(path.join("dir")).unwrap();
        std::fs::write(path.join("dir/new"), "b").unwrap();
        // A second user of the same snapshot sees the same.
        let again = store.active_mount(&b, &lowers).await.unwrap().with_temp().unwrap();
        assert_eq!(std::fs::read_to_string(again.path().join("dir/new")).unwrap(), "b");
        drop(mounted);
        std::fs::write(again.path().join("late"), "b").unwrap();
    }
    {
        let again = store.active_mount(&b, &lowers).await.unwrap().with_temp().unwrap();
        assert_eq!(std::fs::read_to_string(again.path().join("late")).unwrap(), "b");
    }
    store.commit(&b).await.unwrap();
    let both = [("changed", "b"), ("dir/new", "b"), ("kept", "a"), ("late", "b")];
    let stack = [a.clone(), b.clone()];
    let view = store.view(&stack).await.unwrap();
    let mounted = view.with_temp().unwrap();
    assert_eq!(tree(mounted.path()), files(&both));
    assert_eq!(tree(&store.diff_dir(&a).await.unwrap()).len(), 4, "the lower layer is untouched");
    drop(mounted);

    store.prepare(&c, stack.last()).await.unwrap();
    let mount = store.active_mount(&c, &stack).await.unwrap();
    assert_eq!(tree(mount.with_temp().unwrap().path()), files(&both));
    store.commit(&c).await.unwrap();
    let all = vec![c.clone(), id("nothing"), a.clone()];
    let usages = store.usages(all).await.unwrap();
    assert_eq!(usages, [Some(store.usage(&c).await.unwrap()), None, Some(store.usage(&a).await.unwrap())]);
    assert_eq!(usages[0].map(|usage| usage.inodes), Some(0));
    // The order is the caller's: what only the upper knew about is under it now.
    let turned = store.view(&[b.clone(), a.clone()]).await.unwrap();
    let shown = tree(turned.with_temp().unwrap().path());
    assert_eq!(shown.get("changed").map(String::as_str), Some("a"));
    let d = id("d");
    store.prepare(&d, stack.last()).await.unwrap();
    store.remove(&a).await.unwrap();
    not_found(store.view(&stack).await, &a);
    not_found(store.active_mount(&d, &stack).await, &a);
}

fn id(text: &str) -> SnapshotId {
    SnapshotId::new(text).unwrap()
}

fn write(mount: &Mount, name: &str, content: &str) {
    let mounted = mount.with_temp().unwrap();
    let path = mounted.path().join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, content).unwrap();
}

fn files(list: &[(&str, &str)]) -> BTreeMap<String, String> {
    list.iter().map(|(name, content)| ((*name).to_owned(), (*content).to_owned())).collect()
}

/// The regular files of a directory, and their content.
pub fn tree(dir: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(at) = todo.pop() {
        for entry in std::fs::read_dir(&at).unwrap() {
            let entry = entry.unwrap();
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                todo.push(entry.path());
            } else if kind.is_file() {
                let name = entry.path().strip_prefix(dir).unwrap().to_str().unwrap().to_owned();
                found.insert(name, std::fs::read_to_string(entry.path()).unwrap());
            }
        }
    }
    found
}

#[track_caller]
fn exists<T>(outcome: crate::Result<T>, id: &SnapshotId) {
    match outcome {
        Err(Error::Exists { id: named }) => assert_eq!(&named, id),
        Err(other) => panic!("`{id}` is there, but the error is: {other}"),
        Ok(_) => panic!("`{id}` is there, but the call succeeded"),
    }
}

#[track_caller]
fn not_found<T>(outcome: crate::Result<T>, id: &SnapshotId) {
    match outcome {
        Err(Error::NotFound { id: named }) => assert_eq!(&named, id),
        Err(other) => panic!("`{id}` is not there, but the error is: {other}"),
        Ok(_) => panic!("`{id}` is not there, but the call succeeded"),
    }
}
