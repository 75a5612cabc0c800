use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::*;
use kiln_rootdir::Root;

/// A directory with files `path` of this content, and what is done to it.
fn listing(
    selector: &ContentSelector,
    change: impl FnOnce(&std::path::Path),
) -> (tempfile::TempDir, Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    for name in ["a", "d/b", "d/c", "d/sub/e", "z.txt"] {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, name).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    }
    symlink("a", dir.path().join("link")).unwrap();
    change(dir.path());
    let bytes = of(dir.path(), selector, MAX_LISTED);
    (dir, bytes)
}

fn of(dir: &std::path::Path, selector: &ContentSelector, room: usize) -> Vec<u8> {
    let root = Root::open(dir).unwrap();
    let view = View { root: &root, name: "x", received: false };
    let mut tree = Tree::default();
    tree.begin(&view).unwrap();
    super::super::select::combined(&mut tree, Some(&view), std::slice::from_ref(selector)).unwrap();
    let mut listing = Listing::default();
    add(&mut listing, &mut tree, &view, selector, room, &mut MAX_READ.clone()).unwrap();
    listing.encode()
}

fn whole() -> ContentSelector {
    ContentSelector::default()
}

fn filtered() -> ContentSelector {
    ContentSelector { exclude: vec!["nothing".into()], ..ContentSelector::default() }
}

#[track_caller]
fn check(change: impl Fn(&std::path::Path), want: &str) {
    for selector in [whole(), filtered()] {
        let (_before, then) = listing(&selector, |_| ());
        let (dir, now) = listing(&selector, &change);
        let (then, now) = (Listing::decode(&then).unwrap(), Listing::decode(&now).unwrap());
        let got = compare::first(&then, &now).map(|found| {
            let same = found.doubt.as_ref().map(|doubt| {
                let root = Root::open(dir.path()).unwrap();
                compare::content_is_same(&root, std::ffi::OsStr::new(&found.change.path), &doubt.then)
                    .unwrap()
            });
            let change = found.resolved(same.unwrap_or(true));
            let values = change.was.zip(change.is).map(|(was, is)| format!(" {was}->{is}"));
            format!("{} {}{} +{}", change.path, change.what, values.unwrap_or_default(), change.further)
        });
        assert_eq!(got.unwrap_or_else(|| "none".to_owned()), want, "{selector:?}");
    }
}

fn chmod(path: &std::path::Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn each_change_is_named() {
    check(|_| (), "none");
    check(|dir| std::fs::write(dir.join("d/b"), "xxx").unwrap(), "/d/b content +0");
    check(|dir| std::fs::write(dir.join("d/b"), "longer than before").unwrap(), "/d/b content +0");
    check(|dir| chmod(&dir.join("d/c"), 0o755), "/d/c mode 0644->0755 +0");
    check(|dir| chmod(&dir.join("d/sub"), 0o700), "/d/sub mode 0755->0700 +0");
    check(
        |dir| {
            std::fs::write(dir.join("d/c"), "xxx").unwrap();
            chmod(&dir.join("d/c"), 0o755);
        },
        "/d/c content and mode 0644->0755 +0",
    );
    check(|dir| std::fs::write(dir.join("d/new"), "").unwrap(), "/d/new added +0");
    check(|dir| std::fs::remove_file(dir.join("d/sub/e")).unwrap(), "/d/sub/e removed +0");
    check(|dir| std::fs::remove_dir_all(dir.join("d")).unwrap(), "/d removed +0");
    check(
        |dir| {
            std::fs::remove_file(dir.join("link")).unwrap();
            symlink("z.txt", dir.join("link")).unwrap();
        },
        "/link target of the link +0",
    );
    check(
        |dir| {
            std::fs::remove_file(dir.join("a")).unwrap();
            std::fs::create_dir(dir.join("a")).unwrap();
            std::fs::write(dir.join("z.txt"), "other").unwrap();
        },
        "/a type +1",
    );
    check(|dir| std::os::unix::fs::chown(dir.join("a"), Some(7), Some(8)).unwrap(), "/a owner 0:0->7:8 +0");
}

#[test]
fn past_the_bound_the_deepest_known_directory_is_named() {
    for (selector, room, want) in [
        (whole(), 6, "/d something below it"),
        (whole(), 1, "/ something below it"),
        (whole(), 8, "/d/sub something below it"),
        (filtered(), 5, "/d something below it"),
        (filtered(), 7, "/d/sub something below it"),
        (filtered(), 2, "/d something below it"),
        (filtered(), 1, " something past the files that are listed"),
    ] {
        let (before, _) = listing(&selector, |_| ());
        let (after, _) = listing(&selector, |dir| std::fs::write(dir.join("d/sub/e"), "other").unwrap());
        let decoded = |dir: &tempfile::TempDir| Listing::decode(&of(dir.path(), &selector, room)).unwrap();
        let found = compare::first(&decoded(&before), &decoded(&after)).unwrap().change;
        assert_eq!(format!("{} {}", found.path, found.what), want, "room {room}");
    }
}

#[test]
fn a_listing_is_small_whatever_is_listed() {
    let dir = tempfile::tempdir().unwrap();
    for number in 0..1000 {
        std::fs::write(dir.path().join(format!("{number:04}{}", "x".repeat(200))), "").unwrap();
    }
    let root = Root::open(dir.path()).unwrap();
    let view = View { root: &root, name: "x", received: false };
    for selector in [whole(), filtered()] {
        let mut tree = Tree::default();
        tree.begin(&view).unwrap();
        let bytes = list(&mut tree, &view, &[selector]).unwrap();
        assert!(bytes.len() <= MAX_BYTES && bytes.len() > 20, "{}", bytes.len());
        let listing = Listing::decode(&bytes).unwrap();
        assert_eq!(listing.encode(), bytes);
        for cut in 0..bytes.len().min(300) {
            assert_eq!(Listing::decode(&bytes[..cut]), None, "cut at {cut}");
        }
    }
}
