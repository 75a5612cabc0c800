//! Lines to nodes: comments, directives, continuations, heredocs, flags and the argument forms.

mod args;
mod directives;
mod flags;
mod heredoc;
mod lines;
#[cfg(test)]
mod tests;

pub(crate) use self::directives::{detect_syntax, directive};
pub(crate) use self::heredoc::{Heredoc, heredoc_word, strip_tabs};
pub(crate) use self::lines::parse;
#[cfg(any(test, feature = "testing"))]
pub(crate) use self::lines::{MAX_LINE, Parsed};
use crate::source::LineRange;

/// One instruction as written.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    /// The word as spelt in the file.
    pub(crate) keyword: String,
    /// The whole instruction, continuations joined.
    pub(crate) text: String,
    /// Words that start with `--`, unquoted.
    pub(crate) flags: Vec<String>,
    pub(crate) args: Args,
    pub(crate) heredocs: Vec<Heredoc>,
    /// Comments right above, without their `#`.
    pub(crate) comments: Vec<String>,
    /// First and last line.
    pub(crate) start: usize,
    pub(crate) end: usize,
    /// The file has bytes here that are no UTF-8; they were replaced.
    pub(crate) invalid_utf8: bool,
}

/// Arguments in the form that the instruction takes.
#[derive(Clone, Debug)]
pub(crate) enum Args {
    /// A JSON array.
    Json(Vec<String>),
    /// Words, or the rest of the line as the only one.
    Words(Vec<String>),
    /// `name=value`; the flag says whether there was a `=`. An argument may lack a value.
    Pairs(Vec<Pair>),
    /// HEALTHCHECK: its first word and the rest.
    Typed(String, Box<Args>),
    /// ONBUILD: the instruction it holds.
    Trigger(Option<Box<Node>>),
}

/// A name with a value as written.
#[derive(Clone, Debug)]
pub(crate) struct Pair {
    pub(crate) name: String,
    pub(crate) value: Option<String>,
    pub(crate) has_delimiter: bool,
}

impl Node {
    pub(crate) fn ranges(&self) -> Vec<LineRange> {
        LineRange::lines(self.start, self.end)
    }

    pub(crate) fn is(&self, keyword: &str) -> bool {
        self.keyword.eq_ignore_ascii_case(keyword)
    }
}

impl Args {
    pub(crate) fn is_json(&self) -> bool {
        matches!(self, Self::Json(_))
    }

    /// With the places of a trigger taken out, which depend on how the file is laid out.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn without_places(&self) -> Self {
        let mut args = self.clone();
        if let Self::Trigger(Some(node)) = &mut args {
            (node.start, node.end, node.invalid_utf8) = (0, 0, false);
            node.text = node.text.trim().to_owned();
        }
        args
    }

    /// The arguments of the list forms.
    pub(crate) fn list(&self) -> &[String] {
        match self {
            Self::Json(list) | Self::Words(list) => list,
            _ => &[],
        }
    }
}
