//! `cargo xtask vectors`: recorded answers of any folder, through the tests that run each crate's own.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use kiln_vectors::{FOLDER, LINE};

/// What to run, and on which folder.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Form of the folder.
    kind: Kind,
    /// The folder.
    dir: PathBuf,
}

/// Forms of folders; each is described by the README beside the crate's own cases.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Kind {
    Llb,
    Contenthash,
    Dockerfile,
    ShellExpansion,
    IgnorePatterns,
}

impl Kind {
    /// Package, target and name of the tests that run such cases. A case passes if it does in all of them.
    fn tests(self) -> &'static [[&'static str; 3]] {
        match self {
            Self::Llb => &[
                ["kiln-llb", "--test=recorded", "ops_render_and_encode_as_recorded"],
                ["kiln-engine", "--lib", "load::tests::recorded_definitions_load_as_in_the_reference"],
            ],
            Self::Contenthash => &[["kiln-cache", "--lib", "contenthash::tests::recorded_answers"]],
            Self::Dockerfile => &[["kiln-frontend-dockerfile", "--test=recorded", "recorded_cases"]],
            Self::ShellExpansion => &[["kiln-frontend-dockerfile", "--lib", "shell::tests::recorded_words"]],
            Self::IgnorePatterns => &[
                ["kiln-patterns", "--test=recorded", "ignore_files"],
                ["kiln-patterns", "--test=recorded", "include_lists"],
            ],
        }
    }
}

/// How a case went, the worst of all tests that ran it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    Passed,
    Skipped(String),
    Failed(String),
}

/// Runs the cases and prints how many passed, with the names of those that did not; an error if any failed.
pub(crate) fn run(options: &Options) -> Result<()> {
    let dir = options.dir.canonicalize();
    let dir = dir.with_context(|| format!("no folder `{}`", options.dir.display()))?;
    let mut cases = BTreeMap::new();
    for [package, target, test] in options.kind.tests() {
        let mut cargo = Command::new("cargo");
        cargo.args(["test", "--quiet", "--package", package, target, "--", "--exact", test, "--nocapture"]);
        let output = cargo.env(FOLDER, &dir).stdin(Stdio::null()).stderr(Stdio::piped()).output();
        let output = output.context("failed to start `cargo`")?;
        let stdout = String::from_utf8_lossy(&output.stdout);
        let found = read(&stdout, &mut cases);
        if !output.status.success() || found == 0 {
            bail!(
                "`{test}` of {package} could not run these cases:\n{stdout}{}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
    }
    let count = |kind: fn(&Outcome) -> bool| cases.values().filter(|outcome| kind(outcome)).count();
    for (name, outcome) in &cases {
        match outcome {
            Outcome::Passed => {}
            Outcome::Skipped(why) => println!("skipped {name}: {why}"),
            Outcome::Failed(why) => println!("failed {name}: {why}"),
        }
    }
    let failed = count(|outcome| matches!(outcome, Outcome::Failed(_)));
    let skipped = count(|outcome| matches!(outcome, Outcome::Skipped(_)));
    let summary = format!("{} passed, {failed} failed", count(|outcome| *outcome == Outcome::Passed));
    println!("{summary}{}", if skipped > 0 { format!(", {skipped} skipped") } else { String::new() });
    if failed > 0 {
        bail!("{failed} of {} cases failed", cases.len());
    }
    Ok(())
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
