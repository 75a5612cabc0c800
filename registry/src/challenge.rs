//! `WWW-Authenticate`: what a registry wants to see before it answers.

use std::collections::BTreeMap;

use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum AuthScheme {
    Bearer,
    Basic,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Challenge {
    pub(crate) scheme: AuthScheme,
    pub(crate) parameters: BTreeMap<String, String>,
}

impl Challenge {
    pub(crate) fn parameter(&self, name: &str) -> &str {
        self.parameters.get(name).map_or("", String::as_str)
    }
}

/// A longer header is ignored.
const MAX_HEADER: usize = 16 << 10;
const MAX_PARAMETERS: usize = 64;

/// Returns the challenges that are understood, the safer first.
pub(crate) fn parse(headers: &HeaderMap) -> Vec<Challenge> {
    let mut challenges: Vec<Challenge> = headers
        .get_all(WWW_AUTHENTICATE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .filter(|value| value.len() <= MAX_HEADER)
        .filter_map(parse_value)
        .collect();
    challenges.sort_by_key(|challenge| challenge.scheme);
    challenges
}

/// Parses `Scheme name="value", name=value`. One challenge per header line, as registries send them.
fn parse_value(value: &str) -> Option<Challenge> {
    let (scheme, rest) = value.trim().split_once(' ').unwrap_or((value.trim(), ""));
    let scheme = match scheme.to_ascii_lowercase().as_str() {
        "bearer" => AuthScheme::Bearer,
        "basic" => AuthScheme::Basic,
        _ => return None,
    };
    Some(Challenge { scheme, parameters: parse_parameters(rest) })
}

fn parse_parameters(mut rest: &str) -> BTreeMap<String, String> {
    let mut parameters = BTreeMap::new();
    while parameters.len() < MAX_PARAMETERS {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let Some((name, after)) = rest.split_once('=') else {
            break;
        };
        let name = name.trim().to_ascii_lowercase();
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-') {
            break;
        }
        let after = after.trim_start_matches([' ', '\t']);
        let value;
        (value, rest) = match after.strip_prefix('"') {
            Some(quoted) => unquote(quoted),
            None => {
                let end = after.find([',', ' ', '\t']).unwrap_or(after.len());
                let (value, rest) = after.split_at(end);
                (value.to_owned(), rest)
            }
        };
        parameters.entry(name).or_insert(value);
    }
    parameters
}

/// Reads up to the closing quote; a backslash takes the next character as it is.
fn unquote(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, text.get(at + 1..).unwrap_or("")),
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use reqwest::header::HeaderValue;

    #[track_caller]
    fn check(lines: &[&str], want: &str) {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(WWW_AUTHENTICATE, HeaderValue::from_str(line).unwrap());
        }
        let got: Vec<String> =
            parse(&headers).iter().map(|c| format!("{:?} {:?}", c.scheme, c.parameters)).collect();
        assert_eq!(got.join("; "), want);
    }

    #[test]
    fn challenges_are_read_as_registries_send_them() {
        check(
            &[r#"Bearer realm="https://a.x/token",service="r.x",scope="repository:a/b:pull,push""#],
            r#"Bearer {"realm": "https://a.x/token", "scope": "repository:a/b:pull,push", "service": "r.x"}"#,
        );
        check(
            &[r#"bearer  realm=x , service = "a\"b,c" ,error=insufficient_scope"#],
            r#"Bearer {"error": "insufficient_scope", "realm": "x", "service": "a\"b,c"}"#,
        );
        check(
            &[r#"Basic realm="a""#, r#"Negotiate"#, r#"Bearer realm="b""#],
            r#"Bearer {"realm": "b"}; Basic {"realm": "a"}"#,
        );
        check(&["Basic"], "Basic {}");
    }

    #[test]
    fn broken_challenges_end_where_they_break() {
        check(&[r#"Bearer realm="never closed"#], r#"Bearer {"realm": "never closed"}"#);
        check(&["Bearer ==,="], "Bearer {}");
        check(&["", "Digest a=b"], "");
    }
}
