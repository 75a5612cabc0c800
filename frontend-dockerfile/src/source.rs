use kiln_frontend::pb;

/// How many lines of one instruction are listed one by one.
const MAX_RANGES: usize = 1024;

/// Lines of a file, counted from one, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LineRange {
    /// First line.
    pub start: usize,
    /// Last line.
    pub end: usize,
}

impl LineRange {
    /// One line.
    pub(crate) fn line(line: usize) -> Self {
        Self { start: line, end: line }
    }

    /// One range per line from `start` to `end`; one for `start` if `end` lies before it. Very many lines are one range:
    /// every warning and error about an instruction repeats them.
    pub(crate) fn lines(start: usize, end: usize) -> Vec<Self> {
        let end = end.max(start);
        if end - start >= MAX_RANGES {
            return vec![Self { start, end }];
        }
        (start..=end).map(Self::line).collect()
    }

    pub(crate) fn to_pb(self) -> pb::Range {
        let position =
            |line: usize| pb::Position { line: i32::try_from(line).unwrap_or(i32::MAX), character: 0 };
        pb::Range { start: Some(position(self.start)), end: Some(position(self.end)) }
    }
}

/// The Dockerfile with what clients need to show it.
#[derive(Clone, Debug, Default)]
pub(crate) struct SourceFile {
    pub(crate) filename: String,
    pub(crate) data: Vec<u8>,
    pub(crate) definition: Option<pb::Definition>,
    /// Vertex that loaded it; warnings are shown with that one.
    pub(crate) vertex: String,
}

impl SourceFile {
    pub(crate) fn to_pb(&self) -> pb::SourceInfo {
        pb::SourceInfo {
            filename: self.filename.clone(),
            data: self.data.clone(),
            definition: self.definition.clone(),
            language: "Dockerfile".to_owned(),
        }
    }
}
