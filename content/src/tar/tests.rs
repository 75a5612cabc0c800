//! Headers recorded from Go 1.26 (`testdata/headers`, `go run record.go`): written alike, and read and written again
//! alike.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};

use kiln_digest::Digest;
use serde::Deserialize;

use super::*;
use crate::layer::rewrite_times;

const EPOCH: i64 = 1_500_000_000;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Case {
    name: String,
    link: String,
    uname: String,
    r#type: String,
    mode: i64,
    size: i64,
    uid: i64,
    gid: i64,
    mtime: i64,
    mnsec: u32,
    major: i64,
    minor: i64,
    xattrs: BTreeMap<String, String>,
    format: String,
    sha256: String,
    rewritten: String,
    error: String,
}

fn unhex(text: &str) -> Vec<u8> {
    let digit = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(digit).collect()
}

#[test]
fn headers_are_those_of_go() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("../../testdata/headers/headers.json")).unwrap();
    assert!(cases.len() > 70);
    for case in cases {
        let mut header = Header {
            name: case.name.clone().into_bytes(),
            link_name: case.link.clone().into_bytes(),
            user_name: case.uname.clone().into_bytes(),
            kind: EntryType(case.r#type.as_bytes()[0]),
            size: case.size,
            mode: case.mode,
            uid: case.uid,
            gid: case.gid,
            mtime: Some(Time { seconds: case.mtime, nanoseconds: case.mnsec }),
            dev_major: case.major,
            dev_minor: case.minor,
            format: match case.format.as_str() {
                "PAX" => Formats::PAX,
                "GNU" => Formats::GNU,
                _ => Formats::NONE,
            },
            ..Header::default()
        };
        for (name, value) in &case.xattrs {
            header.pax.insert(format!("{PAX_XATTR}{name}").into_bytes(), unhex(value));
        }
        let mut tar = Writer::new(Vec::new());
        let written = tar.header(&header);
        assert_eq!(written.is_err(), !case.error.is_empty(), "{written:?} {case:?}");
        if written.is_err() {
            continue;
        }
        tar.write_all(&vec![b'x'; case.size as usize]).unwrap();
        let bytes = tar.finish().unwrap();
        assert_eq!(Digest::of(&bytes).hex(), case.sha256, "{case:?}");
        let info = rewrite_times(bytes.as_slice(), std::io::sink(), EPOCH).unwrap();
        assert_eq!(info.diff_id.hex(), case.rewritten, "{case:?}");
    }
}

/// Builds a tar of one sparse file in each of the GNU forms, with data `ab` at 3 and `c` at 10 of 12 bytes.
fn sparse(form: &str) -> Vec<u8> {
    let mut header = Header {
        name: b"s".to_vec(),
        kind: EntryType::FILE,
        mode: 0o644,
        mtime: Some(Time::from_seconds(1)),
        ..Header::default()
    };
    let mut data = Vec::new();
    let mut record = |key: &str, value: &str| {
        // The writer leaves these out, so they pass under another name first.
        header.pax.insert(format!("GNU_sparse.{key}").into_bytes(), value.as_bytes().to_vec());
    };
    match form {
        "0.1" => {
            record("map", "3,2,10,1");
            record("numblocks", "2");
            record("size", "12");
        }
        _ => {
            record("major", "1");
            record("minor", "0");
            record("name", "real");
            record("realsize", "12");
            data = b"2\n3\n2\n10\n1\n".to_vec();
            data.resize(512, 0);
        }
    }
    data.extend_from_slice(b"abc");
    header.size = data.len() as i64;
    let mut tar = Writer::new(Vec::new());
    tar.header(&header).unwrap();
    tar.write_all(&data).unwrap();
    let text = String::from_utf8(tar.finish().unwrap()).unwrap();
    text.replace("GNU_sparse", "GNU.sparse").into_bytes()
}

#[test]
fn holes_are_filled() {
    for (form, name) in [("0.1", "s"), ("1.0", "real")] {
        let tar = sparse(form);
        let mut reader = Reader::new(tar.as_slice());
        let header = reader.next_entry().unwrap().unwrap();
        assert_eq!(header.name, name.as_bytes());
        assert_eq!(header.size, 12);
        let mut content = Vec::new();
        reader.read_to_end(&mut content).unwrap();
        assert_eq!(content, b"\0\0\0ab\0\0\0\0\0c\0", "{form}");
        assert!(reader.next_entry().unwrap().is_none());
    }
}
