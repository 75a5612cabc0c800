use crate::error::{Error, Result};

/// One pattern without its negation, ready to be matched against whole paths.
#[derive(Clone, Debug)]
pub(crate) enum Glob {
    /// No wildcard: equal text.
    Exact(String),
    /// A single trailing `**` after plain text: everything that starts with the text.
    Prefix(String),
    /// A single leading `**` before plain text: everything that ends with the text.
    Suffix(String),
    /// Anything else.
    Tokens(Vec<Token>),
}

#[derive(Clone, Debug)]
pub(crate) enum Token {
    Char(char),
    /// `?`: one character that is no separator.
    One,
    /// `*`: any run without a separator.
    Run,
    /// `**` before more text: nothing, or anything that ends in a separator.
    Dirs,
    /// `**` at the end: anything.
    Rest,
    Class {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
}

impl Glob {
    /// Compiles a cleaned pattern.
    pub(crate) fn new(pattern: &str) -> Result<Self> {
        let syntax = || Error::Syntax { pattern: pattern.to_owned() };
        check_syntax(pattern).ok_or_else(syntax)?;
        let chars: Vec<char> = pattern.chars().collect();
        let (mut tokens, mut at) = (Vec::new(), 0);
        let (mut wild, mut prefix, mut suffix) = (false, false, false);
        while let Some(&c) = chars.get(at) {
            at += 1;
            match c {
                '*' if chars.get(at) == Some(&'*') => {
                    let first = at == 1;
                    at += 1;
                    if chars.get(at) == Some(&'/') {
                        at += 1;
                    }
                    if at < chars.len() {
                        tokens.push(Token::Dirs);
                        // A leading `**` compares the end of the text while nothing else in the pattern is special.
                        (suffix, wild) = if first { (true, false) } else { (suffix, true) };
                    } else if first {
                        suffix = true;
                    } else if !wild && !suffix {
                        prefix = true;
                    } else {
                        tokens.push(Token::Rest);
                        wild = true;
                    }
                }
                '*' => {
                    tokens.push(Token::Run);
                    wild = true;
                }
                '?' => {
                    tokens.push(Token::One);
                    wild = true;
                }
                '\\' => {
                    tokens.push(Token::Char(*chars.get(at).ok_or_else(syntax)?));
                    at += 1;
                    wild = true;
                }
                '[' => {
                    let (class, next) = class(&chars, at).ok_or_else(syntax)?;
                    tokens.push(class);
                    at = next;
                    wild = true;
                }
                c => tokens.push(Token::Char(c)),
            }
        }
        Ok(if wild {
            Self::Tokens(tokens)
        } else if prefix {
            Self::Prefix(pattern.trim_end_matches('/').trim_end_matches("**").to_owned())
        } else if suffix {
            Self::Suffix(pattern.strip_prefix("**").unwrap_or(pattern).to_owned())
        } else {
            Self::Exact(pattern.to_owned())
        })
    }

    /// Whether the whole of `path` matches.
    pub(crate) fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(text) => path == text,
            Self::Prefix(text) => path.starts_with(text),
            Self::Suffix(text) => {
                path.ends_with(text) || text.strip_prefix('/').is_some_and(|name| path == name)
            }
            Self::Tokens(tokens) => run(tokens, path).last().copied().unwrap_or(false),
        }
    }

    /// Whether some path that starts with `dir/` could match; `dir` itself is not asked about.
    pub(crate) fn may_match_below(&self, dir: &str) -> bool {
        let below = format!("{dir}/");
        match self {
            Self::Exact(text) => text.len() > below.len() && text.starts_with(&below),
            Self::Prefix(text) => text.starts_with(&below) || below.starts_with(text),
            Self::Suffix(_) => true,
            // A state that is not the end still waits for text, and every kind of token accepts some.
            Self::Tokens(tokens) => run(tokens, &below).iter().take(tokens.len()).any(|&alive| alive),
        }
    }
}

/// Feeds `text` to the pattern and returns which token positions can come next; the last entry is acceptance.
///
/// All positions advance together, so the cost is `tokens × text` whatever the pattern looks like.
fn run(tokens: &[Token], text: &str) -> Vec<bool> {
    let mut now = vec![false; tokens.len() + 1];
    now[0] = true;
    skip_optional(tokens, &mut now);
    let mut next = vec![false; now.len()];
    // `Dirs` at position i is "inside" (has eaten text that does not yet end in a separator) or not started.
    let mut inside = vec![false; tokens.len()];
    for c in text.chars() {
        next.fill(false);
        for (i, token) in tokens.iter().enumerate() {
            match token {
                Token::Dirs => {
                    if (now[i] || inside[i]) && c != '\n' {
                        inside[i] = true;
                        next[i + 1] |= c == '/';
                    } else {
                        inside[i] = false;
                    }
                }
                _ if !now[i] => {}
                Token::Char(want) => next[i + 1] |= c == *want,
                Token::One => next[i + 1] |= c != '/',
                Token::Run => next[i] |= c != '/',
                Token::Rest => next[i] |= c != '\n',
                Token::Class { negated, ranges } => {
                    next[i + 1] |= ranges.iter().any(|&(low, high)| (low..=high).contains(&c)) != *negated;
                }
            }
        }
        skip_optional(tokens, &mut next);
        std::mem::swap(&mut now, &mut next);
    }
    // Text eaten by `Dirs` keeps that position waiting for a separator.
    for (i, &eating) in inside.iter().enumerate() {
        now[i] |= eating;
    }
    now
}

/// Spreads reachability over tokens that may match nothing.
fn skip_optional(tokens: &[Token], reachable: &mut [bool]) {
    for (i, token) in tokens.iter().enumerate() {
        if reachable[i] && matches!(token, Token::Run | Token::Dirs | Token::Rest) {
            reachable[i + 1] = true;
        }
    }
}

/// Reads a bracket expression that opened just before `at`; returns it and the position after its `]`.
fn class(chars: &[char], mut at: usize) -> Option<(Token, usize)> {
    let negated = chars.get(at) == Some(&'^');
    if negated {
        at += 1;
    }
    let mut ranges = Vec::new();
    while *chars.get(at)? != ']' {
        let (low, next) = class_char(chars, at)?;
        at = next;
        let mut high = low;
        if chars.get(at) == Some(&'-') {
            (high, at) = class_char(chars, at + 1)?;
            if high < low {
                return None;
            }
        }
        ranges.push((low, high));
    }
    (!ranges.is_empty()).then_some((Token::Class { negated, ranges }, at + 1))
}

fn class_char(chars: &[char], at: usize) -> Option<(char, usize)> {
    match *chars.get(at)? {
        '-' | ']' => None,
        '\\' => Some((*chars.get(at + 1)?, at + 2)),
        c => Some((c, at + 1)),
    }
}

/// Checks brackets and escapes the way the reference's path match does.
fn check_syntax(pattern: &str) -> Option<()> {
    let chars: Vec<char> = pattern.chars().collect();
    let mut at = 0;
    while let Some(&c) = chars.get(at) {
        at += 1;
        match c {
            '[' => at = class(&chars, at)?.1,
            '\\' => {
                chars.get(at)?;
                at += 1;
            }
            _ => {}
        }
    }
    Some(())
}
