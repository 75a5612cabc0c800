//! Layers recorded from the reference (`testdata/layers`): unpacked in stacks, and made again from the directories.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};

use expect_test::{Expect, expect};
use kiln_digest::Digest;
use serde::Deserialize;

use super::*;
use crate::layer::{ApplyLimits, apply, rewrite_times};
use crate::tar::{EntryType, Formats, Header, Reader, Time, Writer};

#[derive(Deserialize)]
struct Recorded {
    base: BTreeMap<Digest, String>,
    layers: BTreeMap<Digest, Layer>,
    stacks: Vec<Stack>,
}

#[derive(Deserialize)]
struct Layer {
    case: String,
    entries: Vec<Entry>,
}

#[derive(Deserialize)]
struct Stack {
    case: String,
    diff_ids: Vec<Digest>,
}

#[derive(Deserialize)]
struct Entry {
    name: String,
    #[serde(rename = "type")]
    kind: String,
    mode: String,
    uid: i64,
    gid: i64,
    size: i64,
    mtime: f64,
    #[serde(default)]
    linkname: String,
    #[serde(default)]
    content: String,
    #[serde(default)]
    pax: BTreeMap<String, String>,
}

fn recorded() -> Recorded {
    serde_json::from_str(include_str!("../../../testdata/layers/layers.json")).unwrap()
}

fn base64(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let (mut bits, mut count) = (0u32, 0);
    for byte in text.bytes().filter(|byte| *byte != b'=') {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            _ => 63,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
        }
    }
    out
}

