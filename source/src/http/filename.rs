//! What a downloaded file is called.

use percent_encoding::percent_decode_str;
use reqwest::Url;

/// The name when there is no other.
const FALLBACK: &str = "download";
/// The longest name that filesystems take, in bytes.
const MAX: usize = 255;

/// The name of a file: the one that was asked for, else what the server calls it, else the end of its address.
pub(crate) fn filename(asked: &str, disposition: Option<&str>, url: &Url) -> String {
    let last = url.path().trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    let last = percent_decode_str(last).decode_utf8().unwrap_or_default();
    safe(asked)
        .or_else(|| safe(&disposition.and_then(of_disposition)?))
        .or_else(|| safe(&last))
        .unwrap_or_else(|| FALLBACK.to_owned())
}

/// The last component of a path, if a file can have that name.
fn safe(path: &str) -> Option<String> {
    let name = path.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    let good = !matches!(name, "" | "." | "..") && name.len() <= MAX && !name.chars().any(char::is_control);
    good.then(|| name.to_owned())
}

/// The `filename` of a `Content-Disposition` header; the extended form counts more.
fn of_disposition(header: &str) -> Option<String> {
    let (mut plain, mut extended) = (None, None);
    let mut rest = header.split_once(';')?.1;
    while !rest.trim().is_empty() {
        let (key, after) = rest.split_once('=')?;
        let (value, after) = value(after.trim_start())?;
        match key.trim().to_ascii_lowercase().as_str() {
            "filename" => plain = Some(value),
            "filename*" => {
                let encoded = value.to_ascii_lowercase().starts_with("utf-8'");
                let text = value.splitn(3, '\'').nth(2).filter(|_| encoded);
                extended =
                    text.and_then(|text| Some(percent_decode_str(text).decode_utf8().ok()?.into_owned()));
            }
            _ => {}
        }
        rest = after.trim_start().strip_prefix(';').unwrap_or_default();
    }
    extended.or(plain)
}

/// A token or quoted text, and what follows it.
fn value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(';').unwrap_or(text.len());
        let (token, rest) = text.split_at_checked(end)?;
        return Some((token.trim().to_owned(), rest));
    };
    let mut out = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((out, quoted.get(at + 1..)?)),
            '\\' => out.push(chars.next()?.1),
            c => out.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_safe() {
        for (asked, disposition, url, want) in [
            ("", None, "http://h/dir/b.bin?q=1", "b.bin"),
            ("context", Some(r#"attachment; filename="x""#), "http://h/b", "context"),
            ("", Some(r#"attachment; filename="named.txt""#), "http://h/b", "named.txt"),
            ("", Some("attachment; filename=plain.txt; size=3"), "http://h/b", "plain.txt"),
            ("", Some(r#"attachment; filename="a\"b""#), "http://h/b", "a\"b"),
            ("", Some("attachment; filename=x; filename*=UTF-8''%e2%82%ac.txt"), "http://h/b", "€.txt"),
            ("", Some(r#"attachment; filename="../../etc/passwd""#), "http://h/b", "passwd"),
            ("", Some(r#"attachment; filename="..""#), "http://h/b", "b"),
            ("", Some("attachment; filename=\"a\nb\""), "http://h/b", "b"),
            ("", Some(r#"attachment; filename="open"#), "http://h/b", "b"),
            ("", None, "http://h", "download"),
            ("", None, "http://h/", "download"),
            ("", None, "http://h/a%20b", "a b"),
            ("", None, "http://h/a%2fb", "b"),
            ("../x/", None, "http://h/b", "x"),
            ("..", None, "http://h/%2e%2e", "download"),
        ] {
            let url = Url::parse(url).unwrap();
            assert_eq!(filename(asked, disposition, &url), want, "{asked} {disposition:?} {url}");
        }
    }
}
