//! The state that updates add up to.

use std::collections::{BTreeMap, HashMap, VecDeque};

use crate::format::{log_seconds, printable};
use crate::status::{Log, SolveStatus, Status, Timestamp, Vertex, Warning};

/// Last lines kept for the report of a failed step.
const FAILURE_LINES: usize = 10;
/// A line without an end is shown once it is this long.
const MAX_PARTIAL_LINE: usize = 64 * 1024;

/// One row of the display: a step, or a group of steps.
#[derive(Debug, Default)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) started: Option<Timestamp>,
    pub(crate) completed: Option<Timestamp>,
    pub(crate) cached: bool,
    pub(crate) error: String,
    pub(crate) statuses: Vec<Status>,
    pub(crate) warnings: Vec<Warning>,
    /// Log lines, ready to print, that no display has taken yet.
    pub(crate) new_lines: Vec<String>,
    /// The last log lines.
    pub(crate) tail: VecDeque<String>,
    partial: BTreeMap<i64, Vec<u8>>,
    /// Something changed since the display looked.
    pub(crate) changed: bool,
    members: Vec<String>,
}

/// All rows, by order of first mention.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    pub(crate) rows: Vec<Row>,
    by_id: HashMap<String, usize>,
    vertices: HashMap<String, Vertex>,
}

impl Trace {
    pub(crate) fn update(&mut self, status: &SolveStatus) {
        for vertex in &status.vertexes {
            self.vertex(vertex);
        }
        for part in &status.statuses {
            let row = self.row_of(&part.vertex);
            match row.statuses.iter_mut().find(|s| s.id == part.id) {
                Some(known) => *known = part.clone(),
                None => row.statuses.push(part.clone()),
            }
            row.changed = true;
        }
        for warning in &status.warnings {
            let row = self.row_of(&warning.vertex);
            if !row.warnings.contains(warning) {
                row.warnings.push(warning.clone());
                row.changed = true;
            }
        }
        for log in &status.logs {
            self.row_of(&log.vertex).log(log);
        }
    }

    /// Completed and all rows.
    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.rows.iter().filter(|r| r.completed.is_some()).count(), self.rows.len())
    }

    fn vertex(&mut self, vertex: &Vertex) {
        self.vertices.insert(vertex.digest.clone(), vertex.clone());
        let group = vertex.progress_group.as_ref().filter(|g| !g.id.is_empty());
        let id = group.map_or_else(|| vertex.digest.clone(), |g| format!("group:{}", g.id));
        let index = *self.by_id.entry(id).or_insert_with(|| {
            self.rows.push(Row::default());
            self.rows.len() - 1
        });
        self.by_id.insert(vertex.digest.clone(), index);
        let row = &mut self.rows[index];
        if !row.members.contains(&vertex.digest) {
            row.members.push(vertex.digest.clone());
        }
        let members: Vec<&Vertex> = row.members.iter().filter_map(|d| self.vertices.get(d)).collect();
        row.name =
            group.filter(|g| !g.name.is_empty()).map_or_else(|| vertex.name.clone(), |g| g.name.clone());
        row.started = members.iter().filter_map(|v| v.started).min();
        let ended = members.iter().all(|v| v.completed.is_some());
        row.completed = if ended { members.iter().filter_map(|v| v.completed).max() } else { None };
        row.cached = members.iter().all(|v| v.cached);
        row.error = members.iter().find(|v| !v.error.is_empty()).map(|v| v.error.clone()).unwrap_or_default();
        if ended {
            row.flush_partial();
        }
        row.changed = true;
    }

    fn row_of(&mut self, vertex: &str) -> &mut Row {
        let index = *self.by_id.entry(vertex.to_owned()).or_insert_with(|| {
            self.rows.push(Row::default());
            self.rows.len() - 1
        });
        &mut self.rows[index]
    }
}

impl Row {
    /// Ended by somebody's cancel rather than a failure of its own.
    pub(crate) fn canceled(&self) -> bool {
        self.error.ends_with("context canceled")
    }

    pub(crate) fn failed(&self) -> bool {
        !self.error.is_empty() && !self.canceled()
    }

    /// Seconds it took, or has taken until `now`.
    pub(crate) fn seconds(&self, now: Timestamp) -> f64 {
        self.started.map_or(0.0, |s| self.completed.unwrap_or(now).since(s).max(0.0))
    }

    fn log(&mut self, log: &Log) {
        let buffer = self.partial.entry(log.stream).or_default();
        buffer.extend_from_slice(&log.data);
        let mut lines = Vec::new();
        let mut start = 0;
        while let Some(end) = buffer[start..].iter().position(|b| *b == b'\n') {
            lines.push(String::from_utf8_lossy(&buffer[start..start + end]).into_owned());
            start += end + 1;
        }
        buffer.drain(..start);
        if buffer.len() > MAX_PARTIAL_LINE {
            lines.push(String::from_utf8_lossy(&std::mem::take(buffer)).into_owned());
        }
        let seconds = log_seconds(self.started.map_or(0.0, |s| log.timestamp.since(s)));
        for line in lines {
            self.line(&seconds, &line);
        }
    }

    fn flush_partial(&mut self) {
        for (_, rest) in std::mem::take(&mut self.partial) {
            if !rest.is_empty() {
                let seconds = log_seconds(self.started.zip(self.completed).map_or(0.0, |(s, c)| c.since(s)));
                self.line(&seconds, &String::from_utf8_lossy(&rest));
            }
        }
    }

    fn line(&mut self, seconds: &str, line: &str) {
        // A carriage return starts the line over: the last state is what a terminal would show.
        let shown = line.trim_end_matches('\r').rsplit('\r').next().unwrap_or_default();
        let line = format!("{seconds} {}", printable(shown));
        if self.tail.len() == FAILURE_LINES {
            self.tail.pop_front();
        }
        self.tail.push_back(line.clone());
        self.new_lines.push(line);
        self.changed = true;
    }
}
