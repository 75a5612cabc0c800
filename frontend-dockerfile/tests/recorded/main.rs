//! The reference's recorded answers, `testdata/cases/<topic>/<case>/`. Its README says what the files mean.
//!
//! `testdata/pending.txt` lists the cases that do not pass yet; one that does must leave the list.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test may stop at the first surprise")]

mod answer;
mod inputs;

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use futures::FutureExt;
use kiln_frontend::Frontend;
use kiln_frontend_dockerfile::DockerfileFrontend;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata")
}

fn subdirs(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut dirs: Vec<PathBuf> = entries.filter(|path| path.is_dir()).collect();
    dirs.sort();
    dirs
}

/// What is wrong with a case; empty if nothing.
fn run(case: &Path) -> String {
    let (bridge, request) = inputs::load(case, &root());
    let bridge = std::sync::Arc::new(bridge);
    let solved = DockerfileFrontend.solve(bridge.clone(), request).now_or_never().expect("nothing waits");
    let mut wrong = String::new();
    answer::compare(case, solved, &bridge.recorded(), &mut wrong);
    wrong
}

#[test]
fn recorded_cases() {
    let pending = std::fs::read_to_string(root().join("pending.txt")).unwrap_or_default();
    let mut pending: BTreeSet<&str> = pending.lines().filter(|line| !line.is_empty()).collect();
    let only = std::env::var("KILN_CASE").unwrap_or_default();
    let (mut passed, mut failed, mut report) = (0, Vec::new(), String::new());
    for topic in subdirs(&root().join("cases")) {
        for case in subdirs(&topic) {
            let name =
                format!("{}/{}", topic.file_name().unwrap().display(), case.file_name().unwrap().display());
            let listed = pending.remove(name.as_str());
            if !name.contains(&only) {
                continue;
            }
            let wrong = std::panic::catch_unwind(|| run(&case)).unwrap_or_else(|_| "panicked\n".to_owned());
            passed += usize::from(wrong.is_empty());
            match (wrong.is_empty(), listed) {
                (true, true) => writeln!(report, "{name}: passes, but is pending").unwrap(),
                (false, false) => writeln!(report, "{name}:\n{wrong}").unwrap(),
                _ => {}
            }
            if !wrong.is_empty() {
                failed.push(name);
            }
        }
    }
    println!("{passed} of {} cases pass", passed + failed.len());
    assert!(pending.is_empty(), "pending cases that do not exist: {pending:?}");
    assert!(report.is_empty(), "{passed} pass, {} fail\n{report}", failed.len());
}
