/// Takes leading words that start with `--` off an argument text; returns them, unquoted, and the rest.
///
/// The words are read byte by byte, each byte as a character of its own, which is what the reference does.
pub(super) fn take(text: &str, escape: char) -> (Vec<String>, &str) {
    let bytes = text.as_bytes();
    let is_space = |b: u8| char::from(b).is_whitespace();
    let mut flags = Vec::new();
    let mut at = 0;
    loop {
        while bytes.get(at).is_some_and(|&b| is_space(b)) {
            at += 1;
        }
        if !bytes[at..].starts_with(b"--") {
            return (flags, text.get(at..).unwrap_or_default());
        }
        let (mut word, mut quote, mut quoted) = (String::new(), None, false);
        while let Some(&b) = bytes.get(at) {
            let c = char::from(b);
            match quote {
                None if is_space(b) => break,
                None if c == '\'' || c == '"' => {
                    quote = Some(c);
                    quoted = true;
                }
                Some(open) if c == open => quote = None,
                _ if c == escape => {
                    at += 1;
                    match bytes.get(at) {
                        Some(&b) => word.push(char::from(b)),
                        None => break,
                    }
                }
                _ => word.push(c),
            }
            at += 1;
        }
        if word == "--" {
            return (flags, text.get(at..).unwrap_or_default());
        }
        if quoted || !word.is_empty() {
            flags.push(word);
        }
        if at >= bytes.len() {
            return (flags, "");
        }
    }
}
