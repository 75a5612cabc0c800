//! Words of the shell language that Dockerfiles borrow: quotes, escapes, variables and their modifiers.

mod env;
mod pattern;
#[cfg(test)]
mod tests;
mod work;

use std::collections::BTreeSet;

pub(crate) use self::env::Env;
use self::pattern::Pattern;
pub(crate) use self::work::Work;

/// How deep `${a:-${b:-…}}` may nest.
const MAX_DEPTH: usize = 200;

/// How long the result of one expansion may be, in bytes.
const MAX_RESULT: usize = 16 << 20;

/// How words are expanded.
#[derive(Clone, Debug)]
pub(crate) struct Lex {
    pub(crate) escape: char,
    /// Keep quotes in the result.
    pub(crate) raw_quotes: bool,
    /// Keep escape characters in the result.
    pub(crate) raw_escapes: bool,
    /// Quotes are plain text.
    pub(crate) plain_quotes: bool,
    /// Leave unset variables as they are written.
    pub(crate) keep_unset: bool,
    /// What all expansions of a file share.
    pub(crate) work: Work,
}

/// What became of a word.
#[derive(Clone, Debug, Default)]
pub(crate) struct Expansion {
    pub(crate) text: String,
    /// The text split on spaces that were not quoted.
    pub(crate) words: Vec<String>,
    /// Names that the environment has.
    pub(crate) set: BTreeSet<String>,
    /// Names that it lacks.
    pub(crate) unset: BTreeSet<String>,
}

impl Lex {
    pub(crate) fn new(escape: char) -> Self {
        Self {
            escape,
            raw_quotes: false,
            raw_escapes: false,
            plain_quotes: false,
            keep_unset: false,
            work: Work::default(),
        }
    }

    /// Expands `word`. Names that were met are reported in the error case too.
    pub(crate) fn expand(&self, word: &str, env: &Env) -> (Expansion, Result<(), String>) {
        let mut run = Run {
            lex: self,
            env,
            chars: word.strip_prefix('\u{feff}').unwrap_or(word).chars().collect(),
            at: 0,
            raw_escapes: self.raw_escapes,
            depth: 0,
            word: String::new(),
            met: Expansion::default(),
        };
        self.work.add(word.len());
        match run.until(None, self.raw_escapes) {
            Ok((text, words)) => {
                run.met.text = text;
                run.met.words = words;
                (run.met, Ok(()))
            }
            Err(error) => {
                let error = format!("failed to process {}: {error}", crate::text::quote(word));
                (run.met, Err(error))
            }
        }
    }

    /// Expands `word`, for callers that do not care which names were met.
    pub(crate) fn word(&self, word: &str, env: &Env) -> Result<String, String> {
        let (expansion, outcome) = self.expand(word, env);
        outcome.map(|()| expansion.text)
    }
}

struct Run<'a> {
    lex: &'a Lex,
    env: &'a Env,
    chars: Vec<char>,
    at: usize,
    raw_escapes: bool,
    depth: usize,
    /// The word being collected. Nested text restarts it, also for the text around: a recorded trait of the language.
    word: String,
    met: Expansion,
}

#[derive(Default)]
struct Words {
    done: Vec<String>,
    inside: bool,
}

