use std::io::{Read as _, Seek as _};

use expect_test::expect;
use kiln_content::tar::Reader;

use super::*;

#[test]
fn members_come_by_name() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"blob").unwrap();
    file.rewind().unwrap();
    let archive = Archive {
        index: b"{}".to_vec(),
        docker: Some(b"[]".to_vec()),
        files: vec![(Digest::of("blob"), 4, file)],
    };
    let mut tar = Vec::new();
    archive.write(&mut tar).unwrap();
    let mut reader = Reader::new(tar.as_slice());
    let mut out = String::new();
    while let Some(header) = reader.next_entry().unwrap() {
        let name = String::from_utf8_lossy(&header.name).into_owned();
        let mtime = header.mtime.unwrap_or_default().seconds;
        let mut content = String::new();
        reader.read_to_string(&mut content).unwrap();
        out += &format!("{name} {:o} {}:{} {mtime} {content:?}\n", header.mode, header.uid, header.gid);
    }
    expect![[r#"
        blobs/ 755 0:0 0 ""
        blobs/sha256/ 755 0:0 0 ""
        blobs/sha256/fa2c8cc4f28176bbeed4b736df569a34c79cd3723e9ec42f9674b4d46ac6b8b8 444 0:0 0 "blob"
        index.json 644 0:0 0 "{}"
        manifest.json 644 0:0 0 "[]"
        oci-layout 444 0:0 0 "{\"imageLayoutVersion\":\"1.0.0\"}"
    "#]]
    .assert_eq(&out);
}

#[track_caller]
fn check(names: &str, want: Result<&[&str], &str>) {
    let got = normalized_names(names).map_err(|error| error.to_string());
    let want = want.map(|list| list.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
    match (got, want) {
        (Ok(got), Ok(want)) => assert_eq!(got, want),
        (Err(got), Err(want)) => assert!(got.starts_with(want), "{got}"),
        (got, want) => panic!("{got:?} and not {want:?}"),
    }
}

#[test]
fn names_are_written_in_full() {
    check("", Ok(&[]));
    check("x", Ok(&["docker.io/library/x:latest"]));
    check("r.example:5000/a/b:1,x", Ok(&["r.example:5000/a/b:1", "docker.io/library/x:latest"]));
    check("UPPER", Err("failed to parse UPPER"));
}
