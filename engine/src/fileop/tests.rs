use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink as link};

use kiln_content::tar::{EntryType, Header, Writer};
use kiln_content::{CodecOptions, Compression, compress};
use kiln_rootdir::Root;

use super::*;

struct Trees {
    src: tempfile::TempDir,
    dest: tempfile::TempDir,
}

impl Trees {
    fn new() -> Self {
        let trees = Self { src: tempfile::tempdir().unwrap(), dest: tempfile::tempdir().unwrap() };
        for dir in ["d/e", "empty", "other"] {
            fs::create_dir_all(trees.src.path().join(dir)).unwrap();
        }
        for (path, content) in
            [("a.txt", "a"), ("b.txt", "b"), ("d/c.txt", "c"), ("d/e/f.go", "f"), ("other/x", "x")]
        {
            fs::write(trees.src.path().join(path), content).unwrap();
        }
        fs::hard_link(trees.src.path().join("d/c.txt"), trees.src.path().join("d/c2.txt")).unwrap();
        link("/a.txt", trees.src.path().join("abs")).unwrap();
        link("../../../../etc/passwd", trees.src.path().join("escape")).unwrap();
        trees
    }

    fn copy(&self, action: CopyAction) -> String {
        let (src, dest) = (Root::open(self.src.path()).unwrap(), Root::open(self.dest.path()).unwrap());
        match copy(&src, &dest, &action) {
            Ok(()) => self.listing(),
            Err(error) => format!("error: {error}"),
        }
    }

    fn listing(&self) -> String {
        let mut lines = Vec::new();
        let mut dirs = vec![String::new()];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(self.dest.path().join(&dir)).unwrap() {
                let entry = entry.unwrap();
                let path = format!("{dir}{}", entry.file_name().to_string_lossy());
                let kind = entry.file_type().unwrap();
                if kind.is_dir() {
                    lines.push(format!("{path}/"));
                    dirs.push(format!("{path}/"));
                } else if kind.is_symlink() {
                    lines.push(format!("{path} -> {}", fs::read_link(entry.path()).unwrap().display()));
                } else {
                    lines.push(format!("{path}={}", fs::read_to_string(entry.path()).unwrap()));
                }
            }
        }
        lines.sort();
        lines.join(" ")
    }
}

fn action(src: &str, dest: &str) -> CopyAction {
    CopyAction {
        src: src.into(),
        dest: dest.into(),
        owner: None,
        mode: None,
        follow_symlink: true,
        dir_copy_contents: true,
        attempt_unpack: false,
        create_dest_path: true,
        allow_wildcard: true,
        allow_empty_wildcard: false,
        timestamp: -1,
        include: vec![],
        exclude: vec![],
        always_replace: false,
    }
}

#[track_caller]
fn check(action: CopyAction, want: &str) {
    assert_eq!(Trees::new().copy(action), want);
}

#[test]
fn targets() {
    check(action("/a.txt", "/x"), "x=a");
    check(action("/a.txt", "/x/"), "x/ x/a.txt=a");
    check(action("/a.txt", "/deep/er/x"), "deep/ deep/er/ deep/er/x=a");
    check(action("/d", "/t/"), "t/ t/c.txt=c t/c2.txt=c t/e/ t/e/f.go=f");
    check(
        CopyAction { dir_copy_contents: false, ..action("/d", "/t/") },
        "t/ t/d/ t/d/c.txt=c t/d/c2.txt=c t/d/e/ t/d/e/f.go=f",
    );
    check(action("/*.txt", "/t/"), "t/ t/a.txt=a t/b.txt=b");
    check(action("/d/*/f.go", "/t/"), "t/ t/f.go=f");
}

#[test]
fn links_stay_inside() {
    check(action("/abs", "/x"), "x=a");
    check(CopyAction { follow_symlink: false, ..action("/abs", "/x") }, "x -> /a.txt");
    check(action("/escape", "/x"), "error: /escape: not found");
    check(action("/../../etc/passwd", "/x"), "error: /etc/passwd: not found");
}

#[test]
fn missing_sources() {
    check(action("/nope", "/x"), "error: /nope: not found");
    check(action("/nope*", "/x/"), "error: /nope*: not found");
    check(CopyAction { allow_empty_wildcard: true, ..action("/nope*", "/x/") }, "");
    check(CopyAction { create_dest_path: false, ..action("/a.txt", "/no/x") }, "error: failed to stat /no");
}