impl Run<'_> {
    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek();
        self.at += usize::from(c.is_some());
        c
    }

    /// Expands up to `stop`, which is consumed, or to the end.
    fn until(&mut self, stop: Option<char>, raw_escapes: bool) -> Result<(String, Vec<String>), String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err("substitutions are nested too deeply".to_owned());
        }
        let outer = std::mem::replace(&mut self.raw_escapes, raw_escapes);
        let result = self.until_inner(stop);
        self.raw_escapes = outer;
        self.depth -= 1;
        result
    }

    fn until_inner(&mut self, stop: Option<char>) -> Result<(String, Vec<String>), String> {
        let mut text = String::new();
        self.word.clear();
        let mut words = Words::default();
        while let Some(c) = self.peek() {
            if stop == Some(c) {
                self.at += 1;
                return Ok((text, self.finish_words(words)));
            }
            match c {
                '$' => {
                    let value = self.dollar()?;
                    self.grow(text.len(), value.len())?;
                    for c in value.chars() {
                        self.add_char(&mut words, c);
                    }
                    text.push_str(&value);
                }
                '<' => {
                    let raw = self.possible_heredoc();
                    self.add_raw(&mut words, &raw);
                    text.push_str(&raw);
                }
                '\'' if !self.lex.plain_quotes => {
                    let raw = self.single_quoted()?;
                    self.add_raw(&mut words, &raw);
                    text.push_str(&raw);
                }
                '"' if !self.lex.plain_quotes => {
                    let raw = self.double_quoted()?;
                    self.add_raw(&mut words, &raw);
                    text.push_str(&raw);
                }
                c => {
                    self.at += 1;
                    if c != self.lex.escape {
                        self.add_char(&mut words, c);
                        text.push(c);
                        continue;
                    }
                    if self.raw_escapes {
                        self.add_raw(&mut words, c.encode_utf8(&mut [0; 4]));
                        text.push(c);
                    }
                    let Some(escaped) = self.next() else { break };
                    self.add_raw(&mut words, escaped.encode_utf8(&mut [0; 4]));
                    text.push(escaped);
                }
            }
        }
        match stop {
            Some(stop) => Err(format!("unexpected end of statement while looking for matching {stop}")),
            None => Ok((text, self.finish_words(words))),
        }
    }

    /// Whether an error means no more than that the text ended.
    fn ended(&self) -> bool {
        self.peek().is_none() && self.lex.work.check().is_ok()
    }

    /// Makes sure that a text may grow.
    fn grow(&self, length: usize, more: usize) -> Result<(), String> {
        if length.saturating_add(more) > MAX_RESULT {
            return Err(format!("the result has more than {MAX_RESULT} bytes"));
        }
        self.lex.work.spend(more)
    }

    fn add_char(&mut self, words: &mut Words, c: char) {
        if !c.is_whitespace() {
            self.word.push(c);
            words.inside = true;
        } else if words.inside && !self.word.is_empty() {
            words.done.push(std::mem::take(&mut self.word));
            words.inside = false;
        }
    }

    fn add_raw(&mut self, words: &mut Words, text: &str) {
        self.word.push_str(text);
        words.inside = true;
    }

    fn finish_words(&mut self, mut words: Words) -> Vec<String> {
        if !self.word.is_empty() {
            words.done.push(std::mem::take(&mut self.word));
        }
        words.done
    }

    fn possible_heredoc(&mut self) -> String {
        self.at += 1;
        if self.peek() != Some('<') {
            return "<".to_owned();
        }
        self.at += 1;
        let mut raw = "<<".to_owned();
        while let Some(c @ ('\t' | '\r' | ' ')) = self.peek() {
            raw.push(c);
            self.at += 1;
        }
        raw
    }

    fn single_quoted(&mut self) -> Result<String, String> {
        let mut text = String::new();
        let quote = self.next();
        text.extend(quote.filter(|_| self.lex.raw_quotes));
        loop {
            match self.next() {
                None => {
                    return Err(
                        "unexpected end of statement while looking for matching single-quote".to_owned()
                    );
                }
                Some('\'') => {
                    text.extend(quote.filter(|_| self.lex.raw_quotes));
                    return Ok(text);
                }
                Some(c) => text.push(c),
            }
        }
    }

    fn double_quoted(&mut self) -> Result<String, String> {
        let mut text = String::new();
        let quote = self.next();
        text.extend(quote.filter(|_| self.lex.raw_quotes));
        loop {
            match self.peek() {
                None => {
                    return Err(
                        "unexpected end of statement while looking for matching double-quote".to_owned()
                    );
                }
                Some('"') => {
                    self.at += 1;
                    text.extend(quote.filter(|_| self.lex.raw_quotes));
                    return Ok(text);
                }
                Some('$') => {
                    let value = self.dollar()?;
                    self.grow(text.len(), value.len())?;
                    text.push_str(&value);
                }
                Some(c) => {
                    self.at += 1;
                    let mut c = c;
                    if c == self.lex.escape {
                        if self.raw_escapes {
                            text.push(c);
                        }
                        match self.peek() {
                            None => continue,
                            Some(escaped)
                                if escaped == '"' || escaped == '$' || escaped == self.lex.escape =>
                            {
                                self.at += 1;
                                c = escaped;
                            }
                            Some(_) => {}
                        }
                    }
                    text.push(c);
                }
            }
        }
    }

    fn dollar(&mut self) -> Result<String, String> {
        self.at += 1;
        if self.peek() != Some('{') {
            let name = self.name();
            if name.is_empty() {
                return Ok("$".to_owned());
            }
            return Ok(match self.look_up(&name) {
                None if self.lex.keep_unset => format!("${name}"),
                value => value.unwrap_or_default(),
            });
        }
        self.at += 1;
        match self.peek() {
            None => return Err("syntax error: missing '}'".to_owned()),
            Some('{' | '}' | ':') => return Err("syntax error: bad substitution".to_owned()),
            Some(_) => {}
        }
        let name = self.name();
        match self.next() {
            Some('}') => Ok(match self.look_up(&name) {
                None if self.lex.keep_unset => format!("${{{name}}}"),
                value => value.unwrap_or_default(),
            }),
            Some(':') => {
                let operator = self.next();
                self.modifier(&name, operator, true)
            }
            operator @ Some('+' | '-' | '?' | '#' | '%') => self.modifier(&name, operator, false),
            Some('/') => self.replace(&name),
            other => Err(unsupported(&shown(other))),
        }
    }

    /// `${name-word}` and its relatives; `operator` is consumed already.
    fn modifier(&mut self, name: &str, operator: Option<char>, or_empty: bool) -> Result<String, String> {
        let trims = matches!(operator, Some('#' | '%'));
        let written = format!("{}{}", if or_empty { ":" } else { "" }, shown(operator));
        if or_empty && trims {
            return Err(unsupported(&written));
        }
        let word = match self.until(Some('}'), trims) {
            Ok((word, _)) => word,
            Err(_) if self.ended() => return Err("syntax error: missing '}'".to_owned()),
            Err(error) => return Err(error),
        };
        let value = self.look_up(name);
        if value.is_none() && self.lex.keep_unset {
            return Ok(format!("${{{name}{written}{word}}}"));
        }
        let usable = value.as_ref().is_some_and(|value| !(or_empty && value.is_empty()));
        match operator {
            Some('-') => Ok(if usable { value.unwrap_or_default() } else { word }),
            Some('+') => Ok(if usable { word } else { String::new() }),
            Some('?') if usable => Ok(value.unwrap_or_default()),
            Some('?') => {
                let reason = if value.is_none() { "unset" } else { "empty" };
                let message = if word.is_empty() { format!("is not allowed to be {reason}") } else { word };
                Err(format!("{name}: {message}"))
            }
            Some(side @ ('#' | '%')) => {
                let value = value.unwrap_or_default();
                let (longest, text) = match word.strip_prefix(side) {
                    Some(rest) => (true, rest),
                    None => (false, word.as_str()),
                };
                let work = &self.lex.work;
                if side == '#' {
                    Pattern::new(text)?.trim_start(&value, longest, work)
                } else {
                    Pattern::reversed(text)?.trim_end(&value, longest, work)
                }
            }
            _ => Err(unsupported(&written)),
        }
    }

    /// `${name/pattern/replacement}`; the first slash is consumed already.
    fn replace(&mut self, name: &str) -> Result<String, String> {
        let all = self.peek() == Some('/');
        self.at += usize::from(all);
        let pattern = match self.until(Some('/'), true) {
            Ok((pattern, _)) => pattern,
            Err(_) if self.ended() => return Err("syntax error: missing '/' in ${}".to_owned()),
            Err(error) => return Err(error),
        };
        let replacement = match self.until(Some('}'), true) {
            Ok((replacement, _)) => replacement,
            Err(_) if self.ended() => return Err("syntax error: missing '}'".to_owned()),
            Err(error) => return Err(error),
        };
        let value = self.look_up(name);
        if value.is_none() && self.lex.keep_unset {
            return Ok(format!("${{{name}/{pattern}/{replacement}}}"));
        }
        let value = value.unwrap_or_default();
        let pattern = Pattern::new(&pattern)?;
        if all {
            pattern.replace_all(&value, &replacement, &self.lex.work)
        } else {
            pattern.replace_first(&value, &replacement, &self.lex.work)
        }
    }

    fn name(&mut self) -> String {
        let mut name = String::new();
        while let Some(c) = self.peek() {
            if name.is_empty() {
                if is_digit(c) {
                    while let Some(digit) = self.peek().filter(|&c| is_digit(c)) {
                        name.push(digit);
                        self.at += 1;
                    }
                    return name;
                }
                if matches!(c, '@' | '*' | '#' | '?' | '-' | '$' | '!' | '0') {
                    self.at += 1;
                    return c.to_string();
                }
            }
            if !(c.is_alphabetic() || is_digit(c) || c == '_') {
                break;
            }
            name.push(c);
            self.at += 1;
        }
        name
    }

    fn look_up(&mut self, name: &str) -> Option<String> {
        let value = self.env.get(name).map(str::to_owned);
        let met = if value.is_some() { &mut self.met.set } else { &mut self.met.unset };
        met.insert(name.to_owned());
        value
    }
}

fn is_digit(c: char) -> bool {
    c.is_ascii_digit() || (c.is_numeric() && !c.is_alphabetic())
}

/// A character as error messages show it; the end of the text is shown as the replacement character.
fn shown(c: Option<char>) -> String {
    c.unwrap_or('\u{fffd}').to_string()
}

fn unsupported(modifier: &str) -> String {
    format!("unsupported modifier ({modifier}) in substitution")
}
