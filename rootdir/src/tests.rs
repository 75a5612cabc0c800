use std::ffi::OsStr;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use crate::{Kind, OpenOptions, Root, Time};

/// A root with a world around it that must stay as it is: `secret` and `victim/` beside the root.
struct World {
    dir: tempfile::TempDir,
    root: Root,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        std::fs::write(path.join("secret"), "secret").unwrap();
        std::fs::create_dir_all(path.join("victim/deep")).unwrap();
        std::fs::write(path.join("victim/file"), "kept").unwrap();
        std::fs::create_dir_all(path.join("root/dir/sub")).unwrap();
        std::fs::write(path.join("root/file"), "inside").unwrap();
        std::fs::write(path.join("root/dir/inner"), "inner").unwrap();
        let root = Root::open(&path.join("root")).unwrap();
        Self { dir, root }
    }

    fn inside(&self, name: &str) -> PathBuf {
        self.dir.path().join("root").join(name)
    }

    fn link(&self, target: impl AsRef<Path>, name: &str) {
        symlink(target, self.inside(name)).unwrap();
    }

    fn outside(&self) -> PathBuf {
        self.dir.path().to_owned()
    }

    #[track_caller]
    fn assert_untouched(&self) {
        assert_eq!(std::fs::read_to_string(self.dir.path().join("secret")).unwrap(), "secret");
        assert_eq!(std::fs::read_to_string(self.dir.path().join("victim/file")).unwrap(), "kept");
        assert!(self.dir.path().join("victim/deep").is_dir());
        let names = std::fs::read_dir(self.dir.path()).unwrap().count();
        assert_eq!(names, 3, "something was made beside the root");
    }
}

/// Ways out that are none. Each path, taken from the root, would be `secret` or `victim` outside.
fn ways_out(world: &World) -> Vec<PathBuf> {
    let outside = world.outside();
    world.link("..", "up");
    world.link("../..", "dir/up2");
    world.link(&outside, "absolute");
    world.link("/", "slash");
    world.link("up/up/up", "chain");
    let mut paths = vec![
        PathBuf::from("../secret"),
        PathBuf::from("/../secret"),
        PathBuf::from("dir/../../secret"),
        PathBuf::from("dir/sub/../../../secret"),
        PathBuf::from("up/secret"),
        PathBuf::from("dir/up2/secret"),
        PathBuf::from("absolute/secret"),
        PathBuf::from("chain/secret"),
        PathBuf::from("slash/../secret"),
        PathBuf::from("slash").join(outside.strip_prefix("/").unwrap()).join("secret"),
    ];
    paths.push(outside.join("secret"));
    paths
}

#[test]
fn nothing_outside_is_read() {
    let world = World::new();
    for path in ways_out(&world) {
        assert_eq!(world.root.stat(&path, true).unwrap(), None, "{path:?}");
        assert!(world.root.open_file(&path, &OpenOptions::read()).unwrap_err().is_not_found(), "{path:?}");
        assert!(world.root.open_dir(path.with_file_name("victim")).is_err(), "{path:?}");
        assert!(world.root.read_dir(path.with_file_name("victim")).is_err(), "{path:?}");
        assert!(world.root.list_xattrs(&path).is_err(), "{path:?}");
        let clean = world.root.resolve(&path, true).unwrap();
        assert!(clean.is_absolute() && !clean.components().any(|part| part.as_os_str() == ".."), "{clean:?}");
    }
}

#[test]
fn nothing_outside_is_changed() {
    let world = World::new();
    for path in ways_out(&world) {
        let victim = path.with_file_name("victim");
        let _ = world.root.write(&path, b"overwritten", 0o644);
        let _ = world.root.mkdir_all(path.with_file_name("made").join("deeper"), 0o755);
        let _ = world.root.mkdir(path.with_file_name("dir2"), 0o755);
        let _ = world.root.remove_file(&path);
        let _ = world.root.remove_all(&victim);
        let _ = world.root.rename(&victim, "taken");
        let _ = world.root.rename("file", &path);
        let _ = world.root.hard_link(&path, "linked");
        let _ = world.root.hard_link("file", path.with_file_name("linked"));
        let _ = world.root.symlink("x", path.with_file_name("symlink"));
        let _ = world.root.mknod(path.with_file_name("fifo"), Kind::Fifo, 0o644, (0, 0));
        let _ = world.root.chmod(&path, 0o777);
        let _ = world.root.chown(&path, 1, 1);
        let _ = world.root.set_times(&path, Time::default(), Time::default(), false);
        let _ = world.root.set_xattr(&path, "user.x", b"x");
        let secret = world.outside().join("secret").metadata().unwrap();
        assert_ne!(secret.permissions().mode() & 0o777, 0o777, "{path:?}");
        assert_ne!(secret.mtime(), 0, "{path:?}");
        world.assert_untouched();
    }
}

