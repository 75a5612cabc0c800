//! Addresses as people may see them.

/// What stands for a password.
const HIDDEN: &str = "xxxxx";

/// An address without its password. What is no address is returned as it is.
#[must_use]
pub fn redacted(address: &str) -> String {
    let Some((scheme, rest)) = address.split_once("://") else { return address.to_owned() };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at_checked(end).unwrap_or((rest, ""));
    match authority.rsplit_once('@').and_then(|(user, host)| Some((user.split_once(':')?.0, host))) {
        Some((user, host)) => format!("{scheme}://{user}:{HIDDEN}@{host}{tail}"),
        None => address.to_owned(),
    }
}

/// A text in which no address has a password any more.
pub(crate) fn redacted_text(text: &str) -> String {
    text.split_inclusive(char::is_whitespace)
        .map(|word| match word.find("://") {
            Some(at) => {
                let start = word.get(..at).unwrap_or_default();
                let start = start.rfind(|c: char| !c.is_ascii_alphanumeric()).map_or(0, |at| at + 1);
                let (before, address) = word.split_at_checked(start).unwrap_or(("", word));
                format!("{before}{}", redacted(address))
            }
            None => word.to_owned(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_hidden() {
        for (text, want) in [
            ("https://h/a", "https://h/a"),
            ("https://u@h/a", "https://u@h/a"),
            ("https://u:p@h/a#x:y@z", "https://u:xxxxx@h/a#x:y@z"),
            ("https://u:p@ss@h", "https://u:xxxxx@h"),
            ("git@h:a/b", "git@h:a/b"),
            ("https://h/a:b@c", "https://h/a:b@c"),
        ] {
            assert_eq!(redacted(text), want);
        }
        assert_eq!(
            redacted_text("fatal: unable to access 'https://u:p@h/a.git/': no\n"),
            "fatal: unable to access 'https://u:xxxxx@h/a.git/': no\n"
        );
    }
}
