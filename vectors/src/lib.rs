#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// Environment variable with the folder to read cases from, instead of a crate's own.
pub const FOLDER: &str = "KILN_VECTORS";
/// What a line about a case begins with; then follow, after a tab each, outcome, name and reason.
pub const LINE: &str = "vector";

/// A run of recorded cases.
#[derive(Debug)]
pub struct Vectors {
    dir: PathBuf,
    /// The folder comes from outside: lines are printed, and nothing fails.
    foreign: bool,
    cases: Vec<Case>,
}

#[derive(Debug)]
struct Case {
    name: String,
    outcome: Outcome,
}

#[derive(Debug)]
enum Outcome {
    Passed,
    Failed(String),
    Skipped(String),
}

impl Vectors {
    /// Starts a run over `own`, or over the folder named from outside.
    pub fn new(own: impl Into<PathBuf>) -> Self {
        match std::env::var_os(FOLDER) {
            Some(dir) => Self { dir: dir.into(), foreign: true, cases: Vec::new() },
            None => Self { dir: own.into(), foreign: false, cases: Vec::new() },
        }
    }

    /// The folder to read.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Runs one case. A panic is a failure with its message.
    pub fn check(&mut self, name: impl Into<String>, case: impl FnOnce() -> Result<(), String>) {
        let outcome = match catch_unwind(AssertUnwindSafe(case)) {
            Ok(Ok(())) => Outcome::Passed,
            Ok(Err(reason)) => Outcome::Failed(reason),
            Err(panic) => Outcome::Failed(message(&*panic)),
        };
        self.cases.push(Case { name: name.into(), outcome });
    }

    /// Takes note of a case that cannot be run here.
    pub fn skip(&mut self, name: impl Into<String>, reason: impl Into<String>) {
        self.cases.push(Case { name: name.into(), outcome: Outcome::Skipped(reason.into()) });
    }

    /// Ends the run. For a folder from outside a line a case is printed; else all `expected` cases have to be there and
    /// to have passed.
    ///
    /// # Panics
    /// If a crate's own cases are not that many, or one failed or was skipped.
    #[expect(clippy::print_stdout, reason = "the lines are what is asked for")]
    pub fn finish(self, expected: usize) {
        if self.foreign {
            for case in &self.cases {
                println!("{}", case.line());
            }
            return;
        }
        let wrong: Vec<String> = self
            .cases
            .iter()
            .filter(|case| !matches!(case.outcome, Outcome::Passed))
            .map(Case::line)
            .collect();
        assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), self.cases.len(), wrong.join("\n"));
        assert_eq!(self.cases.len(), expected, "cases in `{}`", self.dir.display());
    }
}

impl Case {
    fn line(&self) -> String {
        let (outcome, reason) = match &self.outcome {
            Outcome::Passed => ("passed", ""),
            Outcome::Failed(reason) => ("failed", reason.as_str()),
            Outcome::Skipped(reason) => ("skipped", reason.as_str()),
        };
        let one_line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        format!("{LINE}\t{outcome}\t{}\t{}", one_line(&self.name), one_line(reason))
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("panicked").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_say_how_each_case_went() {
        let mut vectors = Vectors { dir: PathBuf::new(), foreign: true, cases: Vec::new() };
        vectors.check("a b", || Ok(()));
        vectors.check("c", || Err("no\nsuch".to_owned()));
        vectors.check("d", || std::panic::panic_any("lost"));
        vectors.skip("e", "later");
        let lines: Vec<String> = vectors.cases.iter().map(Case::line).collect();
        assert_eq!(
            lines,
            [
                "vector\tpassed\ta b\t",
                "vector\tfailed\tc\tno such",
                "vector\tfailed\td\tlost",
                "vector\tskipped\te\tlater"
            ]
        );
    }
}