#[test]
fn links_lead_where_they_would_if_the_root_were_slash() {
    let world = World::new();
    world.link("/dir", "to-dir");
    world.link("/file", "dir/to-file");
    world.link("to-dir/to-file", "twice");
    world.link("/etc/../../dir/inner", "dots");
    std::fs::create_dir(world.inside("etc")).unwrap();
    let read = |path: &str| String::from_utf8(world.root.read(path, 100).unwrap()).unwrap();
    assert_eq!(read("to-dir/inner"), "inner");
    assert_eq!(read("twice"), "inside");
    assert_eq!(read("dots"), "inner");
    assert_eq!(read("/../../dir/../file"), "inside");
    assert_eq!(world.root.read_link("twice").unwrap(), Path::new("to-dir/to-file"));
    assert!(world.root.open_file("twice", &OpenOptions::read().follow_last(false)).is_err());
    assert!(world.root.stat("twice", false).unwrap().unwrap().is_symlink());
}

#[track_caller]
fn check_resolve(world: &World, path: &str, follow: bool, want: &str) {
    assert_eq!(world.root.resolve(path, follow).unwrap(), Path::new(want), "{path}");
}

#[test]
fn resolved_paths() {
    let world = World::new();
    world.link("/dir", "abs");
    world.link("dir/sub", "rel");
    world.link("/nowhere/at", "dangling");
    world.link("file/x", "through-file");
    for (path, follow, want) in [
        ("", true, "/"),
        ("/", true, "/"),
        (".//./", true, "/"),
        ("file", true, "/file"),
        ("abs", true, "/dir"),
        ("abs", false, "/abs"),
        ("abs/", false, "/abs"),
        ("abs/sub", false, "/dir/sub"),
        ("rel/../inner", true, "/dir/inner"),
        ("abs/missing/more", true, "/dir/missing/more"),
        ("missing/../file", true, "/file"),
        ("missing/../../../abs", true, "/dir"),
        ("dangling/end", true, "/nowhere/at/end"),
        ("dangling", true, "/nowhere/at"),
        ("dangling", false, "/dangling"),
        ("through-file", true, "/file/x"),
        ("../../abs/inner", true, "/dir/inner"),
    ] {
        check_resolve(&world, path, follow, want);
    }
}

#[test]
fn loops_end() {
    let world = World::new();
    world.link("b", "a");
    world.link("a", "b");
    world.link("self/x", "self");
    let mut name = "file".to_owned();
    for step in 0..60 {
        let next = format!("step{step}");
        world.link(&name, &next);
        name = next;
    }
    let errno = |error: crate::Error| error.raw_os_error();
    let too_many = Some(rustix::io::Errno::LOOP.raw_os_error());
    for path in ["a", "a/x", "self", name.as_str()] {
        assert_eq!(errno(world.root.resolve(path, true).unwrap_err()), too_many, "{path}");
        assert_eq!(errno(world.root.open_dir(path).unwrap_err()), too_many, "{path}");
        assert_eq!(errno(world.root.write(path, b"", 0o644).unwrap_err()), too_many, "{path}");
    }
    check_resolve(&world, "a", false, "/a");
    // A link that doubles the work at each step: bounded, not exponential.
    let many = "x/../".repeat(700) + "bomb";
    std::fs::create_dir(world.inside("x")).unwrap();
    world.link(many, "bomb");
    assert_eq!(errno(world.root.resolve("bomb", true).unwrap_err()), too_many);
}

#[test]
fn magic_links_are_refused() {
    let root = Root::open(Path::new("/proc")).unwrap();
    for path in ["self/root/etc", "self/cwd/Cargo.toml", "self/fd/0"] {
        assert!(root.open_path(path, true).is_err(), "{path}");
    }
}

