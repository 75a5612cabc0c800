//! Recorded answers of the program to what it reads from standard input.
#![allow(clippy::unwrap_used, reason = "in tests a panic is the report")]

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

#[track_caller]
fn check(name: &str, input: &[u8]) {
    let testdata = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let case = std::fs::read_to_string(testdata.join(name).with_extension("json")).unwrap();
    let case: serde_json::Value = serde_json::from_str(&case).unwrap();
    let lines = |key: &str| -> Vec<String> {
        let lines = case[key].as_array().cloned().unwrap_or_default();
        lines.iter().map(|line| line.as_str().unwrap().to_owned()).collect()
    };
    let mut child = Command::new(env!("CARGO_BIN_EXE_buildctl"))
        .args(lines("args"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), lines("stdout").join("\n"));
    assert_eq!(String::from_utf8(output.stderr).unwrap(), lines("stderr").join("\n"));
    assert_eq!(output.status.code().map(i64::from), case["exit_code"].as_i64());
}

#[test]
fn definitions_on_standard_input() {
    let read = |name: &str| {
        std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name)).unwrap()
    };
    check("debug-dump-llb", &read("exec-bind-ro.pb"));
    check("debug-dump-llb-dot", &read("exec-bind-ro.pb"));
    check("debug-dump-llb-metadata", &read("metadata-all.pb"));
    check("debug-dump-llb-bad", b"\x0a\xff");
    check("build-empty-stdin", b"");
}