#[test]
fn patterns_select_below_a_directory() {
    check(CopyAction { include: vec!["**/*.go".into()], ..action("/d", "/t") }, "t/ t/e/ t/e/f.go=f");
    check(CopyAction { exclude: vec!["e".into()], ..action("/d", "/t") }, "t/ t/c.txt=c t/c2.txt=c");
    check(CopyAction { include: vec!["nothing".into()], ..action("/d", "/t/") }, "t/");
}

#[test]
fn conflicts() {
    let trees = Trees::new();
    fs::create_dir_all(trees.dest.path().join("t/a.txt")).unwrap();
    fs::write(trees.dest.path().join("f"), "").unwrap();
    assert_eq!(trees.copy(action("/a.txt", "/t/")), "error: cannot replace to directory /t/a.txt with file");
    assert_eq!(trees.copy(action("/d", "/f")), "error: cannot copy to non-directory: /f");
    assert_eq!(trees.copy(CopyAction { always_replace: true, ..action("/a.txt", "/t/") }), "f= t/ t/a.txt=a");
}

#[test]
fn metadata_and_hard_links_are_kept() {
    let trees = Trees::new();
    fs::set_permissions(trees.src.path().join("d/c.txt"), fs::Permissions::from_mode(0o4711)).unwrap();
    trees.copy(CopyAction { timestamp: 5_000_000_000, ..action("/d", "/t") });
    let (one, two) = (
        trees.dest.path().join("t/c.txt").metadata().unwrap(),
        trees.dest.path().join("t/c2.txt").metadata().unwrap(),
    );
    assert_eq!((one.ino(), one.mode() & 0o7777, one.mtime()), (two.ino(), 0o4711, 5));
    trees.copy(CopyAction {
        mode: Some(ModeChange::parse("u=rwX,go=").unwrap()),
        owner: Some(Owner { uid: 7, gid: 8 }),
        ..action("/d", "/u")
    });
    let made = trees.dest.path().join("u/e/f.go").metadata().unwrap();
    assert_eq!((made.uid(), made.gid(), made.mode() & 0o7777), (7, 8, 0o600));
}

#[test]
fn mode_strings() {
    for (text, mode, dir, want) in [
        ("755", 0, false, 0o755),
        ("u+x", 0o644, false, 0o744),
        ("a-w", 0o666, false, 0o444),
        ("go=u", 0o740, false, 0o777),
        ("+X", 0o644, false, 0o644),
        ("+X", 0o644, true, 0o755),
        ("u+s,g+s,+t", 0o755, true, 0o7755),
        ("u=rw,g=r,o=", 0o777, false, 0o640),
    ] {
        assert_eq!(
            format!("{:o}", ModeChange::parse(text).unwrap().apply(mode, dir)),
            format!("{want:o}"),
            "{text}"
        );
    }
    for text in ["", "u", "z+x", "u+q", "99", "77777"] {
        assert!(ModeChange::parse(text).is_err(), "{text}");
    }
}

#[test]
fn small_actions() {
    let trees = Trees::new();
    let root = Root::open(trees.dest.path()).unwrap();
    let owner = Some(Owner { uid: 3, gid: 4 });
    mkdir(&root, &MkdirAction { path: "/m/n".into(), mode: 0o750, make_parents: true, owner, timestamp: 0 })
        .unwrap();
    mkfile(
        &root,
        &MkfileAction { path: "/m/f".into(), mode: 0o600, data: b"hi".to_vec(), owner: None, timestamp: -1 },
    )
    .unwrap();
    symlink(&root, &SymlinkAction { target: "../x".into(), path: "/m/l".into(), owner: None, timestamp: -1 })
        .unwrap();
    assert_eq!(trees.listing(), "m/ m/f=hi m/l -> ../x m/n/");
    let made = trees.dest.path().join("m/n").metadata().unwrap();
    assert_eq!((made.uid(), made.gid(), made.mode() & 0o777, made.mtime()), (3, 4, 0o750, 0));
    assert!(
        symlink(
            &root,
            &SymlinkAction { target: "y".into(), path: "/m/f".into(), owner: None, timestamp: -1 }
        )
        .is_err()
    );
    rm(&root, &RmAction { path: "/m/[fl]".into(), allow_not_found: false, allow_wildcard: true }).unwrap();
    assert_eq!(trees.listing(), "m/ m/n/");
    let missing = RmAction { path: "/gone".into(), allow_not_found: false, allow_wildcard: false };
    assert_eq!(rm(&root, &missing).unwrap_err().to_string(), "/gone: no such file or directory");
    assert!(rm(&root, &RmAction { allow_not_found: true, ..missing }).is_ok());
    assert!(matches!(
        rm(&root, &RmAction { path: "/..".into(), allow_not_found: true, allow_wildcard: false }),
        Err(FileError::EmptyPath)
    ));
}