#[test]
fn special_files_are_not_opened() {
    let world = World::new();
    world.root.mknod("fifo", Kind::Fifo, 0o644, (0, 0)).unwrap();
    world.link("fifo", "to-fifo");
    // None of these may wait for a writer.
    for path in ["fifo", "to-fifo", "dir"] {
        assert!(world.root.open_file(path, &OpenOptions::read()).is_err(), "{path}");
        assert!(world.root.write(path, b"x", 0o644).is_err(), "{path}");
    }
}

#[test]
fn files_are_made_with_exact_modes() {
    let world = World::new();
    world.root.mkdir("d", 0o1777).unwrap();
    world.root.write("f", b"x", 0o666).unwrap();
    world.root.mknod("p", Kind::Fifo, 0o622, (0, 0)).unwrap();
    world.root.open_file("s", &OpenOptions::create_new(0o4755)).unwrap();
    for (path, want) in [("d", 0o1777), ("f", 0o666), ("p", 0o622), ("s", 0o4755)] {
        assert_eq!(world.root.stat(path, false).unwrap().unwrap().mode, want, "{path}");
    }
    assert!(world.root.open_file("f", &OpenOptions::create_new(0o644)).is_err());
    world.link("/new/target", "dangling");
    assert!(world.root.write("dangling", b"x", 0o644).unwrap_err().is_not_found());
    world.root.mkdir("new", 0o755).unwrap();
    world.root.write("dangling", b"through", 0o644).unwrap();
    assert_eq!(world.root.read("new/target", 100).unwrap(), b"through");
    let kept = OpenOptions::overwrite(0o644).follow_last(false);
    assert!(world.root.open_file("dangling", &kept).is_err());
}

#[test]
fn directories_are_made_on_the_way() {
    let world = World::new();
    world.link("/far/away", "dangling");
    let made = world.root.mkdir_all("dangling/x", 0o700).unwrap();
    assert_eq!(made, ["/far", "/far/away", "/far/away/x"].map(PathBuf::from));
    assert_eq!(world.root.stat("far/away", true).unwrap().unwrap().mode, 0o700);
    assert_eq!(world.root.mkdir_all("dangling/x", 0o755).unwrap(), Vec::<PathBuf>::new());
    assert!(world.root.mkdir_all("file/x", 0o755).is_err());
    assert!(world.root.mkdir_all("file", 0o755).is_err());
    for path in ["", "/", ".", "..", "dir/.."] {
        assert!(world.root.mkdir(path, 0o755).is_err(), "{path}");
        assert!(world.root.remove_all(path).is_err(), "{path}");
    }
    assert!(world.inside("file").exists());
}

#[test]
fn trees_are_removed_and_links_are_not_followed() {
    let world = World::new();
    std::fs::create_dir_all(world.inside("tree/a/b")).unwrap();
    world.link(world.outside().join("victim"), "tree/a/link");
    world.link("../../../../victim", "tree/a/b/link");
    std::fs::write(world.inside("tree/a/b/f"), "").unwrap();
    world.root.remove_all("tree").unwrap();
    world.root.remove_all("tree").unwrap();
    world.root.remove_all("no/such").unwrap();
    world.link("/dir", "to-dir");
    world.root.remove_all("to-dir").unwrap();
    world.root.remove_all("file").unwrap();
    assert!(world.inside("dir/inner").exists());
    assert!(!world.inside("tree").exists() && !world.inside("file").exists());
    world.assert_untouched();
}

#[test]
fn deep_trees_are_removed() {
    let world = World::new();
    // Far deeper than a path can say, and than there may be open files.
    let mut at = world.root.open_dir("dir").unwrap();
    for _ in 0..2200 {
        at.mkdir("d", 0o755).unwrap();
        at.write("f", b"", 0o644).unwrap();
        at = at.open_dir("d").unwrap();
    }
    world.root.remove_all("dir").unwrap();
    assert!(!world.inside("dir").exists());
}

#[test]
fn entries_come_sorted() {
    let world = World::new();
    for name in ["b", "B", "a", "a0", "ä", "-"] {
        world.root.write(Path::new("dir/sub").join(name), b"", 0o644).unwrap();
    }
    let names = |entries: Vec<crate::Entry>| entries.into_iter().map(|entry| entry.name).collect::<Vec<_>>();
    let got = names(world.root.read_dir("dir/sub").unwrap());
    assert_eq!(got, ["-", "B", "a", "a0", "b", "ä"].map(|name| OsStr::new(name).to_owned()));
    let stats = world.root.read_dir_stat("/dir").unwrap();
    assert_eq!(stats.len(), 2);
    assert_eq!((stats[0].0.as_os_str(), stats[0].1.size), (OsStr::new("inner"), 5));
}

