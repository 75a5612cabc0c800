use crate::shell::{Env, Lex};

/// A heredoc: its word and, once read, its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Heredoc {
    /// The word without quotes; it names the file and ends the body.
    pub(crate) name: String,
    /// Variables in the body are expanded.
    pub(crate) expand: bool,
    /// `<<-`: leading tabs are dropped.
    pub(crate) chomp: bool,
    /// The body as written.
    pub(crate) data: String,
}

/// Finds the heredoc words of an instruction.
pub(super) fn heredocs(line: &str) -> Vec<Heredoc> {
    let lex = Lex { raw_quotes: true, raw_escapes: true, keep_unset: true, ..Lex::new('\\') };
    let (expansion, outcome) = lex.expand(line, &Env::default());
    match outcome {
        Ok(()) => expansion.words.iter().filter_map(|word| heredoc_word(word)).collect(),
        Err(_) => Vec::new(),
    }
}

/// Reads one word as `[fd]<<[-]WORD`.
pub(crate) fn heredoc_word(word: &str) -> Option<Heredoc> {
    let rest = word.trim_start_matches(|c: char| c.is_ascii_digit()).strip_prefix("<<")?;
    let (chomp, rest) = match rest.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, rest),
    };
    let rest = rest.trim_start_matches(['\t', '\n', '\u{c}', '\r', ' ']);
    if rest.is_empty() || rest.contains('<') {
        return None;
    }
    let plain = Lex { keep_unset: true, ..Lex::new('\\') };
    let raw = Lex { raw_quotes: true, ..plain.clone() };
    let split = |lex: &Lex| {
        let (expansion, outcome) = lex.expand(rest, &Env::default());
        outcome.ok().map(|()| expansion.words)
    };
    let (plain, raw) = (split(&plain)?, split(&raw)?);
    let [name] = plain.as_slice() else { return None };
    // Any quote that the first reading removed turns expansion off.
    let quotes = |word: &str| word.matches(['\'', '"']).count();
    let expand = raw.first().is_some_and(|raw| quotes(raw) == quotes(name));
    Some(Heredoc { name: name.clone(), expand, chomp, data: String::new() })
}

/// Drops the leading tabs of every line.
pub(crate) fn strip_tabs(body: &str) -> String {
    body.split_inclusive('\n').map(|line| line.trim_start_matches('\t')).collect()
}