/// Kind, name, link target or content, and what else is unusual.
type TarEntry<'a> = (EntryType, &'a str, &'a str);

fn tar(entries: &[TarEntry<'_>]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for (kind, name, text) in entries {
        let has_data = *kind == EntryType::FILE;
        let header = Header {
            name: name.as_bytes().to_vec(),
            kind: *kind,
            link_name: if has_data { Vec::new() } else { text.as_bytes().to_vec() },
            size: if has_data { text.len() as i64 } else { 0 },
            mode: 0o640,
            uid: 5,
            gid: 6,
            mtime: Some(kiln_content::tar::Time::from_seconds(1000)),
            dev_major: if *kind == EntryType::CHAR { 1 } else { 0 },
            dev_minor: if *kind == EntryType::CHAR { 3 } else { 0 },
            pax: BTreeMap::from([(b"SCHILY.xattr.user.k".to_vec(), b"v".to_vec())]),
            ..Header::default()
        };
        writer.header(&header).unwrap();
        if has_data {
            writer.write_all(text.as_bytes()).unwrap();
        }
    }
    writer.finish().unwrap()
}

#[track_caller]
fn check_unpack(archive: &[u8], want: &str) {
    let trees = Trees::new();
    fs::write(trees.src.path().join("archive"), archive).unwrap();
    fs::create_dir_all(trees.dest.path().join("t/old")).unwrap();
    fs::write(trees.dest.path().join("outside"), "o").unwrap();
    let got = trees.copy(CopyAction { attempt_unpack: true, ..action("/archive", "/t/") });
    assert_eq!(got.replace("outside=o ", ""), want);
    assert_eq!(fs::read_to_string(trees.dest.path().join("outside")).unwrap(), "o");
}

use EntryType as T;

#[test]
fn archives_are_extracted() {
    let plain = tar(&[(T::FILE, "f", "x"), (T::DIR, "d/", "")]);
    let want = "t/ t/d/ t/f=x t/old/";
    check_unpack(&plain, want);
    for compression in [Compression::Gzip, Compression::Zstd] {
        check_unpack(&compress(compression, &plain, &CodecOptions::new()).unwrap(), want);
    }
    let mut packed = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    packed.write_all(&plain).unwrap();
    check_unpack(&packed.finish().unwrap(), want);
    let packed = include_bytes!("testdata/in.tar.xz");
    check_unpack(packed, "t/ t/e/ t/in-xz=hello t/old/");
}

#[test]
fn other_files_are_copied() {
    for content in ["", "no tar", "\u{1f}\u{8b}\u{8}", "BZh9 not really", "\u{28}\u{b5}\u{2f}\u{fd}"] {
        check_unpack(content.as_bytes(), &format!("t/ t/archive={content} t/old/"));
    }
    let zeros = [0; 2048];
    check_unpack(&zeros, &format!("t/ t/archive={} t/old/", str::from_utf8(&zeros).unwrap()));
    let mut broken = tar(&[(T::FILE, "f", "x")]);
    broken[0] = b'g';
    check_unpack(&broken, &format!("t/ t/archive={} t/old/", str::from_utf8(&broken).unwrap()));
}

#[test]
fn names_and_links_of_archives_start_at_the_destination() {
    for (entries, want) in [
        (&[(T::FILE, "../../up", "u")][..], "t/ t/old/ t/up=u"),
        (&[(T::FILE, "/abs/x", "x")], "t/ t/abs/ t/abs/x=x t/old/"),
        (&[(T::DIR, "./", ""), (T::DIR, "../", "")], "t/ t/old/"),
        (&[(T::FILE, ".wh.old", ""), (T::FILE, ".wh..wh..opq", "")], "t/ t/.wh..wh..opq= t/.wh.old= t/old/"),
        (&[(T::SYMLINK, "l", "/old"), (T::FILE, "l/f", "x")], "t/ t/l -> /old t/old/ t/old/f=x"),
        (&[(T::SYMLINK, "l", "../../old"), (T::FILE, "l/f", "x")], "t/ t/l -> ../../old t/old/ t/old/f=x"),
        (&[(T::SYMLINK, "l", "/outside"), (T::FILE, "l", "x")], "t/ t/l=x t/old/"),
        (&[(T::FILE, "old", "x")], "t/ t/old=x"),
        (&[(T::FILE, "f", "x"), (T::HARD_LINK, "g", "../f")], "t/ t/f=x t/g=x t/old/"),
        (&[(T::FILE, "f", "x"), (T::FILE, "f", "y"), (T::DIR, "old/", "")], "t/ t/f=y t/old/"),
    ] {
        check_unpack(&tar(entries), want);
    }
}

