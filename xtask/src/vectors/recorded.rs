//! Answers that the crates' own tests know how to check, of any folder.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use kiln_tests::vectors::Tally;
use kiln_vectors::{FOLDER, LINE};

use crate::shell;

/// How a case went, the worst of all tests that ran it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    Passed,
    Skipped(String),
    Failed(String),
}

/// Runs `tests` (package, target and name) on the folder. A case passes if it does in all that know it.
pub(super) fn run(tests: &[[&str; 3]], dir: &Path) -> Result<Tally> {
    let dir = dir.canonicalize().with_context(|| format!("no folder `{}`", dir.display()))?;
    let mut cases = BTreeMap::new();
    for [package, target, test] in tests {
        let mut cargo = shell::command("cargo");
        cargo.args(["test", "--quiet", "--package", package, target, "--", "--exact", test, "--nocapture"]);
        let output =
            cargo.env(FOLDER, &dir).stdin(Stdio::null()).output().context("failed to start `cargo`")?;
        let stdout = String::from_utf8_lossy(&output.stdout);
        let found = read(&stdout, &mut cases);
        if !output.status.success() || found == 0 {
            let stderr = String::from_utf8_lossy(&output.stderr);
            bail!("`{test}` of {package} could not run these cases:\n{stdout}{stderr}");
        }
    }
    let mut tally = Tally::default();
    for (name, outcome) in cases {
        match outcome {
            Outcome::Passed => tally.passed += 1,
            Outcome::Skipped(why) => tally.skipped.push((name, why)),
            Outcome::Failed(why) => tally.failed.push((name, why)),
        }
    }
    Ok(tally)
}

/// Takes the lines about cases up; returns how many there were.
fn read(text: &str, cases: &mut BTreeMap<String, Outcome>) -> usize {
    let mut found = 0;
    // The test harness may write the beginning of its own line before the first one of ours.
    for line in text.lines().filter_map(|line| line.find(&format!("{LINE}\t")).map(|at| &line[at..])) {
        let mut fields = line.splitn(4, '\t').skip(1);
        let (Some(outcome), Some(name)) = (fields.next(), fields.next()) else { continue };
        let why = fields.next().unwrap_or_default().to_owned();
        let outcome = match outcome {
            "passed" => Outcome::Passed,
            "skipped" => Outcome::Skipped(why),
            _ => Outcome::Failed(why),
        };
        found += 1;
        let worst = cases.entry(name.to_owned()).or_insert(Outcome::Passed);
        *worst = worst.clone().max(outcome);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_is_as_good_as_its_worst_test() {
        let mut cases = BTreeMap::new();
        let text = "running 1 test\n.vector\tpassed\ta\t\nvector\tpassed\tb\t\nvector\tskipped\tc\tno root\n";
        assert_eq!(read(text, &mut cases), 3);
        assert_eq!(read("vector\tfailed\ta\twrong digest\nvector\tpassed\tc\t\n", &mut cases), 2);
        let want = [
            ("a", Outcome::Failed("wrong digest".to_owned())),
            ("b", Outcome::Passed),
            ("c", Outcome::Skipped("no root".to_owned())),
        ];
        assert_eq!(cases, want.map(|(name, outcome)| (name.to_owned(), outcome)).into());
    }
}
