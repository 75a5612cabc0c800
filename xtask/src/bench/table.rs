//! Medians and ratios.

use super::scenarios::{Peer, Step};

/// The numbers of one scenario.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) step: &'static Step,
    peer: Peer,
    /// One entry a side, ours first.
    pub(super) samples: Vec<Samples>,
}

impl Row {
    pub(super) fn new(step: &'static Step, peer: Peer, sides: usize) -> Self {
        let samples = |side| match peer {
            Peer::LeftOut(why) if side > 0 => Samples::LeftOut(why),
            _ => Samples::Values(Vec::new()),
        };
        Self { step, peer, samples: (0..sides).map(samples).collect() }
    }

    /// Whether a side failed that should not have.
    pub(super) fn failed(&self) -> bool {
        let counts = |(side, _): &(usize, &Samples)| *side == 0 || self.peer != Peer::MayFail;
        self.samples.iter().enumerate().filter(counts).any(|(_, samples)| samples.failed())
    }
}

/// What one side made of a scenario.
#[derive(Debug)]
pub(super) enum Samples {
    Values(Vec<f64>),
    /// Why there are none.
    Failed(String),
    /// Why it was not tried.
    LeftOut(&'static str),
}

impl Samples {
    pub(super) fn push(&mut self, value: f64) {
        if let Self::Values(values) = self {
            values.push(value);
        }
    }

    /// Whether there are none because a run failed.
    pub(super) fn failed(&self) -> bool {
        matches!(self, Self::Failed(_))
    }

    /// Whether there are none and will be none.
    pub(super) fn missing(&self) -> bool {
        !matches!(self, Self::Values(_))
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = match self {
            Self::Values(values) => values.clone(),
            Self::Failed(_) | Self::LeftOut(_) => Vec::new(),
        };
        sorted.sort_by(f64::total_cmp);
        sorted
    }

    fn median(&self) -> Option<f64> {
        let sorted = self.sorted();
        let middle = sorted.len() / 2;
        match sorted.len() {
            0 => None,
            even if even % 2 == 0 => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
            _ => Some(sorted[middle]),
        }
    }
}

/// Prints the table to standard output.
pub(super) fn print(rows: &[Row], peer: bool, runs: u16, scale: f64) {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    println!("\nMedians of {runs} (least to most), scale {scale}, {cores} cores\n");
    let header = ["scenario", "ours", "", "peer", "", "ours/peer"].map(String::from);
    let lines = std::iter::once(header).chain(rows.iter().map(cells));
    for [name, ours, our_range, theirs, their_range, ratio] in lines {
        let line = format!("{name:<20} {ours:>10}  {our_range:<19}");
        let line = if peer { format!("{line} {theirs:>10}  {their_range:<19} {ratio:>9}") } else { line };
        println!("{}", line.trim_end());
    }
    for row in rows {
        for (samples, side) in row.samples.iter().zip(["ours", "peer"]) {
            match samples {
                Samples::Values(_) => {}
                Samples::Failed(why) => println!("\n{} ({side}): {why}", row.step.name),
                Samples::LeftOut(why) => println!("\n{} ({side}): left out, {why}", row.step.name),
            }
        }
    }
}

fn cells(row: &Row) -> [String; 6] {
    let [ours, theirs] = [0, 1].map(|side| row.samples.get(side));
    let [(our_median, our_range), (their_median, their_range)] = [ours, theirs].map(|s| show(row.step, s));
    let ratio = match (ours.and_then(Samples::median), theirs.and_then(Samples::median)) {
        (Some(ours), Some(theirs)) if theirs > 0.0 => format!("{:.3}", ours / theirs),
        _ => String::new(),
    };
    [row.step.name.into(), our_median, our_range, their_median, their_range, ratio]
}

fn show(step: &Step, samples: Option<&Samples>) -> (String, String) {
    let Some(samples) = samples else { return Default::default() };
    match (samples, samples.median(), samples.sorted().as_slice()) {
        (Samples::Failed(_), ..) => ("failed".into(), String::new()),
        (Samples::LeftOut(_), ..) => ("left out".into(), String::new()),
        (_, Some(median), [least, .., most]) => {
            (step.unit.show(median), format!("{}-{}", step.unit.show(*least), step.unit.show(*most)))
        }
        (_, Some(median), _) => (step.unit.show(median), String::new()),
        (_, None, _) => Default::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(values: &[f64], want: Option<f64>) {
        assert_eq!(Samples::Values(values.to_vec()).median(), want);
    }

    #[test]
    fn medians() {
        check(&[], None);
        check(&[3.0], Some(3.0));
        check(&[3.0, 1.0], Some(2.0));
        check(&[9.0, 1.0, 2.0], Some(2.0));
    }
}