#[test]
fn hostile_archives_fail() {
    let limits = unpack::Limits { bytes: 65536, entries: 3, name: 20, dir_names: 150 };
    let long = "n".repeat(30);
    let mut short = tar(&[(T::FILE, "f", &"x".repeat(3000))]);
    short.truncate(2000);
    let mut absurd = Vec::new();
    let huge = Header { name: b"f".to_vec(), kind: T::FILE, size: 1 << 50, ..Header::default() };
    Writer::new(&mut absurd).header(&huge).unwrap();
    for (archive, want) in [
        (
            tar(&[(T::SYMLINK, "l", "../../outside"), (T::HARD_LINK, "h", "/outside")]),
            "entry `h`: cannot make hard link",
        ),
        (tar(&[(T::SYMLINK, "l", "/outside"), (T::FILE, "l/f", "")]), "entry `l/f`: cannot"),
        (tar(&[(T::FILE, "f", ""), (T::FILE, "f/g", "")]), "entry `f/g`: cannot"),
        (tar(&[(T::FILE, &long, "")]), "name too long"),
        (tar(&[(T::SYMLINK, "l", &long)]), "name too long"),
        (
            tar(&[(T::FIFO, "a", ""), (T::FIFO, "b", ""), (T::FIFO, "c", ""), (T::FIFO, "d", "")]),
            "more than 3 entries",
        ),
        (tar(&[(T::DIR, "a/", ""), (T::DIR, "b/", ""), (T::DIR, "c/", "")]), "too many directories"),
        (tar(&[(EntryType(b'7'), "f", "")]), "unhandled tar header type 55"),
        (short, "unexpected end of file"),
        (absurd, "more than 65536 bytes of files"),
    ] {
        let trees = Trees::new();
        fs::write(trees.src.path().join("archive"), archive).unwrap();
        let (src, dest) = (Root::open(trees.src.path()).unwrap(), Root::open(trees.dest.path()).unwrap());
        let error = unpack::unpack_within(limits, &src, "/archive", &dest, "/t", None, -1).unwrap_err();
        assert!(matches!(error, FileError::Archive { .. }), "{error}");
        assert!(error.to_string().contains(want), "{error}, want {want}");
    }
}

#[test]
fn metadata_of_archives() {
    let trees = Trees::new();
    let kinds = [
        (T::DIR, "d/", ""),
        (T::FILE, "d/f", "x"),
        (T::HARD_LINK, "h", "d/f"),
        (T::SYMLINK, "l", "nowhere"),
        (T::CHAR, "c", ""),
        (T::FIFO, "p", ""),
    ];
    fs::write(trees.src.path().join("archive"), tar(&kinds)).unwrap();
    for (dest, owner, uid_gid) in
        [("/kept", None, (5, 6)), ("/given", Some(Owner { uid: 7, gid: 8 }), (7, 8))]
    {
        let (src, to) = (Root::open(trees.src.path()).unwrap(), Root::open(trees.dest.path()).unwrap());
        let unpack = CopyAction { attempt_unpack: true, owner, ..action("/archive", dest) };
        copy(&src, &to, &unpack).unwrap();
        let dir = trees.dest.path().join(dest.trim_start_matches('/'));
        for (_, name, _) in kinds {
            let made = dir.join(name).symlink_metadata().unwrap();
            assert_eq!((made.uid(), made.gid(), made.mtime()), (uid_gid.0, uid_gid.1, 1000), "{name}");
            assert!(made.is_symlink() || made.mode() & 0o7777 == 0o640, "{name}");
        }
        let stat = |name: &str| dir.join(name).symlink_metadata().unwrap();
        assert_eq!(stat("h").ino(), stat("d/f").ino());
        assert_eq!(stat("c").rdev(), rustix::fs::makedev(1, 3));
        assert_eq!(dir.metadata().unwrap().mode() & 0o7777, 0o755);
        assert_eq!(dir.metadata().unwrap().uid(), owner.map_or(0, |o| o.uid));
    }
}
