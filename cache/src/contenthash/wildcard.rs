//! Shell patterns over whole paths, as a selector's path may hold them.

/// The pattern is malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// Whether the whole of `name` matches. `*` and `?` stop at `/`, classes do not span it, `\` takes the next character.
///
/// Only the last `*` seen is ever tried again, so the cost is at most the product of both lengths.
pub(super) fn path_match(pattern: &str, name: &str) -> Result<bool, Malformed> {
    let pattern: Vec<char> = pattern.chars().collect();
    let name: Vec<char> = name.chars().collect();
    check(&pattern)?;
    let (mut p, mut n) = (0, 0);
    // Where to go on when what follows the last `*` does not fit: pattern after it, and how far it reached.
    let mut retry: Option<(usize, usize)> = None;
    loop {
        if pattern.get(p) == Some(&'*') {
            p += 1;
            retry = Some((p, n));
            continue;
        }
        let fits = match (pattern.get(p), name.get(n)) {
            (None, None) => return Ok(true),
            (Some(_), Some(&c)) => one(&pattern, p, c)?,
            _ => None,
        };
        if let Some(next) = fits {
            p = next;
            n += 1;
            continue;
        }
        match retry {
            Some((after, reached)) if name.get(reached).is_some_and(|&c| c != '/') => {
                retry = Some((after, reached + 1));
                p = after;
                n = reached + 1;
            }
            _ => return Ok(false),
        }
    }
}

/// Whether one element of the pattern takes `c`, and where the next one begins.
fn one(pattern: &[char], at: usize, c: char) -> Result<Option<usize>, Malformed> {
    Ok(match pattern.get(at) {
        Some('?') => (c != '/').then_some(at + 1),
        Some('\\') => (pattern.get(at + 1) == Some(&c)).then_some(at + 2),
        Some('[') => {
            let (within, next) = class(pattern, at + 1, c)?;
            within.then_some(next)
        }
        Some(&literal) => (literal == c).then_some(at + 1),
        None => None,
    })
}

/// Reads a class that opened before `at`: whether it has `c`, and what follows it.
fn class(pattern: &[char], mut at: usize, c: char) -> Result<(bool, usize), Malformed> {
    let negated = pattern.get(at) == Some(&'^');
    if negated {
        at += 1;
    }
    let (mut within, mut ranges) = (false, 0);
    while ranges == 0 || pattern.get(at) != Some(&']') {
        let (low, next) = class_char(pattern, at)?;
        at = next;
        let mut high = low;
        if pattern.get(at) == Some(&'-') {
            (high, at) = class_char(pattern, at + 1)?;
        }
        within |= (low..=high).contains(&c);
        ranges += 1;
    }
    Ok((within != negated, at + 1))
}

fn class_char(pattern: &[char], at: usize) -> Result<(char, usize), Malformed> {
    match pattern.get(at) {
        None | Some('-' | ']') => Err(Malformed),
        Some('\\') => pattern.get(at + 1).map(|&c| (c, at + 2)).ok_or(Malformed),
        Some(&c) => Ok((c, at + 1)),
    }
}

fn check(pattern: &[char]) -> Result<(), Malformed> {
    let mut at = 0;
    while let Some(&c) = pattern.get(at) {
        at += 1;
        match c {
            '\\' => {
                pattern.get(at).ok_or(Malformed)?;
                at += 1;
            }
            '[' => at = class(pattern, at, ' ')?.1,
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(pattern: &str, name: &str, want: Result<bool, Malformed>) {
        assert_eq!(path_match(pattern, name), want, "{pattern} {name}");
    }

    #[test]
    fn wildcards_stay_inside_a_component() {
        check("/a*", "/abc", Ok(true));
        check("/a*", "/a/b", Ok(false));
        check("/*/x", "/dir/x", Ok(true));
        check("/*/x", "/dir/sub/x", Ok(false));
        check("/a*b*c", "/aXbYbZc", Ok(true));
        check("/a*b*c", "/aXbY/c", Ok(false));
        check("/**", "/abc", Ok(true));
        check("/?", "/é", Ok(true));
        check("/[[]x]", "/[x]", Ok(true));
        check("/[^a-c]", "/d", Ok(true));
        check("/[a-c]", "/d", Ok(false));
        check(r"/\*", "/*", Ok(true));
        check("/[", "/x", Err(Malformed));
        check("/[]a]", "/x", Err(Malformed));
        check("/a\\", "/a", Err(Malformed));
        check("/a*", "/a", Ok(true));
        check("/a", "/ab", Ok(false));
    }
}
