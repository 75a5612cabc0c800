//! Lists against a matcher that is slow and plain enough to be believed.

use kiln_patterns::Patterns;
use proptest::prelude::*;

/// Whether the components of a path match those of a pattern, trying everything.
fn matches(pattern: &[&str], path: &[&str]) -> bool {
    match (pattern, path) {
        ([], path) => path.is_empty(),
        // At the end, `**` is everything below.
        (["**"], path) => !path.is_empty(),
        (["**", rest @ ..], path) => (0..=path.len()).any(|skipped| matches(rest, &path[skipped..])),
        ([_, ..], []) => false,
        ([first, rest @ ..], [name, below @ ..]) => {
            let (first, name): (Vec<char>, Vec<char>) = (first.chars().collect(), name.chars().collect());
            component(&first, &name) && matches(rest, below)
        }
    }
}

fn component(pattern: &[char], name: &[char]) -> bool {
    match (pattern, name) {
        ([], name) => name.is_empty(),
        (['*', rest @ ..], name) => (0..=name.len()).any(|eaten| component(rest, &name[eaten..])),
        (['?', rest @ ..], [_, more @ ..]) => component(rest, more),
        (['[', '^', c, ']', rest @ ..], [name, more @ ..]) => c != name && component(rest, more),
        (['[', low, '-', high, ']', rest @ ..], [name, more @ ..]) => {
            (low..=high).contains(&name) && component(rest, more)
        }
        ([c, rest @ ..], [name, more @ ..]) => c == name && component(rest, more),
        ([_, ..], []) => false,
    }
}

/// The last pattern that matches the path, or a directory above it, decides.
fn ignored(list: &[String], path: &str) -> bool {
    let path: Vec<&str> = path.split('/').collect();
    let mut ignored = false;
    for pattern in list {
        let (negated, pattern) = match pattern.strip_prefix('!') {
            Some(rest) => (true, rest),
            None => (false, pattern.as_str()),
        };
        let pattern: Vec<&str> = pattern.split('/').collect();
        if (1..=path.len()).any(|depth| matches(&pattern, &path[..depth])) {
            ignored = !negated;
        }
    }
    ignored
}

fn pattern() -> impl Strategy<Value = String> {
    let component = prop_oneof![
        3 => "[ab]{1,3}",
        1 => Just("**".to_owned()),
        2 => "[ab]?\\*[ab]?",
        1 => "[ab]?\\?",
        1 => prop_oneof![Just("[a-b]".to_owned()), Just("[^a]b".to_owned())],
    ];
    (any::<bool>(), proptest::collection::vec(component, 1..4)).prop_map(|(negated, components)| {
        format!("{}{}", if negated { "!" } else { "" }, components.join("/"))
    })
}

fn path() -> impl Strategy<Value = String> {
    proptest::collection::vec("[abc]{1,3}", 1..5).prop_map(|components| components.join("/"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn lists_decide_as_the_plain_matcher(
        list in proptest::collection::vec(pattern(), 1..5),
        paths in proptest::collection::vec(path(), 1..8),
    ) {
        let compiled = Patterns::new(&list).unwrap();
        for path in &paths {
            prop_assert_eq!(compiled.matches(path), ignored(&list, path), "{:?} of {}", &list, path);
        }
    }
}
