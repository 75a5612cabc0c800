use crate::error::{Error, Result};
use crate::parser::lines::node;
use crate::parser::{Args, Pair};
use crate::text::quote;

/// Reads the arguments of `keyword` in the form that it takes.
pub(super) fn parse(keyword: &str, rest: &str, escape: char, in_trigger: bool) -> Result<Args> {
    Ok(match keyword.to_lowercase().as_str() {
        "run" | "cmd" | "entrypoint" | "shell" => json_or(rest, whole)?,
        "copy" | "add" | "volume" => json_or(rest, on_whitespace)?,
        "from" | "expose" => Args::Words(on_whitespace(rest)),
        "user" | "workdir" | "stopsignal" | "maintainer" => Args::Words(whole(rest)),
        "env" => Args::Pairs(pairs(rest, "ENV", escape)?),
        "label" => Args::Pairs(pairs(rest, "LABEL", escape)?),
        "arg" => Args::Pairs(words(rest, escape).iter().map(|word| named(word)).collect()),
        "healthcheck" => match rest.find(char::is_whitespace) {
            Some(at) => {
                Args::Typed(rest[..at].to_owned(), Box::new(json_or(rest[at..].trim_start(), whole)?))
            }
            None => Args::Typed(rest.to_owned(), Box::new(Args::Words(Vec::new()))),
        },
        // A trigger in a trigger is refused later, whatever it holds; so it is not read, however deep it goes.
        "onbuild" if rest.is_empty() || in_trigger => Args::Trigger(None),
        "onbuild" => Args::Trigger(Some(Box::new(node(rest, escape, true)?))),
        _ => Args::Words(Vec::new()),
    })
}

fn whole(rest: &str) -> Vec<String> {
    if rest.is_empty() { Vec::new() } else { vec![rest.to_owned()] }
}

fn on_whitespace(rest: &str) -> Vec<String> {
    rest.split(['\t', '\u{b}', '\u{c}', '\r', ' '])
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect()
}

fn json_or(rest: &str, other: fn(&str) -> Vec<String>) -> Result<Args> {
    let text = rest.trim_start();
    if !text.starts_with('[') {
        return Ok(Args::Words(other(rest)));
    }
    match serde_json::from_str::<Vec<serde_json::Value>>(text) {
        Err(_) => Ok(Args::Words(other(rest))),
        Ok(items) => {
            let strings: Option<Vec<String>> =
                items.iter().map(|item| item.as_str().map(str::to_owned)).collect();
            let only_strings = "when using JSON array syntax, arrays must be comprised of strings only";
            Ok(Args::Json(strings.ok_or_else(|| Error::new(only_strings))?))
        }
    }
}

fn named(word: &str) -> Pair {
    match word.split_once('=') {
        Some((name, value)) => {
            Pair { name: name.to_owned(), value: Some(value.to_owned()), has_delimiter: true }
        }
        None => Pair { name: word.to_owned(), value: None, has_delimiter: false },
    }
}

fn pairs(rest: &str, keyword: &str, escape: char) -> Result<Vec<Pair>> {
    let words = words(rest, escape);
    let Some(first) = words.first() else { return Ok(Vec::new()) };
    if !first.contains('=') {
        // The old form: one name, and all the rest as its value.
        let is_blank = |c: char| matches!(c, '\t' | '\u{b}' | '\u{c}' | '\r' | ' ');
        let (name, value) = rest
            .split_once(is_blank)
            .ok_or_else(|| Error::new(format!("{keyword} must have two arguments")))?;
        let value = value.trim_start_matches(is_blank).to_owned();
        return Ok(vec![Pair { name: name.to_owned(), value: Some(value), has_delimiter: false }]);
    }
    words
        .iter()
        .map(|word| match word.contains('=') {
            true => Ok(named(word)),
            false => Err(Error::new(format!(
                "Syntax error - can't find = in {}. Must be of the form: name=value",
                quote(word)
            ))),
        })
        .collect()
}

/// Splits on space outside quotes; quotes and escapes stay in the words.
pub(super) fn words(rest: &str, escape: char) -> Vec<String> {
    let mut words = Vec::new();
    let mut chars = rest.chars().peekable();
    'words: loop {
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        if chars.peek().is_none() {
            return words;
        }
        let (mut word, mut quote) = (String::new(), None);
        while let Some(c) = chars.next() {
            match quote {
                None if c.is_whitespace() => {
                    words.push(word);
                    continue 'words;
                }
                None if c == '\'' || c == '"' => quote = Some(c),
                Some(open) if c == open => quote = None,
                _ => {}
            }
            if c == escape && quote != Some('\'') {
                // At the very end an escape is dropped.
                let Some(next) = chars.next() else { break };
                word.push(c);
                word.push(next);
            } else {
                word.push(c);
            }
        }
        if !word.is_empty() {
            words.push(word);
        }
        return words;
    }
}
