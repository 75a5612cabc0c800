use crate::error::{Error, Result};
use crate::parser::directives::Directives;
use crate::parser::heredoc::{Heredoc, heredocs};
use crate::parser::{Args, Node, args, flags};
use crate::source::LineRange;

/// How many bytes a line may have, its end not counted. The reference has the same bound.
pub(crate) const MAX_LINE: usize = 65_535;

/// A Dockerfile, instruction by instruction.
#[derive(Clone, Debug)]
pub(crate) struct Parsed {
    pub(crate) nodes: Vec<Node>,
    pub(crate) escape: char,
    /// Lines that end an instruction with blank lines inside.
    pub(crate) empty_continuations: Vec<LineRange>,
}

/// Splits a file into instructions.
pub(crate) fn parse(data: &[u8]) -> Result<Parsed> {
    let mut lines = Lines { data, at: 0, number: 0, too_long: false };
    let mut directives = Directives::default();
    let mut nodes = Vec::new();
    let mut empty_continuations = Vec::new();
    let mut comments: Vec<String> = Vec::new();

    while let Some(raw) = lines.next() {
        let before = lines.number - 1;
        let raw = if before == 0 { raw.strip_prefix(b"\xef\xbb\xbf").unwrap_or(raw) } else { raw };
        let (text, mut invalid) = decode(raw);
        let text = trim_end(&text).trim_start();
        if let Some(comment) = text.strip_prefix('#') {
            let handled = directives
                .comment(text)
                .map_err(|message| Error::new(message).at(&[LineRange::line(before)]))?;
            // The text is taken from the line as it stands, so an indented comment keeps its mark.
            let comment = if raw.first() == Some(&b'#') { comment.trim() } else { text.trim() };
            if comment.is_empty() {
                comments.clear();
            } else if !handled {
                comments.push(comment.to_owned());
            }
            continue;
        }
        directives.done();
        let start = lines.number;
        let (mut line, mut complete) = strip_continuation(text, directives.escape);
        if complete && line.is_empty() {
            continue;
        }
        let mut blank_inside = false;
        while !complete {
            let Some(raw) = lines.next() else { break };
            let (text, bad) = decode(raw);
            let text = trim_end(&text);
            if text.trim_start().starts_with('#') {
                continue;
            }
            if text.trim_start().is_empty() {
                blank_inside = true;
                continue;
            }
            invalid |= bad;
            let (more, last) = strip_continuation(text, directives.escape);
            line.push_str(&more);
            complete = last;
        }
        if blank_inside {
            empty_continuations.push(LineRange::line(lines.number));
        }
        let place = |lines: &Lines<'_>| LineRange::lines(start, lines.number);
        let mut node = node(&line, directives.escape, false).map_err(|error| error.at(&place(&lines)))?;
        node.comments = std::mem::take(&mut comments);
        if takes_heredocs(&node) && line.contains("<<") {
            for heredoc in heredocs(&line) {
                let heredoc = body(&mut lines, heredoc, &mut invalid)
                    .ok_or_else(|| Error::new("unterminated heredoc").at(&place(&lines)))?;
                node.heredocs.push(heredoc);
            }
        }
        (node.start, node.end, node.invalid_utf8) = (start, lines.number, invalid);
        if let Args::Trigger(Some(trigger)) = &mut node.args {
            (trigger.start, trigger.end, trigger.invalid_utf8) = (start, lines.number, invalid);
        }
        nodes.push(node);
    }
    let here = [LineRange::line(lines.number)];
    if nodes.is_empty() {
        return Err(Error::new("file with no instructions").at(&here));
    }
    if lines.too_long {
        return Err(
            Error::new(format!("dockerfile line greater than max allowed size of {MAX_LINE}")).at(&here)
        );
    }
    Ok(Parsed { nodes, escape: directives.escape, empty_continuations })
}

/// Makes a node of a joined line.
pub(super) fn node(line: &str, escape: char, in_trigger: bool) -> Result<Node> {
    let trimmed = line.trim();
    let is_blank = |c: char| matches!(c, '\t' | '\u{b}' | '\u{c}' | '\r' | ' ');
    let (keyword, rest) = match trimmed.find(is_blank) {
        Some(at) => (&trimmed[..at], trimmed[at..].trim_start_matches(is_blank)),
        None => (trimmed, ""),
    };
    let (flags, rest) = flags::take(rest, escape);
    Ok(Node {
        keyword: keyword.to_owned(),
        text: line.to_owned(),
        flags,
        args: args::parse(keyword, rest.trim(), escape, in_trigger)?,
        heredocs: Vec::new(),
        comments: Vec::new(),
        start: 0,
        end: 0,
        invalid_utf8: false,
    })
}

fn takes_heredocs(node: &Node) -> bool {
    let inner = match &node.args {
        Args::Trigger(Some(trigger)) => trigger,
        _ => node,
    };
    ["run", "copy", "add"].iter().any(|keyword| inner.is(keyword)) && !inner.args.is_json()
}

fn body(lines: &mut Lines<'_>, mut heredoc: Heredoc, invalid: &mut bool) -> Option<Heredoc> {
    loop {
        let raw = lines.next()?;
        let (text, bad) = decode(raw);
        *invalid |= bad;
        let end = trim_end(&text);
        let end = if heredoc.chomp { end.trim_start_matches('\t') } else { end };
        if end == heredoc.name {
            return Some(heredoc);
        }
        heredoc.data.push_str(&text);
    }
}

/// Cuts a continuation mark off; the second value says that the line ends the instruction.
fn strip_continuation(line: &str, escape: char) -> (String, bool) {
    let end = line.trim_end_matches([' ', '\t']);
    match end.strip_suffix(escape) {
        Some("") => (String::new(), false),
        Some(before) if !before.ends_with(escape) => (before.to_owned(), false),
        _ => (line.to_owned(), true),
    }
}

fn trim_end(line: &str) -> &str {
    line.trim_end_matches(['\r', '\n'])
}

fn decode(raw: &[u8]) -> (String, bool) {
    match std::str::from_utf8(raw) {
        Ok(text) => (text.to_owned(), false),
        Err(_) => (String::from_utf8_lossy(raw).into_owned(), true),
    }
}

/// Physical lines with their ends.
struct Lines<'a> {
    data: &'a [u8],
    at: usize,
    number: usize,
    too_long: bool,
}

impl<'a> Lines<'a> {
    fn next(&mut self) -> Option<&'a [u8]> {
        let rest = &self.data[self.at..];
        if rest.is_empty() || self.too_long {
            return None;
        }
        let (length, ended) = match rest.iter().position(|&b| b == b'\n') {
            Some(at) => (at, true),
            None => (rest.len(), false),
        };
        if length > MAX_LINE {
            self.too_long = true;
            return None;
        }
        let line = &rest[..length + usize::from(ended)];
        self.at += line.len();
        self.number += 1;
        Some(line)
    }
}
