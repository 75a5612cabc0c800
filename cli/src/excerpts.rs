//! Warnings with the lines that they are about.

use std::io::{self, Write};

use kiln_client::SourceExcerpt;
use kiln_client::api::pb;
use kiln_progress::{SolveStatus, Warning};

/// Warnings that are kept to be shown. A build that has more of them has said enough.
const MAX_WARNINGS: usize = 1000;

/// The warnings of a build, each once, in the order they came.
#[derive(Debug, Default)]
pub(crate) struct Excerpts {
    warnings: Vec<Warning>,
}

impl Excerpts {
    /// Keeps the warnings of an update. They may come more than once.
    pub(crate) fn take(&mut self, update: &SolveStatus) {
        for warning in &update.warnings {
            if self.warnings.len() < MAX_WARNINGS && !self.warnings.contains(warning) {
                self.warnings.push(warning.clone());
            }
        }
    }

    /// Writes all of them, in the form in which the frontend's own check prints them.
    pub(crate) fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        for warning in &self.warnings {
            write!(out, "\nWARNING: {}", printable(&warning.short))?;
            if !warning.url.is_empty() {
                write!(out, " - {}", printable(warning.url.as_bytes()))?;
            }
            writeln!(out)?;
            for line in &warning.detail {
                writeln!(out, "{}", printable(line))?;
            }
            write!(out, "{}", printable(excerpt(warning).to_string().as_bytes()))?;
        }
        Ok(())
    }
}

/// Text that cannot steer the terminal.
fn printable(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    text.chars().map(|c| if c.is_control() && !matches!(c, '\n' | '\t') { '\u{fffd}' } else { c }).collect()
}

fn excerpt(warning: &Warning) -> SourceExcerpt {
    let position =
        |at: kiln_progress::Position| Some(pb::Position { line: at.line, character: at.character });
    let ranges = warning.ranges.iter();
    let info = warning.source_info.clone().unwrap_or_default();
    SourceExcerpt {
        info: pb::SourceInfo {
            filename: info.filename,
            data: info.data,
            language: info.language,
            ..pb::SourceInfo::default()
        },
        ranges: ranges
            .map(|range| pb::Range { start: position(range.start), end: position(range.end) })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use kiln_progress::{Position, Range, SourceInfo};

    use super::*;

    #[test]
    fn each_warning_is_written_once_with_its_lines() {
        let line = Position { line: 2, character: 0 };
        let warning = Warning {
            short: b"MaintainerDeprecated: use a label\x1b[2J (line 2)".to_vec(),
            detail: vec![b"It is deprecated".to_vec()],
            url: "https://example.com/rule".to_owned(),
            source_info: Some(SourceInfo {
                filename: "Dockerfile".to_owned(),
                data: b"FROM scratch\nMAINTAINER me\n".to_vec(),
                language: "Dockerfile".to_owned(),
            }),
            ranges: vec![Range { start: line, end: line }],
            ..Warning::default()
        };
        let update = SolveStatus { warnings: vec![warning.clone(), warning], ..SolveStatus::default() };
        let mut excerpts = Excerpts::default();
        excerpts.take(&update);
        excerpts.take(&update);
        let mut out = Vec::new();
        excerpts.write(&mut out).unwrap();
        expect![[r#"

            WARNING: MaintainerDeprecated: use a label�[2J (line 2) - https://example.com/rule
            It is deprecated
            Dockerfile:2
            --------------------
               1 |     FROM scratch
               2 | >>> MAINTAINER me
               3 |     
            --------------------
        "#]]
        .assert_eq(&String::from_utf8(out).unwrap());
    }
}
