use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;

use expect_test::{Expect, expect};

use super::*;
use crate::tar::Writer;

fn entry(kind: EntryType, name: &str) -> Header {
    Header {
        name: name.as_bytes().to_vec(),
        kind,
        mode: if kind == EntryType::DIR { 0o755 } else { 0o644 },
        mtime: Some(Time::from_seconds(1000)),
        ..Header::default()
    }
}

fn file(name: &str, content: &str) -> (Header, Vec<u8>) {
    let header = Header { size: content.len() as i64, ..entry(EntryType::FILE, name) };
    (header, content.as_bytes().to_vec())
}

fn dir(name: &str) -> (Header, Vec<u8>) {
    (entry(EntryType::DIR, name), Vec::new())
}

fn link(kind: EntryType, name: &str, target: &str) -> (Header, Vec<u8>) {
    (Header { link_name: target.as_bytes().to_vec(), ..entry(kind, name) }, Vec::new())
}

fn tar(entries: &[(Header, Vec<u8>)]) -> Vec<u8> {
    let mut tar = Writer::new(Vec::new());
    for (header, data) in entries {
        tar.header(header).unwrap();
        tar.write_all(data).unwrap();
    }
    tar.finish().unwrap()
}

fn show(root: &Root, dir: &Path, out: &mut String) {
    for (name, metadata) in root.read_dir_stat(dir).unwrap() {
        let path = dir.join(name);
        let _ = write!(out, "{:?} {:04o} {}", metadata.kind, metadata.mode, path.display());
        match metadata.kind {
            Kind::File => {
                let content = root.read(&path, 10_000).unwrap();
                let _ = write!(out, " {:?}", String::from_utf8_lossy(&content));
            }
            Kind::Symlink => {
                let _ = write!(out, " -> {}", root.read_link(&path).unwrap().display());
            }
            Kind::CharDevice | Kind::BlockDevice => {
                let _ = write!(out, " {}:{}", metadata.rdev.0, metadata.rdev.1);
            }
            _ => {}
        }
        for name in root.list_xattrs(&path).unwrap() {
            let value = root.get_xattr(&path, &name).unwrap().unwrap_or_default();
            let _ = write!(out, " {}={}", name.display(), String::from_utf8_lossy(&value));
        }
        out.push('\n');
        if metadata.is_dir() {
            show(root, &path, out);
        }
    }
}

#[track_caller]
fn check_tar(tar: &[u8], limits: &ApplyLimits, want: Expect) {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let dest = temp.path().join("fs");
    fs::create_dir(&dest).unwrap();
    let mut out = String::new();
    match apply(tar, &dest, limits) {
        Ok(applied) => {
            assert_eq!(applied.diff_id, Digest::of(tar));
            show(&Root::open(&dest).unwrap(), Path::new(""), &mut out);
        }
        Err(error) => {
            let _ = write!(out, "{error}");
            let mut source = std::error::Error::source(&error);
            while let Some(error) = source {
                let _ = write!(out, ": {error}");
                source = error.source();
            }
            out.push('\n');
        }
    }
    assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 1, "something was made outside");
    want.assert_eq(&out);
}

#[track_caller]
fn check(entries: &[(Header, Vec<u8>)], want: Expect) {
    check_tar(&tar(entries), &ApplyLimits::default(), want);
}

