use std::collections::VecDeque;
use std::io::{self, Write};

use crate::format::amounts;
use crate::status::Timestamp;
use crate::trace::{Row, Trace};

/// Log lines shown below a running step.
const LOG_LINES: usize = 6;

/// A screen that is drawn over again at each update.
#[derive(Debug)]
pub(crate) struct Tty {
    started: Timestamp,
    colors: bool,
    log_lines: usize,
    drawn: usize,
    logs: Vec<VecDeque<String>>,
}

impl Tty {
    pub(crate) fn new(started: Timestamp, colors: bool, log_lines: Option<usize>) -> Self {
        Self { started, colors, log_lines: log_lines.unwrap_or(LOG_LINES), drawn: 0, logs: Vec::new() }
    }

    pub(crate) fn update(
        &mut self,
        out: &mut dyn Write,
        trace: &mut Trace,
        now: Timestamp,
        size: (usize, usize),
        last: bool,
    ) -> io::Result<()> {
        let (width, height) = size;
        self.logs.resize_with(trace.rows.len(), VecDeque::new);
        for (row, logs) in trace.rows.iter_mut().zip(&mut self.logs) {
            for line in row.new_lines.drain(..) {
                if logs.len() == self.log_lines {
                    logs.pop_front();
                }
                logs.push_back(line);
            }
        }
        let (done, all) = trace.counts();
        let finished = if last && done == all { "FINISHED" } else { "" };
        let head = format!("[+] Building {:.1}s ({done}/{all}) {finished}", now.since(self.started).max(0.0));
        let mut lines = vec![self.paint("", &pad(head.trim_end(), "", width))];
        let body = self.body(trace, now, width);
        // The end of the list is what moves; on a small screen its beginning is left out until the build is over.
        let room = if last { usize::MAX } else { height.saturating_sub(2).max(1) };
        lines.extend(body.into_iter().rev().take(room).collect::<Vec<_>>().into_iter().rev());

        let mut screen = String::new();
        if self.drawn > 0 {
            screen.push_str(&format!("\u{1b}[{}A\r", self.drawn));
        }
        screen.push_str("\u{1b}[?25l");
        for line in &lines {
            screen.push_str(line);
            screen.push_str("\u{1b}[K\n");
        }
        screen.push_str("\u{1b}[J\u{1b}[?25h");
        self.drawn = lines.len();
        out.write_all(screen.as_bytes())?;
        out.flush()
    }

    fn body(&self, trace: &Trace, now: Timestamp, width: usize) -> Vec<String> {
        let mut lines = Vec::new();
        for (row, logs) in trace.rows.iter().zip(&self.logs).filter(|(r, _)| r.started.is_some()) {
            let prefix = if row.canceled() {
                "CANCELED "
            } else if row.failed() {
                "ERROR "
            } else if row.cached {
                "CACHED "
            } else {
                ""
            };
            let color = self.color_of(row);
            let time = format!("{:.1}s", row.seconds(now));
            lines.push(self.paint(color, &pad(&format!(" => {prefix}{}", row.name), &time, width)));
            if row.completed.is_some()
                && !row.failed()
                && row.statuses.iter().all(|s| s.completed.is_some())
                && row.statuses.len() > 3
            {
                continue;
            }
            for status in &row.statuses {
                let time = status
                    .started
                    .map(|s| format!("{:.1}s", status.completed.unwrap_or(now).since(s).max(0.0)))
                    .unwrap_or_default();
                let text = format!(" => => {} {}", status.id, amounts(status));
                lines.push(self.paint(color, &pad(text.trim_end(), &time, width)));
            }
            if row.completed.is_none() {
                lines.extend(logs.iter().map(|line| truncate(&format!(" => => # {line}"), width)));
            }
        }
        lines
    }

    fn color_of(&self, row: &Row) -> &'static str {
        if row.canceled() {
            "33"
        } else if row.failed() {
            "31"
        } else if row.completed.is_some() {
            "34"
        } else {
            ""
        }
    }

    fn paint(&self, color: &str, text: &str) -> String {
        if self.colors && !color.is_empty() {
            format!("\u{1b}[{color}m{text}\u{1b}[0m")
        } else {
            text.to_owned()
        }
    }
}

fn pad(left: &str, right: &str, width: usize) -> String {
    let room = width.saturating_sub(right.chars().count() + 1);
    let left = truncate(left, room);
    let fill = room.saturating_sub(left.chars().count());
    format!("{left}{}{}{right}", " ".repeat(fill), if right.is_empty() { "" } else { " " })
}

fn truncate(text: &str, width: usize) -> String {
    if text.chars().count() <= width { text.to_owned() } else { text.chars().take(width).collect() }
}
