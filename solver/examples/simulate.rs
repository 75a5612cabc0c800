//! Simulations of the scheduler: `simulate SEED COUNT THREADS`. One of them is printed step by step.
#![expect(clippy::print_stdout, reason = "this is a command-line program")]

use kiln_solver::testing::{Disturbances, replay, simulate_many};

fn main() -> Result<(), String> {
    let mut numbers = std::env::args().skip(1).map(|text| {
        text.parse::<u64>().map_err(|_| format!("`{text}` is no number: use SEED COUNT THREADS"))
    });
    let mut number = |default: u64| numbers.next().unwrap_or(Ok(default));
    let (seed, count, threads) = (number(0)?, number(1)?, number(1)?);
    if count == 1 {
        let disturbances = Disturbances::of(seed);
        let (history, outcome) = replay(seed, disturbances);
        for line in history {
            println!("{line}");
        }
        println!("{disturbances:?}");
        let report = outcome.map_err(|wrong| format!("seed {seed}: {wrong}"))?;
        println!("seed {seed}: {report:?}");
        return Ok(());
    }
    let begun = std::time::Instant::now();
    let summary = simulate_many(seed, count, usize::try_from(threads).unwrap_or(1));
    println!(
        "{} simulations from seed {seed} passed in {:.1?}: {:?}",
        summary.passed,
        begun.elapsed(),
        summary.sum
    );
    let wrong: Vec<_> = summary.wrong.into_iter().map(|(_, wrong)| wrong).collect();
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
}
