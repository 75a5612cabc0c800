//! Small texts that follow the reference's runtime: quoted strings, suggestions.

/// Quotes text the way Go's `%q` does.
pub(crate) fn quote(text: &str) -> String {
    let mut out = String::from('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            c if (c as u32) < 0x20 || c == '\u{7f}' => out.push_str(&format!("\\x{:02x}", c as u32)),
            c if is_printable(c) => out.push(c),
            c if (c as u32) < 0x1_0000 => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push_str(&format!("\\U{:08x}", c as u32)),
        }
    }
    out.push('"');
    out
}

fn is_printable(c: char) -> bool {
    c == ' '
        || !(c.is_control()
            || c.is_whitespace()
            || matches!(c as u32, 0xfeff | 0x200b..=0x200f | 0xe000..=0xf8ff))
}

/// Finds the option closest to `word`: at least one and fewer than three edits away.
pub(crate) fn suggest<'a>(
    word: &str,
    options: impl IntoIterator<Item = &'a str>,
    case_sensitive: bool,
) -> Option<&'a str> {
    let fold = |text: &str| if case_sensitive { text.to_owned() } else { text.to_lowercase() };
    let word = fold(word);
    let mut best: Option<(usize, &str)> = None;
    for option in options {
        let folded = fold(option);
        if folded == word {
            return None;
        }
        let distance = distance(&word, &folded);
        if distance < 3 && best.is_none_or(|(smallest, _)| distance < smallest) {
            best = Some((distance, option));
        }
    }
    best.map(|(_, option)| option)
}

/// Appends ` (did you mean X?)` if there is a close option.
pub(crate) fn with_suggestion<'a>(
    message: String,
    word: &str,
    options: impl IntoIterator<Item = &'a str>,
    case_sensitive: bool,
) -> String {
    match suggest(word, options, case_sensitive) {
        Some(option) => format!("{message} (did you mean {option}?)"),
        None => message,
    }
}

/// How far apart suggestions may be.
const FAR: usize = 3;

/// Levenshtein distance, [`FAR`] for everything that far apart or farther. Only places near the diagonal count, so the
/// cost is that of the shorter text.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    if a.len().abs_diff(b.len()) >= FAR {
        return FAR;
    }
    // The row's entry `k` is about column `i + k - FAR`.
    const WIDTH: usize = 2 * FAR + 1;
    let mut row = [FAR; WIDTH];
    for (k, cell) in row.iter_mut().enumerate().skip(FAR) {
        *cell = (k - FAR).min(FAR);
    }
    for (i, x) in a.iter().enumerate() {
        let mut next = [FAR; WIDTH];
        for k in 0..WIDTH {
            // Column of the entry, counted from one for the first character of `b`.
            let Some(column) = (i + 1 + k).checked_sub(FAR) else { continue };
            let up = row.get(k + 1).map_or(FAR, |cost| cost + 1);
            next[k] = match column.checked_sub(1) {
                None => (i + 1).min(FAR),
                Some(j) => match b.get(j) {
                    None => continue,
                    Some(y) => {
                        let left = k.checked_sub(1).map_or(FAR, |left| next[left] + 1);
                        (row[k] + usize::from(x != y)).min(up).min(left).min(FAR)
                    }
                },
            };
        }
        if next.iter().all(|&cost| cost >= FAR) {
            return FAR;
        }
        row = next;
    }
    let end = (b.len() + FAR).checked_sub(a.len());
    end.and_then(|k| row.get(k)).copied().unwrap_or(FAR)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The textbook's table.
    fn whole_table(a: &str, b: &str) -> usize {
        let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
        let mut row: Vec<usize> = (0..=b.len()).collect();
        for (i, x) in a.iter().enumerate() {
            let mut diagonal = row[0];
            row[0] = i + 1;
            for (j, y) in b.iter().enumerate() {
                let cost = diagonal + usize::from(x != y);
                diagonal = row[j + 1];
                row[j + 1] = cost.min(row[j] + 1).min(diagonal + 1);
            }
        }
        row[b.len()]
    }

    proptest! {
        #[test]
        fn near_words_are_as_far_apart_as_the_whole_table_says(a in "[ab]{0,7}", b in "[abc]{0,7}") {
            prop_assert_eq!(distance(&a, &b), whole_table(&a, &b).min(FAR));
        }
    }

    #[test]
    fn long_words_are_compared_at_once() {
        let (a, b) = ("a".repeat(2_000_000), "a".repeat(2_000_001));
        assert_eq!(distance(&a, &b), 1);
    }
}
