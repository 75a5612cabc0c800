use std::fmt;

use kiln_api::errdetails::{Detail, details};
use kiln_api::pb;
use tonic::{Code, Status};

/// Lines of context shown around a range of several lines, and around a single line.
const CONTEXT: usize = 2;
const CONTEXT_OF_ONE: usize = 4;
/// Longest source that is shown, in bytes.
const MAX_SOURCE: usize = 16 << 20;

/// A failed build, as the daemon tells it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SolveError {
    /// The gRPC code; `Unknown` for most failures of a build.
    pub code: Code,
    /// The daemon's text.
    pub message: String,
    /// Digest of the vertex that failed.
    pub vertex: Option<String>,
    /// Places in source files that the failure comes from.
    pub sources: Vec<SourceExcerpt>,
    /// Exit code of the process that failed.
    pub exit_code: Option<u32>,
    /// All details, in the order they came.
    pub details: Vec<Detail>,
}

impl SolveError {
    pub(crate) fn new(status: &Status) -> Self {
        let mut error = Self {
            code: status.code(),
            message: status.message().to_owned(),
            vertex: None,
            sources: Vec::new(),
            exit_code: None,
            details: details(status),
        };
        for detail in &error.details {
            match detail {
                Detail::Vertex { digest } => error.vertex = Some(digest.clone()),
                Detail::Source { info, ranges } => {
                    error.sources.push(SourceExcerpt { info: info.clone(), ranges: ranges.clone() });
                }
                Detail::Exit { code } => error.exit_code = Some(*code),
                _ => {}
            }
        }
        error
    }
}

impl fmt::Display for SolveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("failed to solve: ")?;
        if self.code != Code::Unknown {
            write!(f, "{}: ", code_name(self.code))?;
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for SolveError {}

/// Lines of a source file. `Display` shows them with some context, as `buildctl` does.
#[derive(Clone, Debug, PartialEq)]
pub struct SourceExcerpt {
    /// The file.
    pub info: pb::SourceInfo,
    /// The lines.
    pub ranges: Vec<pb::Range>,
}

impl SourceExcerpt {
    /// The lines of each range, from 1, both ends included.
    fn lines(&self) -> Vec<(usize, usize)> {
        let line = |position: &Option<pb::Position>| {
            position.as_ref().and_then(|position| usize::try_from(position.line).ok()).unwrap_or_default()
        };
        let ranges = self.ranges.iter().map(|range| (line(&range.start), line(&range.end)));
        // A range that does not say where it ends is one line.
        ranges.map(|(start, end)| (start, end.max(start))).filter(|(start, _)| *start > 0).collect()
    }
}

impl fmt::Display for SourceExcerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let data = self.info.data.get(..self.info.data.len().min(MAX_SOURCE)).unwrap_or_default();
        let text = String::from_utf8_lossy(data);
        let lines: Vec<&str> = text.split('\n').collect();
        let marked = self.lines();
        let (Some(first), Some(last)) =
            (marked.iter().map(|range| range.0).min(), marked.iter().map(|range| range.1).max())
        else {
            return Ok(());
        };
        if first > lines.len() {
            return Ok(());
        }
        let (mut from, mut to) = (first, last.min(lines.len()));
        let wanted = if from == to { CONTEXT_OF_ONE } else { CONTEXT };
        // Each round takes a line on either side and counts as one more, so that context ends even at the edges
        // of a short file.
        let mut spent = 0;
        while spent < wanted {
            if from > 1 {
                from -= 1;
                spent += 1;
            }
            if to < lines.len() {
                to += 1;
                spent += 1;
            }
            spent += 1;
        }
        let rule = "-".repeat(20);
        writeln!(f, "{}:{first}\n{rule}", self.info.filename)?;
        for (number, line) in lines.iter().enumerate().skip(from - 1).take(to - from + 1) {
            let number = number + 1;
            let is_marked = marked.iter().any(|(start, end)| (*start..=*end).contains(&number));
            writeln!(f, "{number:4} | {} {line}", if is_marked { ">>>" } else { "   " })?;
        }
        writeln!(f, "{rule}")
    }
}

/// As gRPC's documentation writes the codes.
pub(crate) fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use kiln_api::errdetails;

    use super::*;

    fn source(text: &str, start: i32, end: i32) -> Detail {
        let position = |line| Some(pb::Position { line, character: 0 });
        let info = pb::SourceInfo {
            filename: "Dockerfile".to_owned(),
            data: text.into(),
            language: "Dockerfile".to_owned(),
            ..pb::SourceInfo::default()
        };
        Detail::Source { info, ranges: vec![pb::Range { start: position(start), end: position(end) }] }
    }

    #[track_caller]
    fn check(text: &str, start: i32, end: i32, want: &Expect) {
        let status = errdetails::status(Code::Unknown, "x", &[source(text, start, end)]);
        let error = SolveError::new(&status);
        want.assert_eq(&error.sources[0].to_string());
    }

    #[test]
    fn excerpts() {
        check(
            "FROM base\n\nRUN x\n",
            3,
            3,
            &expect![[r#"
                Dockerfile:3
                --------------------
                   1 |     FROM base
                   2 |     
                   3 | >>> RUN x
                   4 |     
                --------------------
            "#]],
        );
        check(
            "1\n2\n3\n4\n5\n6\n7\n8\n9",
            4,
            5,
            &expect![[r#"
                Dockerfile:4
                --------------------
                   3 |     3
                   4 | >>> 4
                   5 | >>> 5
                   6 |     6
                --------------------
            "#]],
        );
        check("1", 7, 7, &expect![[""]]);
    }

    #[test]
    fn messages() {
        let details = [Detail::Vertex { digest: "sha256:ab".to_owned() }, Detail::Exit { code: 3 }];
        let error = SolveError::new(&errdetails::status(Code::Unknown, "process failed", &details));
        assert_eq!(error.to_string(), "failed to solve: process failed");
        assert_eq!((error.vertex.as_deref(), error.exit_code), (Some("sha256:ab"), Some(3)));
        let error = SolveError::new(&Status::not_found("no such thing"));
        assert_eq!(error.to_string(), "failed to solve: NotFound: no such thing");
    }
}
