//! Many simulations, on several threads.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::testing::simulation::{Disturbances, Report, simulate};

/// What many simulations came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// How many passed.
    pub passed: u64,
    /// All their reports in one.
    pub sum: Report,
    /// Seeds that failed, in order, with what was wrong.
    pub wrong: Vec<(u64, String)>,
}

/// Failures after which no more seeds are tried.
const MAX_WRONG: usize = 12;

/// Simulates the seeds `first..first + count` with the disturbances that belong to each, on `threads` threads, until
/// [`MAX_WRONG`] have failed.
pub fn simulate_many(first: u64, count: u64, threads: usize) -> Summary {
    let next = AtomicU64::new(first);
    let end = first.saturating_add(count);
    let summary = Mutex::new(Summary::default());
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= end {
                return;
            }
            let outcome = simulate(seed, Disturbances::of(seed));
            let mut summary = summary.lock().unwrap_or_else(PoisonError::into_inner);
            match outcome {
                Ok(report) => {
                    summary.passed += 1;
                    summary.sum.add(report);
                }
                Err(wrong) => {
                    summary.wrong.push((seed, wrong));
                    if summary.wrong.len() >= MAX_WRONG {
                        next.store(end, Ordering::Relaxed);
                    }
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(work);
        }
    });
    let mut summary = summary.into_inner().unwrap_or_else(PoisonError::into_inner);
    summary.wrong.sort();
    summary
}

impl Report {
    fn add(&mut self, other: Self) {
        self.steps += other.steps;
        self.runs += other.runs;
        self.results += other.results;
        self.failures += other.failures;
        self.cancelled += other.cancelled;
        self.restarts += other.restarts;
        self.imported += other.imported;
        self.determined += other.determined;
    }
}