#[test]
fn kinds() {
    let mut set_id = file("bin/tool", "tool");
    set_id.0.mode = 0o4755;
    set_id.0.uid = 5;
    let mut device = dir("dev");
    device.0 = Header { dev_major: 1, dev_minor: 3, ..entry(EntryType::CHAR, "dev/null") };
    let mut pipe = dir("pipe");
    pipe.0 = entry(EntryType::FIFO, "pipe");
    let mut attributes = file("attributes", "");
    attributes.0.pax.insert(b"SCHILY.xattr.user.one".to_vec(), b"1".to_vec());
    attributes.0.pax.insert(b"SCHILY.xattr.trusted.overlay.redirect".to_vec(), b"evil".to_vec());
    let mut second = link(EntryType::HARD_LINK, "hard", "bin/tool");
    second.0.mode = 0o4755;
    second.0.uid = 5;
    check(
        &[
            dir("./"),
            dir("./bin/"),
            set_id,
            device,
            pipe,
            attributes,
            link(EntryType::SYMLINK, "sym", "/bin/tool"),
            second,
            file(&format!("{}/deep", "long-directory-name/".repeat(10)), "deep"),
        ],
        expect![[r#"
            File 0644 attributes "" user.one=1
            Dir 0755 bin
            File 4755 bin/tool "tool"
            Dir 0755 dev
            CharDevice 0644 dev/null 1:3
            File 4755 hard "tool"
            Dir 0755 long-directory-name
            Dir 0755 long-directory-name/long-directory-name
            Dir 0755 long-directory-name/long-directory-name/long-directory-name
            Dir 0755 long-directory-name/long-directory-name/long-directory-name/long-directory-name
            Dir 0755 long-directory-name/long-directory-name/long-directory-name/long-directory-name/long-directory-name
            Dir 0755 long-directory-name/long-directory-name/long-directory-name/long-directory-name/long-directory-name/long-directory-name
            Dir 0755 long-directory-name/long-directory-name/long-directory-name/long-directory-name/long-directory-name/long-directory-name/long-directory-name
            Dir 0755 long-directory-name/long-directory-name/long-directory-name/long-directory-name/long-directory-name/long-directory-name/long-directory-name/long-directory-name
            Dir 0755 long-directory-name/long-directory-name/long-directory-name/long-directory-name/long-directory-name/long-directory-name/long-directory-name/long-directory-name/long-directory-name
            Dir 0755 long-directory-name/long-directory-name/long-directory-name/long-directory-name/long-directory-name/long-directory-name/long-directory-name/long-directory-name/long-directory-name/long-directory-name
            File 0644 long-directory-name/long-directory-name/long-directory-name/long-directory-name/long-directory-name/long-directory-name/long-directory-name/long-directory-name/long-directory-name/long-directory-name/deep "deep"
            Fifo 0644 pipe
            Symlink 0777 sym -> /bin/tool
        "#]],
    );
}

#[test]
fn deletions_become_devices_and_attributes() {
    check(
        &[
            file("d/.wh.gone", ""),
            file("e/.wh..wh..opq", ""),
            file("e/kept", "k"),
            file(".wh..wh.plnk/x", "aufs"),
            file(".wh..wh.aufs", ""),
            // A directory takes the place of what it deletes.
            file(".wh.new", ""),
            dir("new/"),
            // The order does not matter.
            dir("first/"),
            file(".wh.first", ""),
            file("both", "b"),
            file(".wh.both", ""),
        ],
        expect![[r#"
            File 0644 both "b"
            Dir 0755 d
            CharDevice 0000 d/gone 0:0
            Dir 0755 e trusted.overlay.opaque=y
            File 0644 e/kept "k"
            Dir 0755 first trusted.overlay.opaque=y
            Dir 0755 new trusted.overlay.opaque=y
        "#]],
    );
}

#[test]
fn later_entries_win() {
    check(
        &[
            file("a", "1"),
            file("a", "2"),
            dir("d/"),
            file("d/x", "x"),
            file("d", "now a file"),
            link(EntryType::SYMLINK, "l", "elsewhere"),
            dir("l/"),
            file("l/x", "in the directory"),
        ],
        expect![[r#"
            File 0644 a "2"
            File 0644 d "now a file"
            Dir 0755 l
            File 0644 l/x "in the directory"
        "#]],
    );
}

#[test]
fn names_stay_inside() {
    check(
        &[file("../out", "x")],
        expect![[r#"
        invalid layer: name `../out` leaves the root
    "#]],
    );
    check(
        &[file("a/../../out", "x")],
        expect![[r#"
        invalid layer: name `a/../../out` leaves the root
    "#]],
    );
    check(
        &[file("/absolute", "x")],
        expect![[r#"
        File 0644 absolute "x"
    "#]],
    );
    check(
        &[
            link(EntryType::SYMLINK, "up", "../../.."),
            file("up/out", "x"),
            link(EntryType::SYMLINK, "abs", "/"),
            file("abs/y", "y"),
        ],
        expect![[r#"
            Symlink 0777 abs -> /
            File 0644 out "x"
            Symlink 0777 up -> ../../..
            File 0644 y "y"
        "#]],
    );
    check(
        &[link(EntryType::SYMLINK, "loop", "loop"), file("loop/x", "x")],
        expect![[r#"
        cannot apply layer entry `loop/x`: cannot stat `loop`: Too many levels of symbolic links (os error 40)
    "#]],
    );
    check(
        &[link(EntryType::HARD_LINK, "h", "../../../etc/passwd")],
        expect![[r#"
        invalid layer: name `../../../etc/passwd` leaves the root
    "#]],
    );
    check(
        &[link(EntryType::HARD_LINK, "h", "/etc/passwd")],
        expect![[r#"
        cannot apply layer entry `h`: cannot link `/etc/passwd`: No such file or directory (os error 2)
    "#]],
    );
    check(
        &[link(EntryType::SYMLINK, "etc", "/etc"), link(EntryType::HARD_LINK, "h", "etc/passwd")],
        expect![[r#"
            cannot apply layer entry `h`: too many levels of symbolic links in `etc`
        "#]],
    );
    check(
        &[file("f", "x"), file("f/below", "x")],
        expect![[r#"
        cannot apply layer entry `f/below`: cannot make directory `f`: Not a directory (os error 20)
    "#]],
    );
    check(
        &[file(".wh...", "")],
        expect![[r#"
        invalid layer: invalid whiteout name
    "#]],
    );
    check(
        &[file("d/.wh.", "")],
        expect![[r#"
        invalid layer: invalid whiteout name
    "#]],
    );
    check(
        &[file(&"n".repeat(300), "")],
        expect![[r#"
        cannot apply layer entry `nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn`: cannot stat `/nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn`: File name too long (os error 36)
    "#]],
    );
    check(
        &[file("n/".repeat(3000).trim_end_matches('/'), "")],
        expect![[r#"
        invalid layer: name too long
    "#]],
    );
}

#[test]
fn limits() {
    let many = tar(&[file("a", "12345678"), file("b", "12345678")]);
    let limit = |limits: ApplyLimits, want| check_tar(&many, &limits, want);
    limit(
        ApplyLimits { entries: 1, ..ApplyLimits::default() },
        expect![[r#"
        invalid layer: more than 1 entries
    "#]],
    );
    limit(
        ApplyLimits { bytes: 1000, ..ApplyLimits::default() },
        expect![[r#"
        invalid layer: more than 1000 bytes
    "#]],
    );
    limit(
        ApplyLimits { bytes: many.len() as u64 - 1, ..ApplyLimits::default() },
        expect![[r#"
        invalid layer: more than 3071 bytes
    "#]],
    );
    // A file of holes is larger than the tar it comes in.
    let mut sparse = file("sparse", "");
    sparse.0.format = crate::tar::Formats::PAX;
    for (key, value) in
        [("map", ""), ("major", "0"), ("minor", "1"), ("numblocks", "0"), ("size", "1000000000000")]
    {
        sparse.0.pax.insert(format!("GNU_sparse.{key}").into_bytes(), value.as_bytes().to_vec());
    }
    let bytes = tar(&[sparse]);
    let bytes: Vec<u8> = String::from_utf8(bytes).unwrap().replace("GNU_sparse", "GNU.sparse").into_bytes();
    check_tar(
        &bytes,
        &ApplyLimits { bytes: 1 << 20, ..ApplyLimits::default() },
        expect![[r#"
        invalid layer: more than 1048576 bytes
    "#]],
    );
}

#[test]
fn broken_streams() {
    let good = tar(&[file("a", &"x".repeat(600))]);
    check_tar(
        &good[..1000],
        &ApplyLimits::default(),
        expect![[r#"
        cannot apply layer entry `a`: unexpected end of file
    "#]],
    );
    check_tar(
        &good[..100],
        &ApplyLimits::default(),
        expect![[r#"
        cannot read layer: unexpected end of file
    "#]],
    );
    check_tar(
        &[7; 1024],
        &ApplyLimits::default(),
        expect![[r#"
        invalid layer: invalid tar header: wrong checksum
    "#]],
    );
    check_tar(&[], &ApplyLimits::default(), expect![""]);
    let mut bad = good.clone();
    bad[0] ^= 1;
    check_tar(
        &bad,
        &ApplyLimits::default(),
        expect![[r#"
        invalid layer: invalid tar header: wrong checksum
    "#]],
    );
    // Padding after the end belongs to the diff ID.
    let mut padded = good.clone();
    padded.extend_from_slice(&[0; 4096]);
    check_tar(
        &padded[..],
        &ApplyLimits::default(),
        expect![[r#"
        File 0644 a "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
    "#]],
    );
}

#[test]
fn times_of_directories_survive_their_children() {
    let temp = tempfile::tempdir().unwrap();
    let tar = tar(&[dir("d/"), file("d/x", "x"), dir("d/e/")]);
    if !rustix::process::geteuid().is_root() {
        return;
    }
    apply(tar.as_slice(), temp.path(), &ApplyLimits::default()).unwrap();
    for name in ["d", "d/x", "d/e"] {
        assert_eq!(fs::metadata(temp.path().join(name)).unwrap().mtime(), 1000, "{name}");
    }
}

proptest::proptest! {
    /// Whatever the bytes, unpacking ends without a panic.
    #[test]
    fn noise_never_panics(noise in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..2048), at in 0usize..512) {
        let temp = tempfile::tempdir().unwrap();
        let mut bytes = tar(&[dir("d/"), file("d/x", "content")]);
        for (to, from) in bytes.iter_mut().skip(at).zip(&noise) {
            *to = *from;
        }
        let _ = apply(bytes.as_slice(), temp.path(), &ApplyLimits { bytes: 1 << 16, ..ApplyLimits::default() });
        let _ = apply(noise.as_slice(), temp.path(), &ApplyLimits { bytes: 1 << 16, ..ApplyLimits::default() });
    }
}
