use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Serialize, Serializer};

use crate::reason::Reason;

/// A point in time, UTC, written as RFC 3339 with the nanoseconds that are not zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp {
    /// Seconds since 1970.
    pub seconds: i64,
    /// Nanoseconds past `seconds`.
    pub nanos: u32,
}

/// News of a build: only what changed since the update before.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct SolveStatus {
    /// Steps.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub vertexes: Vec<Vertex>,
    /// Parts of steps.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub statuses: Vec<Status>,
    /// Output of steps.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub logs: Vec<Log>,
    /// Warnings.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<Warning>,
}

/// A step.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Vertex {
    /// Its identity within the build.
    pub digest: String,
    /// Steps it builds on.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<String>,
    /// What to call it.
    pub name: String,
    /// When it began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started: Option<Timestamp>,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completed: Option<Timestamp>,
    /// Nothing had to be done.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub cached: bool,
    /// Why it failed; empty if it did not.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub error: String,
    /// The group it is shown as.
    #[serde(rename = "progressGroup", skip_serializing_if = "Option::is_none")]
    pub progress_group: Option<ProgressGroup>,
    /// Why it was found or had to run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
}

/// Several steps shown as one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ProgressGroup {
    /// Identity of the group.
    pub id: String,
    /// What to call it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Merged away when its steps are in other groups too.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub weak: bool,
}

/// A part of a step, such as one layer of a pull.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Status {
    /// Identity within the step; shown.
    pub id: String,
    /// Digest of the step.
    pub vertex: String,
    /// The action word.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Units (bytes, mostly) expected; 0 if unknown.
    #[serde(skip_serializing_if = "is_zero")]
    pub total: i64,
    /// Units done.
    pub current: i64,
    /// When this was true.
    pub timestamp: Timestamp,
    /// When it began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started: Option<Timestamp>,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completed: Option<Timestamp>,
}

/// Output of a step, split anywhere.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Log {
    /// Digest of the step.
    pub vertex: String,
    /// 1 for standard output, 2 for standard error.
    pub stream: i64,
    /// The bytes.
    #[serde(serialize_with = "base64_bytes")]
    pub data: Vec<u8>,
    /// When they came.
    pub timestamp: Timestamp,
}

/// A warning of a frontend.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Warning {
    /// Digest of the step.
    pub vertex: String,
    /// 1 and up.
    pub level: i64,
    /// One line.
    #[serde(serialize_with = "base64_bytes")]
    pub short: Vec<u8>,
    /// More lines.
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "base64_lines")]
    pub detail: Vec<Vec<u8>>,
    /// Where to read more.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub url: String,
    /// The file it is about.
    #[serde(rename = "sourceInfo", skip_serializing_if = "Option::is_none")]
    pub source_info: Option<SourceInfo>,
    /// Where in the file.
    #[serde(rename = "range", skip_serializing_if = "Vec::is_empty")]
    pub ranges: Vec<Range>,
}

/// A source file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SourceInfo {
    /// Its name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub filename: String,
    /// Its content.
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "base64_bytes")]
    pub data: Vec<u8>,
    /// Its language.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub language: String,
}

/// Lines of a source file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Range {
    /// First position.
    pub start: Position,
    /// Last position.
    pub end: Position,
}

/// A place in a source file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Position {
    /// From 1.
    pub line: i32,
    /// From 0.
    #[serde(skip_serializing_if = "is_zero_i32")]
    pub character: i32,
}

impl Timestamp {
    /// The time now.
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { seconds: i64::try_from(since.as_secs()).unwrap_or_default(), nanos: since.subsec_nanos() }
    }

    /// Seconds from `earlier` to this; negative if it is later.
    pub fn since(self, earlier: Self) -> f64 {
        (self.seconds - earlier.seconds) as f64 + (f64::from(self.nanos) - f64::from(earlier.nanos)) / 1e9
    }

    fn text(self) -> String {
        let (days, second) = (self.seconds.div_euclid(86_400), self.seconds.rem_euclid(86_400));
        // Howard Hinnant's civil-from-days, with the era starting on 0000-03-01.
        let z = days + 719_468;
        let era = z.div_euclid(146_097);
        let day_of_era = z.rem_euclid(146_097);
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let mp = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * mp + 2) / 5 + 1;
        let month = if mp < 10 { mp + 3 } else { mp - 9 };
        let year = year_of_era + era * 400 + i64::from(month <= 2);
        let mut text = format!(
            "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}",
            second / 3600,
            second / 60 % 60,
            second % 60
        );
        if self.nanos > 0 {
            text.push_str(format!(".{:09}", self.nanos).trim_end_matches('0'));
        }
        text.push('Z');
        text
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text())
    }
}

fn base64_bytes<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    use base64::Engine as _;
    serializer.serialize_str(&base64::engine::general_purpose::STANDARD.encode(bytes))
}

fn base64_lines<S: Serializer>(lines: &[Vec<u8>], serializer: S) -> Result<S::Ok, S::Error> {
    use base64::Engine as _;
    serializer.collect_seq(lines.iter().map(|l| base64::engine::general_purpose::STANDARD.encode(l)))
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde calls")]
fn is_zero(n: &i64) -> bool {
    *n == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde calls")]
fn is_zero_i32(n: &i32) -> bool {
    *n == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_are_rfc_3339() {
        for (seconds, nanos, want) in [
            (0, 0, "1970-01-01T00:00:00Z"),
            (1_577_934_245, 123_456_789, "2020-01-02T03:04:05.123456789Z"),
            (951_782_400, 500_000_000, "2000-02-29T00:00:00.5Z"),
            (-1, 0, "1969-12-31T23:59:59Z"),
        ] {
            assert_eq!(Timestamp { seconds, nanos }.text(), want);
        }
    }
}