/// Writes the tar that a list of entries describes.
fn tar_of(entries: &[Entry]) -> Vec<u8> {
    let mut tar = Writer::new(Vec::new());
    for entry in entries {
        let deletion = entry.name.rsplit('/').next().is_some_and(|name| name.starts_with(".wh."));
        let mut header = Header {
            name: entry.name.clone().into_bytes(),
            link_name: entry.linkname.clone().into_bytes(),
            kind: match entry.kind.as_str() {
                "file" => EntryType::FILE,
                "dir" => EntryType::DIR,
                "symlink" => EntryType::SYMLINK,
                "hardlink" | "link" => EntryType::HARD_LINK,
                other => panic!("type {other}"),
            },
            size: entry.size,
            mode: i64::from_str_radix(&entry.mode, 8).unwrap(),
            uid: entry.uid,
            gid: entry.gid,
            mtime: Some(Time::from_seconds(entry.mtime as i64)),
            format: if deletion { Formats::NONE } else { Formats::PAX },
            ..Header::default()
        };
        for (key, value) in entry.pax.iter().filter(|(key, _)| key.starts_with("SCHILY")) {
            // Recorded as Latin-1 of the bytes.
            header.pax.insert(key.clone().into_bytes(), value.chars().map(|c| c as u8).collect());
        }
        tar.header(&header).unwrap();
        tar.write_all(&base64(&entry.content)).unwrap();
    }
    tar.finish().unwrap()
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[test]
fn headers_are_those_of_the_reference() {
    let recorded = recorded();
    for (diff_id, layer) in &recorded.layers {
        assert_eq!(Digest::of(tar_of(&layer.entries)), *diff_id, "{}", layer.case);
    }
}

#[test]
fn stacks_unpack_and_are_made_again() {
    if !is_root() {
        return;
    }
    let recorded = recorded();
    let mut compared = 0;
    for stack in &recorded.stacks {
        let dir = tempfile::tempdir().unwrap();
        let mut lowers: Vec<PathBuf> = Vec::new();
        for (index, diff_id) in stack.diff_ids.iter().enumerate() {
            let path = dir.path().join(index.to_string());
            fs::create_dir(&path).unwrap();
            let layer = recorded.layers.get(diff_id);
            let tar = match layer {
                Some(layer) => tar_of(&layer.entries),
                None => base64(&recorded.base[diff_id]),
            };
            let applied = apply(tar.as_slice(), &path, &ApplyLimits::default()).unwrap();
            assert_eq!(applied.diff_id, *diff_id);
            assert_eq!(applied.size, tar.len() as u64);
            // Tars of other makers need not be laid out as ours, and unpacking brings negative times to zero.
            let negative = layer.is_some_and(|layer| layer.entries.iter().any(|entry| entry.mtime < 0.0));
            if layer.is_some() && !negative {
                let made = diff(&path, &lowers, std::io::sink(), &DiffOptions::default()).unwrap();
                assert_eq!(made.diff_id, *diff_id, "layer {index} of {}", stack.case);
                compared += 1;
            }
            lowers.push(path);
        }
    }
    assert!(compared > 20, "{compared}");
}

/// Lists the entries of a tar, one a line.
fn list(tar: &[u8]) -> String {
    let mut reader = Reader::new(tar);
    let mut out = String::new();
    while let Some(header) = reader.next_entry().unwrap() {
        let kind = header.kind.0 as char;
        let name = String::from_utf8_lossy(&header.name);
        out += &format!("{kind} {:04o} {}:{} {name}", header.mode, header.uid, header.gid);
        if !header.link_name.is_empty() {
            out += &format!(" -> {}", String::from_utf8_lossy(&header.link_name));
        }
        let mut content = String::new();
        reader.read_to_string(&mut content).unwrap();
        if !content.is_empty() {
            out += &format!(" {content:?}");
        }
        out.push('\n');
    }
    out
}

struct Dirs {
    _temp: tempfile::TempDir,
    lower: PathBuf,
    upper: PathBuf,
}

/// Makes a lower directory with some content, and an empty upper one.
fn dirs() -> Dirs {
    let temp = tempfile::tempdir().unwrap();
    let (lower, upper) = (temp.path().join("lower"), temp.path().join("upper"));
    for dir in [&lower.join("d/sub"), &upper] {
        fs::create_dir_all(dir).unwrap();
    }
    for (path, content) in [("d/a", "a"), ("d/b", "b"), ("d/sub/c", "c"), ("f", "f")] {
        fs::write(lower.join(path), content).unwrap();
    }
    Dirs { _temp: temp, lower, upper }
}

fn whiteout(path: &Path) {
    let root = Root::open(path.parent().unwrap()).unwrap();
    crate::layer::overlay::make_whiteout(&root, Path::new(path.file_name().unwrap())).unwrap();
    assert!(fs::symlink_metadata(path).unwrap().file_type().is_char_device());
}

fn copy_up(dirs: &Dirs, path: &str) {
    let (from, to) = (dirs.lower.join(path), dirs.upper.join(path));
    let metadata = fs::symlink_metadata(&from).unwrap();
    if metadata.is_dir() {
        fs::create_dir(&to).unwrap();
    } else {
        fs::copy(&from, &to).unwrap();
    }
    fs::set_permissions(&to, metadata.permissions()).unwrap();
    fs::File::open(&to).unwrap().set_modified(metadata.modified().unwrap()).unwrap();
}

#[track_caller]
fn check(change: impl FnOnce(&Dirs), want: Expect) {
    if !is_root() {
        return;
    }
    let dirs = dirs();
    change(&dirs);
    let mut tar = Vec::new();
    let info =
        diff(&dirs.upper, std::slice::from_ref(&dirs.lower), &mut tar, &DiffOptions::default()).unwrap();
    assert_eq!(info, DiffInfo { diff_id: Digest::of(&tar), size: tar.len() as u64 });
    want.assert_eq(&list(&tar));
}

#[test]
fn nothing() {
    check(|_| {}, expect![""]);
    check(
        |dirs| {
            copy_up(dirs, "d");
            copy_up(dirs, "d/sub");
            copy_up(dirs, "d/a");
        },
        expect![""],
    );
}

#[test]
fn parents_of_changes_are_included_once() {
    check(
        |dirs| {
            copy_up(dirs, "d");
            copy_up(dirs, "d/sub");
            fs::write(dirs.upper.join("d/sub/new"), "1").unwrap();
            fs::write(dirs.upper.join("d/sub/new2"), "2").unwrap();
        },
        expect![[r#"
            5 0755 0:0 d/
            5 0755 0:0 d/sub/
            0 0644 0:0 d/sub/new "1"
            0 0644 0:0 d/sub/new2 "2"
        "#]],
    );
}

#[test]
fn only_what_was_there_is_deleted() {
    check(
        |dirs| {
            copy_up(dirs, "d");
            whiteout(&dirs.upper.join("d/a"));
            whiteout(&dirs.upper.join("d/nothing"));
            whiteout(&dirs.upper.join("f"));
        },
        expect![[r#"
            5 0755 0:0 d/
            0 0000 0:0 d/.wh.a
            0 0000 0:0 .wh.f
        "#]],
    );
}

#[test]
fn a_replaced_directory_deletes_by_name() {
    check(
        |dirs| {
            copy_up(dirs, "d");
            let root = Root::open(&dirs.upper).unwrap();
            crate::layer::overlay::make_opaque(&root, Path::new("d")).unwrap();
            copy_up(dirs, "d/b");
            fs::write(dirs.upper.join("d/new"), "n").unwrap();
        },
        expect![[r#"
            5 0755 0:0 d/
            0 0000 0:0 d/.wh.a
            0 0644 0:0 d/new "n"
            0 0000 0:0 d/.wh.sub
        "#]],
    );
}

#[test]
fn kinds_may_change() {
    check(
        |dirs| {
            fs::write(dirs.upper.join("d"), "file now").unwrap();
            fs::create_dir(dirs.upper.join("f")).unwrap();
            symlink("anywhere", dirs.upper.join("f/link")).unwrap();
        },
        expect![[r#"
            0 0644 0:0 d "file now"
            5 0755 0:0 f/
            2 0777 0:0 f/link -> anywhere
        "#]],
    );
}

#[test]
fn hard_links_refer_to_the_first_name() {
    check(
        |dirs| {
            fs::write(dirs.upper.join("x"), "x").unwrap();
            fs::hard_link(dirs.upper.join("x"), dirs.upper.join("g")).unwrap();
            fs::set_permissions(dirs.upper.join("x"), fs::Permissions::from_mode(0o4711)).unwrap();
        },
        expect![[r#"
            0 4711 0:0 g "x"
            1 4711 0:0 x -> g
        "#]],
    );
}

#[test]
fn redirects_are_refused() {
    if !is_root() {
        return;
    }
    let dirs = dirs();
    copy_up(&dirs, "d");
    let root = Root::open(&dirs.upper).unwrap();
    root.set_xattr("d", "trusted.overlay.redirect", b"e").unwrap();
    let error = diff(&dirs.upper, &[], std::io::sink(), &DiffOptions::default()).unwrap_err();
    assert!(matches!(error, Error::Redirect));
}

#[test]
fn times_are_cut_and_bounded_alike() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let set = |name: &str, seconds: i64| {
        fs::write(dir.path().join(name), "x").unwrap();
        let root = Root::open(dir.path()).unwrap();
        let time = kiln_rootdir::Time { seconds, nanoseconds: 999_999_999 };
        root.set_times(name, time, time, true).unwrap();
    };
    set("old", 1000);
    set("new", 3000);
    set("before", -5);
    set(&"long".repeat(40), 3000);
    let made = |latest_mtime| {
        let mut tar = Vec::new();
        diff(dir.path(), &[], &mut tar, &DiffOptions { latest_mtime }).unwrap();
        tar
    };
    let mut rewritten = Vec::new();
    let info = rewrite_times(made(None).as_slice(), &mut rewritten, 2000).unwrap();
    assert_eq!(info.diff_id, Digest::of(&rewritten));
    assert!(rewritten == made(Some(2000)));
    let mut reader = Reader::new(rewritten.as_slice());
    let mut seen = Vec::new();
    while let Some(header) = reader.next_entry().unwrap() {
        seen.push(header.mtime.unwrap().seconds);
    }
    assert_eq!(seen, [-5, 2000, 2000, 1000]);
    assert_eq!(fs::metadata(dir.path().join("old")).unwrap().mtime(), 1000);
}
