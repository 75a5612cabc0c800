//! `cargo xtask bench`: named scenarios against our binaries and, in turn with them, against a peer's.

mod graphs;
mod lab;
mod payload;
mod scenarios;
mod stage;
mod table;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use kiln_tests::Binaries;

use self::lab::Lab;
use self::scenarios::{GROUPS, Group};
use self::stage::Stage;
use self::table::{Row, Samples};
use crate::{packages, shell};

/// What to measure, and against whom.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Directory with another `buildkitd` and `buildctl` of the same API, to measure in turn with ours.
    #[arg(long, value_name = "DIR")]
    peer: Option<PathBuf>,
    /// Only these scenarios (all without any; xtask/README.md lists them). `linear-*` takes all that begin so.
    #[arg(long, value_name = "NAME", num_args = 1..)]
    scenario: Vec<String>,
    /// How often each scenario is run; the medians are printed.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    runs: u16,
    /// Factor on the sizes and counts of files. Numbers compare only at the same scale.
    #[arg(long, default_value_t = 1.0, value_parser = scale)]
    scale: f64,
}

/// One of the two programs measured.
#[derive(Debug)]
struct Side {
    label: &'static str,
    binaries: Binaries,
}

/// Builds the binaries, measures, and prints the table; an error if any scenario failed on any side.
pub(crate) fn run(options: &Options) -> Result<()> {
    let groups = chosen(&options.scenario)?;
    packages::ensure(&[packages::BASIC])?;
    let mut sides = vec![Side { label: "ours", binaries: our_binaries()? }];
    if let Some(dir) = &options.peer {
        sides.push(Side { label: "peer", binaries: Binaries::at(dir)? });
    }

    eprintln!("making payloads and images");
    let mut lab = Lab::new(&sides[0].binaries, programs()?, options.scale)?;
    for group in &groups {
        (group.prepare)(&mut lab)?;
    }

    let wanted =
        |name: &str| options.scenario.is_empty() || options.scenario.iter().any(|asked| names(asked, name));
    let mut rows: Vec<Row> = groups
        .iter()
        .flat_map(|group| group.steps.iter().map(move |step| (group, step)))
        .filter(|(_, step)| wanted(step.name))
        .map(|(group, step)| Row::new(step, group.peer, sides.len()))
        .collect();
    for round in 0..usize::from(options.runs) {
        for group in &groups {
            // Who goes first changes with every round, so that neither always meets the machine as the other left it.
            for turn in 0..sides.len() {
                let index = (round + turn) % sides.len();
                measure(&lab, &sides[index], index, group, &mut rows);
            }
        }
    }

    table::print(&rows, sides.len() > 1, options.runs, options.scale);
    let failed: Vec<&str> = rows.iter().filter(|row| row.failed()).map(|row| row.step.name).collect();
    if !failed.is_empty() {
        bail!("these scenarios failed: {}", failed.join(", "));
    }
    Ok(())
}

/// Runs one group once, on one side, up to the last scenario asked for. A failure is noted in the rows that miss a number.
fn measure(lab: &Lab, side: &Side, index: usize, group: &Group, rows: &mut [Row]) {
    let mut rows: Vec<&mut Row> =
        rows.iter_mut().filter(|row| group.steps.iter().any(|step| step.name == row.step.name)).collect();
    // One failure is enough to know; it would most likely only take as long again.
    if rows.iter().any(|row| row.samples[index].missing()) {
        return;
    }
    let Some(last) = rows.last().map(|row| row.step.name) else { return };
    let mut measured = Vec::new();
    let outcome = (|| -> Result<()> {
        let stage = Stage::start(lab, &side.binaries)?;
        (group.setup)(&stage).context("failed to set up")?;
        for step in group.steps {
            let value = (step.measure)(&stage).with_context(|| format!("{} failed", step.name))?;
            eprintln!("{:<20} {}  {}", step.name, side.label, step.unit.show(value));
            measured.push((step.name, value));
            if step.name == last {
                break;
            }
        }
        Ok(())
    })();
    let failure = outcome.err().map(|error| format!("{error:#}"));
    for row in &mut rows {
        match (measured.iter().find(|(name, _)| *name == row.step.name), &failure) {
            (Some((_, value)), _) => row.samples[index].push(*value),
            (None, Some(error)) => row.samples[index] = Samples::Failed(error.clone()),
            (None, None) => {}
        }
    }
    if let Some(error) = failure {
        eprintln!("{}: {error}", side.label);
    }
}

/// The groups that have a scenario that is asked for; all groups without any asked for.
fn chosen(asked: &[String]) -> Result<Vec<&'static Group>> {
    let known: Vec<&str> = GROUPS.iter().flat_map(|group| group.steps).map(|step| step.name).collect();
    if let Some(unknown) = asked.iter().find(|asked| !known.iter().any(|name| names(asked, name))) {
        bail!("no scenario `{unknown}`; there are {}", known.join(", "));
    }
    let has =
        |group: &&Group| group.steps.iter().any(|step| asked.iter().any(|asked| names(asked, step.name)));
    Ok(GROUPS.iter().filter(|group| asked.is_empty() || has(group)).collect())
}

/// Whether the scenario `name` is asked for by `asked`, its name or, with a star at the end, how it begins.
fn names(asked: &str, name: &str) -> bool {
    match asked.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => asked == name,
    }
}

/// The programs that measure, freshly built; beside the binaries in `KILN_BIN_DIR`, as they are.
fn programs() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("KILN_BIN_DIR") {
        return Ok(PathBuf::from(dir));
    }
    let examples = ["--example", "measure", "--example", "catalogue", "--example", "bare_step"];
    shell::run("cargo", &[&["build", "--release", "--workspace"], &examples[..]].concat())?;
    Ok("target/release/examples".into())
}

/// Freshly built release binaries, or those in `KILN_BIN_DIR` as they are.
fn our_binaries() -> Result<Binaries> {
    if std::env::var_os("KILN_BIN_DIR").is_some() {
        return Binaries::from_env();
    }
    shell::build_release()?;
    Binaries::at("target/release")
}

fn scale(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(value) if value > 0.0 && value <= 16.0 => Ok(value),
        _ => Err("a number above 0 and up to 16".into()),
    }
}
