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

    pub(super) fn trim_start(&self, value: &str, longest: bool) -> Result<String, String> {
        let chars: Vec<char> = value.chars().collect();
        let end = self.end(&chars, 0, longest).unwrap_or(0);
        Ok(chars.into_iter().skip(end).collect())
    }

    pub(super) fn trim_end(&self, value: &str, longest: bool) -> Result<String, String> {
        let backwards: String = value.chars().rev().collect();
        Ok(self.trim_start(&backwards, longest)?.chars().rev().collect())
    }

    pub(super) fn replace_first(&self, value: &str, replacement: &str) -> String {
        let chars: Vec<char> = value.chars().collect();
        match self.find(&chars, 0) {
            None => value.to_owned(),
            Some((start, end)) => chars
                .iter()
                .take(start)
                .chain(&replacement.chars().collect::<Vec<_>>())
                .chain(&chars[end..])
                .collect(),
        }
    }

    /// Replaces every match; in the replacement `$0` stands for the match, other `$name` for nothing.
    pub(super) fn replace_all(&self, value: &str, replacement: &str) -> String {
        let chars: Vec<char> = value.chars().collect();
        let (mut out, mut copied, mut from) = (String::new(), 0, 0);
        while from <= chars.len() {
            let Some((start, end)) = self.find(&chars, from) else { break };
            out.extend(&chars[copied..start]);
            // An empty match right after the last one is not a match of its own.
            if end > copied || start == 0 {
                let found: String = chars[start..end].iter().collect();
                out.push_str(&fill(replacement, &found));
            }
            copied = end;
            from = end.max(from + 1);
        }
        out.extend(&chars[copied..]);
        out
    }

    fn find(&self, text: &[char], from: usize) -> Option<(usize, usize)> {
        (from..=text.len()).find_map(|start| Some((start, self.end(text, start, true)?)))
    }

    /// Where a match that starts at `start` can end, at the latest or the earliest.
    fn end(&self, text: &[char], start: usize, longest: bool) -> Option<usize> {
        let mut reachable = vec![false; self.tokens.len() + 1];
        reachable[0] = true;
        self.skip_runs(&mut reachable);
        let mut best = reachable[self.tokens.len()].then_some(start);
        for (at, &c) in text.iter().enumerate().skip(start) {
            if best.is_some() && !longest {
                break;
            }
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
        best
    }

    fn skip_runs(&self, reachable: &mut [bool]) {
        for (i, token) in self.tokens.iter().enumerate() {
            if reachable[i] && matches!(token, Token::Run) {
                reachable[i + 1] = true;
            }
        }
    }
}

/// Fills in a replacement template.
fn fill(template: &str, found: &str) -> String {
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
            out.push_str(found);
        }
        rest = after_name;
    }
    out.push_str(rest);
    out
}