#[test]
fn attributes_are_set_on_what_is_named() {
    let world = World::new();
    world.link("file", "link");
    let time = Time { seconds: -5, nanoseconds: 123_456_789 };
    world.root.set_times("link", time, time, true).unwrap();
    assert_eq!(world.root.stat("link", false).unwrap().unwrap().mtime, time);
    assert_ne!(world.root.stat("file", false).unwrap().unwrap().mtime, time);
    world.root.set_times("link", time, time, false).unwrap();
    assert_eq!(world.root.stat("file", false).unwrap().unwrap().mtime, time);
    assert!(world.root.chmod("link", 0o777).is_err());
    world.root.chmod("file", 0o4711).unwrap();
    assert_eq!(world.root.stat("link", true).unwrap().unwrap().mode, 0o4711);
    world.root.set_times("/", time, time, true).unwrap();
    assert_eq!(world.root.stat("", true).unwrap().unwrap().mtime, time);
}

#[test]
fn extended_attributes() {
    let world = World::new();
    match world.root.set_xattr("file", "user.b", b"2") {
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::OPNOTSUPP.raw_os_error()) => return,
        outcome => outcome.unwrap(),
    }
    world.root.set_xattr("file", "user.a", &[0, 1, 255]).unwrap();
    world.root.set_xattr("dir", "user.d", &[b'x'; 3000]).unwrap();
    let got: Vec<_> = world.root.list_xattrs("file").unwrap();
    let own: Vec<_> = got.iter().filter(|name| name.to_string_lossy().starts_with("user.")).collect();
    assert_eq!(own, ["user.a", "user.b"]);
    assert_eq!(world.root.get_xattr("file", "user.a").unwrap(), Some(vec![0, 1, 255]));
    assert_eq!(world.root.get_xattr("dir/", "user.d").unwrap().map(|value| value.len()), Some(3000));
    assert_eq!(world.root.get_xattr("file", "user.none").unwrap(), None);
    // A link has none of its own, and those of its target are not shown for it.
    world.link("file", "link");
    assert_eq!(world.root.get_xattr("link", "user.a").unwrap_or_default(), None);
    world.root.remove_xattr("file", "user.a").unwrap();
    world.root.remove_xattr("file", "user.a").unwrap();
    assert_eq!(world.root.get_xattr("file", "user.a").unwrap(), None);
}

#[test]
fn reading_is_bounded() {
    let world = World::new();
    assert_eq!(world.root.read("file", 6).unwrap(), b"inside");
    assert_eq!(world.root.read("file", 5).unwrap_err().kind(), std::io::ErrorKind::FileTooLarge);
    let long = "x/".repeat(3000);
    assert_eq!(world.root.open_dir(&long).unwrap_err().kind(), std::io::ErrorKind::InvalidFilename);
}

/// Somebody keeps swapping a directory for a link out of the root, while paths through it are used.
#[test]
fn a_racing_rename_gives_nothing_away() {
    let world = World::new();
    let outside = world.outside();
    world.link(outside.join("victim"), "dir-link");
    let (real, link) = (world.inside("dir"), world.inside("dir-link"));
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            use rustix::fs::{CWD, RenameFlags};
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let _ = rustix::fs::renameat_with(CWD, &real, CWD, &link, RenameFlags::EXCHANGE);
            }
        });
        // Stops the other thread also when an assertion fails.
        let _stop = StopOnDrop(&stop);
        for round in 0..2000 {
            for path in ["dir/inner", "dir/../dir/inner", "dir-link/inner"] {
                if let Ok(content) = world.root.read(path, 100) {
                    assert_eq!(content, b"inner");
                }
            }
            let _ = world.root.write("dir/file", b"overwritten", 0o644);
            let _ = world.root.remove_file("dir/file");
            if round % 100 == 0 {
                let _ = world.root.remove_all("dir/deep");
            }
        }
    });
    world.assert_untouched();
}

struct StopOnDrop<'a>(&'a std::sync::atomic::AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}
