use crate::shell::Work;

/// A pattern of `${name#pattern}` and its relatives: `*`, `?` and plain text.
pub(super) struct Pattern {
    tokens: Vec<Token>,
}

enum Token {
    Char(char),
    One,
    Run,
}

impl Pattern {
    pub(super) fn new(pattern: &str) -> Result<Self, String> {
        let invalid = |c: Option<char>| {
            let c = c.unwrap_or('\u{fffd}');
            format!("invalid pattern ({pattern}) in substitution: invalid escape '\\{c}'")
        };
        let mut tokens = Vec::new();
        let mut chars = pattern.chars().peekable();
        while let Some(c) = chars.next() {
            tokens.push(match c {
                '*' => Token::Run,
                '?' => Token::One,
                '\\' => match chars.peek() {
                    // Inside `${…}` these have to be escaped; the escape is no part of the pattern.
                    Some('}' | '/') => continue,
                    _ => match chars.next() {
                        Some(c @ ('*' | '?' | '\\')) => Token::Char(c),
                        other => return Err(invalid(other)),
                    },
                },
                c => Token::Char(c),
            });
        }
        Ok(Self { tokens })
    }

    /// The pattern for text read backwards. An escape stays in front of what it escapes.
    pub(super) fn reversed(pattern: &str) -> Result<Self, String> {
        let mut units: Vec<String> = Vec::new();
        let mut chars = pattern.chars();
        while let Some(c) = chars.next() {
            let mut unit = c.to_string();
            if c == '\\' {
                unit.extend(chars.next());
            }
            units.push(unit);
        }
        units.reverse();
        Self::new(&units.concat())
    }

    pub(super) fn trim_start(&self, value: &str, longest: bool, work: &Work) -> Result<String, String> {
        let chars: Vec<char> = value.chars().collect();
        let end = self.end(&chars, longest, work)?.unwrap_or(0);
        Ok(chars.into_iter().skip(end).collect())
    }

    pub(super) fn trim_end(&self, value: &str, longest: bool, work: &Work) -> Result<String, String> {
        let backwards: String = value.chars().rev().collect();
        Ok(self.trim_start(&backwards, longest, work)?.chars().rev().collect())
    }

    pub(super) fn replace_first(
        &self,
        value: &str,
        replacement: &str,
        work: &Work,
    ) -> Result<String, String> {
        let chars: Vec<char> = value.chars().collect();
        let Some((start, end)) = self.find(&chars, 0, work)? else { return Ok(value.to_owned()) };
        let mut out: String = chars.iter().take(start).collect();
        out.push_str(replacement);
        out.extend(chars.iter().skip(end));
        Ok(out)
    }

    /// Replaces every match; in the replacement `$0` stands for the match, other `$name` for nothing.
    pub(super) fn replace_all(&self, value: &str, replacement: &str, work: &Work) -> Result<String, String> {
        let chars: Vec<char> = value.chars().collect();
        let (mut out, mut copied, mut from) = (String::new(), 0, 0);
        while from <= chars.len() {
            let Some((start, end)) = self.find(&chars, from, work)? else { break };
            out.extend(&chars[copied..start]);
            // An empty match right after the last one is not a match of its own.
            if end > copied || start == 0 {
                let found: String = chars[start..end].iter().collect();
                let filled = fill(replacement, &found, work)?;
                out.push_str(&filled);
            }
            copied = end;
            from = end.max(from + 1);
        }
        out.extend(&chars[copied..]);
        Ok(out)
    }

    /// The leftmost match from `from` on, and of those that start there the longest.
    ///
    /// One pass: each position of the pattern knows the earliest start that leads to it.
    fn find(&self, text: &[char], from: usize, work: &Work) -> Result<Option<(usize, usize)>, String> {
        let last = self.tokens.len();
        let mut open: Vec<Option<usize>> = vec![None; last + 1];
        let mut next = open.clone();
        let mut best: Option<(usize, usize)> = None;
        for at in from..=text.len() {
            if best.is_none() && open[0].is_none() {
                open[0] = Some(at);
            }
            for (i, token) in self.tokens.iter().enumerate() {
                if matches!(token, Token::Run) {
                    open[i + 1] = earlier(open[i + 1], open[i]);
                }
            }
            if let Some(start) = open[last]
                && best.is_none_or(|(known, _)| start <= known)
            {
                best = Some((start, at));
            }
            if let Some((known, _)) = best {
                open.iter_mut().for_each(|start| *start = start.filter(|&start| start <= known));
                if open.iter().take(last).all(Option::is_none) {
                    break;
                }
            }
            let Some(&c) = text.get(at) else { break };
            work.spend(open.len())?;
            next.fill(None);
            for (i, token) in self.tokens.iter().enumerate() {
                let to = match token {
                    Token::Char(want) if *want == c => i + 1,
                    Token::One if c != '\n' => i + 1,
                    Token::Run if c != '\n' => i,
                    _ => continue,
                };
                next[to] = earlier(next[to], open[i]);
            }
            std::mem::swap(&mut open, &mut next);
        }
        Ok(best)
    }

    /// Where a match at the very start can end, at the latest or the earliest.
    fn end(&self, text: &[char], longest: bool, work: &Work) -> Result<Option<usize>, String> {
        let mut reachable = vec![false; self.tokens.len() + 1];
        reachable[0] = true;
        self.skip_runs(&mut reachable);
        let mut best = reachable[self.tokens.len()].then_some(0);
        for (at, &c) in text.iter().enumerate() {
            if best.is_some() && !longest {
                break;
            }
            work.spend(reachable.len())?;
            let mut next = vec![false; reachable.len()];
            for (i, token) in self.tokens.iter().enumerate().filter(|&(i, _)| reachable[i]) {
                match token {
                    Token::Char(want) => next[i + 1] |= *want == c,
                    Token::One => next[i + 1] |= c != '\n',
                    Token::Run => next[i] |= c != '\n',
                }
            }
            self.skip_runs(&mut next);
            if !next.contains(&true) {
                break;
            }
            reachable = next;
            if reachable[self.tokens.len()] {
                best = Some(at + 1);
            }
        }
        Ok(best)
    }

    fn skip_runs(&self, reachable: &mut [bool]) {
        for (i, token) in self.tokens.iter().enumerate() {
            if reachable[i] && matches!(token, Token::Run) {
                reachable[i + 1] = true;
            }
        }
    }
}

/// The earlier of two starts, where there is one.
fn earlier(a: Option<usize>, b: Option<usize>) -> Option<usize> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// Fills in a replacement template.
fn fill(template: &str, found: &str, work: &Work) -> Result<String, String> {
    work.spend(template.len() + 1)?;
    let mut out = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        if let Some(after) = after.strip_prefix('$') {
            out.push('$');
            rest = after;
            continue;
        }
        let (name, after_name) = match after.strip_prefix('{') {
            Some(braced) => braced.split_once('}').unwrap_or(("", after)),
            None => {
                let end = after.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(after.len());
                after.split_at(end)
            }
        };
        if name.is_empty() {
            out.push('$');
            rest = after;
            continue;
        }
        if name == "0" {
            work.spend(found.len())?;
            out.push_str(found);
        }
        rest = after_name;
    }
    out.push_str(rest);
    Ok(out)
}
