use std::collections::HashMap;
use std::io::{self, Write};

use crate::format::amounts;
use crate::status::{Status, Timestamp};
use crate::trace::{Row, Trace};

/// A running step keeps the screen at least this long (seconds) while others wait.
const FAIR_SHARE: f64 = 5.0;
/// A part is printed again after this much of its total, or this many seconds.
const STEP_SHARE: f64 = 0.05;
const STEP_SECONDS: f64 = 5.0;

/// Plain lines, each step's together as far as possible.
#[derive(Debug, Default)]
pub(crate) struct Plain {
    shown: HashMap<usize, Shown>,
    current: Option<usize>,
    current_since: Option<Timestamp>,
    any: bool,
}

#[derive(Debug, Default)]
struct Shown {
    number: usize,
    ended: bool,
    warnings: usize,
    parts: HashMap<String, Part>,
}

#[derive(Debug)]
struct Part {
    current: i64,
    at: Timestamp,
    done: bool,
}

impl Plain {
    pub(crate) fn update(
        &mut self,
        out: &mut dyn Write,
        trace: &mut Trace,
        now: Timestamp,
    ) -> io::Result<()> {
        let mut ended: Vec<usize> = (0..trace.rows.len())
            .filter(|i| {
                trace.rows[*i].completed.is_some() && (trace.rows[*i].changed || !self.shown.contains_key(i))
            })
            .collect();
        // The one on the screen first, then in the order they ended.
        ended.sort_by_key(|i| (Some(*i) != self.current, trace.rows[*i].completed));
        for index in ended {
            self.select(out, trace, index, now)?;
            self.print(out, &mut trace.rows[index], index, now)?;
            self.end(out, &trace.rows[index], index, now)?;
            self.current = None;
        }
        let running = |i: &usize| trace.rows[*i].started.is_some() && trace.rows[*i].completed.is_none();
        let next = match self.current.filter(running) {
            Some(current) => {
                let waited = self.current_since.map_or(0.0, |s| now.since(s));
                let other =
                    (0..trace.rows.len()).filter(running).find(|i| *i != current && trace.rows[*i].changed);
                if waited > FAIR_SHARE { other.or(Some(current)) } else { Some(current) }
            }
            None => (0..trace.rows.len()).filter(running).min_by_key(|i| trace.rows[*i].started),
        };
        if let Some(index) = next {
            self.select(out, trace, index, now)?;
            self.print(out, &mut trace.rows[index], index, now)?;
        }
        out.flush()
    }

    /// What is left at the end: the log of each failed step.
    pub(crate) fn finish(&mut self, out: &mut dyn Write, trace: &Trace) -> io::Result<()> {
        for row in trace.rows.iter().filter(|r| r.failed()) {
            writeln!(out, "------\n > {}:", row.name)?;
            for line in &row.tail {
                writeln!(out, "{line}")?;
            }
            writeln!(out, "------")?;
        }
        out.flush()
    }

    fn select(&mut self, out: &mut dyn Write, trace: &Trace, index: usize, now: Timestamp) -> io::Result<()> {
        if self.current == Some(index) {
            return Ok(());
        }
        if let Some(before) = self.current
            && let Some(shown) = self.shown.get(&before)
            && !shown.ended
        {
            writeln!(out, "#{} ...", shown.number)?;
        }
        if self.any {
            writeln!(out)?;
        }
        self.any = true;
        let number = self.shown.len() + 1;
        let shown = self.shown.entry(index).or_insert_with(|| Shown { number, ..Shown::default() });
        writeln!(out, "#{} {}", shown.number, trace.rows[index].name)?;
        self.current = Some(index);
        self.current_since = Some(now);
        Ok(())
    }

    fn print(&mut self, out: &mut dyn Write, row: &mut Row, index: usize, now: Timestamp) -> io::Result<()> {
        let Some(shown) = self.shown.get_mut(&index) else { return Ok(()) };
        row.changed = false;
        for warning in row.warnings.iter().skip(shown.warnings) {
            writeln!(out, "#{} WARN: {}", shown.number, String::from_utf8_lossy(&warning.short))?;
        }
        shown.warnings = row.warnings.len();
        for status in &row.statuses {
            let done = status.completed.is_some();
            let again = match shown.parts.get(&status.id) {
                None => true,
                Some(part) if part.done => false,
                Some(_) if done => true,
                Some(part) => {
                    let share = if status.total > 0 {
                        (status.current - part.current) as f64 / status.total as f64
                    } else {
                        0.0
                    };
                    share >= STEP_SHARE || now.since(part.at) >= STEP_SECONDS
                }
            };
            if again {
                writeln!(out, "#{} {}", shown.number, part_line(status, now))?;
                shown.parts.insert(status.id.clone(), Part { current: status.current, at: now, done });
            }
        }
        for line in row.new_lines.drain(..) {
            writeln!(out, "#{} {line}", shown.number)?;
        }
        Ok(())
    }

    fn end(&mut self, out: &mut dyn Write, row: &Row, index: usize, now: Timestamp) -> io::Result<()> {
        let Some(shown) = self.shown.get_mut(&index) else { return Ok(()) };
        shown.ended = true;
        let number = shown.number;
        if row.canceled() {
            writeln!(out, "#{number} CANCELED")
        } else if row.failed() {
            writeln!(out, "#{number} ERROR: {}", row.error)
        } else if row.cached {
            writeln!(out, "#{number} CACHED")
        } else {
            writeln!(out, "#{number} DONE {:.1}s", row.seconds(now))
        }
    }
}

fn part_line(status: &Status, now: Timestamp) -> String {
    let mut line = status.id.clone();
    let amounts = amounts(status);
    if !amounts.is_empty() {
        line.push(' ');
        line.push_str(&amounts);
    }
    if let Some(started) = status.started {
        let seconds = status.completed.unwrap_or(now).since(started);
        if seconds > 0.01 {
            line.push_str(&format!(" {seconds:.1}s"));
        }
    }
    if status.completed.is_some() {
        line.push_str(" done");
    }
    line
}
