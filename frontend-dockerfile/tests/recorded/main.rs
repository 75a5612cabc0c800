//! The reference's recorded answers, `testdata/cases/<topic>/<case>/`. Its README says what the files mean.
//! `KILN_CASE` chooses those with a text in their name.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test may stop at the first surprise")]

mod answer;
mod inputs;

use std::path::{Path, PathBuf};

use futures::FutureExt;
use kiln_frontend::Frontend;
use kiln_frontend_dockerfile::DockerfileFrontend;
use kiln_vectors::Vectors;

fn subdirs(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut dirs: Vec<PathBuf> = entries.filter(|path| path.is_dir()).collect();
    dirs.sort();
    dirs
}

/// What is wrong with a case; empty if nothing.
fn run(case: &Path, cases: &Path) -> String {
    let (bridge, request) = inputs::load(case, cases);
    let bridge = std::sync::Arc::new(bridge);
    let solved = DockerfileFrontend.solve(bridge.clone(), request).now_or_never().expect("nothing waits");
    let mut wrong = String::new();
    answer::compare(case, solved, &bridge.recorded(), &mut wrong);
    wrong
}

#[test]
fn recorded_cases() {
    let only = std::env::var("KILN_CASE").unwrap_or_default();
    let mut vectors = Vectors::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/cases"));
    let cases = vectors.dir().to_owned();
    let mut run_cases = 0;
    for topic in subdirs(&cases) {
        for case in subdirs(&topic) {
            let name =
                format!("{}/{}", topic.file_name().unwrap().display(), case.file_name().unwrap().display());
            if !name.contains(&only) {
                continue;
            }
            vectors.check(name, || {
                let wrong = run(&case, &cases);
                if wrong.is_empty() { Ok(()) } else { Err(wrong) }
            });
            run_cases += 1;
        }
    }
    vectors.finish(if only.is_empty() { 704 } else { run_cases });
}
