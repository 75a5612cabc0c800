//! The recorded answers of the reference in `testdata/`.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use kiln_patterns::{DirState, Filter, Patterns, ignore_file};
use serde_json::Value;

fn load(name: &str) -> Value {
    let path = format!("{}/testdata/{name}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn strings(value: &Value) -> Vec<&str> {
    value.as_array().into_iter().flatten().map(|item| item.as_str().unwrap()).collect()
}

/// Paths of the tree in walk order: each directory's entries sorted by name, a directory before its entries.
fn entries(tree: &Value) -> Vec<(String, bool)> {
    let mut all = std::collections::BTreeMap::new();
    for item in strings(tree) {
        let name = item.split(" -> ").next().unwrap();
        let path = name.trim_end_matches('/');
        for (at, _) in path.match_indices('/') {
            all.entry(path[..at].split('/').map(str::to_owned).collect::<Vec<_>>()).or_insert(true);
        }
        all.insert(path.split('/').map(str::to_owned).collect(), name.ends_with('/'));
    }
    all.into_iter().map(|(parts, dir)| (parts.join("/"), dir)).collect()
}

/// What a filtered walk emits, a directory that is only entered when something below it is emitted.
fn walk(tree: &Value, filter: &Filter) -> Vec<String> {
    let mut out = Vec::new();
    let mut open: Vec<(String, DirState, bool)> = Vec::new();
    for (path, is_dir) in entries(tree) {
        while open.last().is_some_and(|(dir, ..)| !path.starts_with(&format!("{dir}/"))) {
            open.pop();
        }
        let parent = path.rsplit_once('/').map(|(dir, _)| dir);
        if parent.is_some() && open.last().map(|(dir, ..)| dir.as_str()) != parent {
            continue;
        }
        let visit = filter.visit(&path, is_dir, open.last().map(|(_, state, _)| state));
        if visit.selected {
            for (dir, _, emitted) in &mut open {
                if !std::mem::replace(emitted, true) {
                    out.push(format!("{dir}/"));
                }
            }
            out.push(format!("{path}{}", if is_dir { "/" } else { "" }));
        }
        if visit.enter {
            open.push((path, visit.state, visit.selected));
        }
    }
    out
}

#[test]
fn ignore_files() {
    let data = load("ignore.json");
    for case in data["cases"].as_array().unwrap() {
        let file = case["file"].as_str().unwrap();
        let patterns = ignore_file(file);
        assert_eq!(patterns, strings(&case["patterns"]), "patterns of {file:?}");
        let list = match Patterns::new(&patterns) {
            Ok(list) => list,
            Err(error) => {
                assert_eq!(Some(error.to_string().as_str()), case["error"].as_str(), "{file:?}");
                continue;
            }
        };
        assert!(case.get("error").is_none(), "{file:?} compiles");
        for (path, want) in case["ignored"].as_object().unwrap() {
            assert_eq!(list.matches(path), want.as_bool().unwrap(), "{file:?} on {path:?}");
        }
        let filter = Filter::new([""; 0], &patterns).unwrap();
        assert_eq!(walk(&data["tree"], &filter), strings(&case["transferred"]), "walk of {file:?}");
    }
}

#[test]
fn include_lists() {
    let data = load("include.json");
    // Follow paths need links resolved on disk, which is the file sender's part.
    for case in data["cases"].as_array().unwrap().iter().filter(|case| strings(&case["follow"]).is_empty()) {
        let mut include = strings(&case["include"]);
        // The recording sender also de-duplicates paths, which drops every absolute one before it gets here.
        include.retain(|pattern| !pattern.starts_with('/'));
        let filter = Filter::new(&include, [""; 0]).unwrap();
        assert_eq!(walk(&data["tree"], &filter), strings(&case["transferred"]), "{include:?}");
    }
}

#[test]
fn pruning_never_loses_a_match() {
    let data = load("ignore.json");
    let all = entries(&data["tree"]);
    for case in data["cases"].as_array().unwrap() {
        let Ok(list) = Patterns::new(strings(&case["patterns"])) else { continue };
        let positive =
            Patterns::new(list.iter().filter(|(negated, _)| !negated).map(|(_, text)| text)).unwrap();
        for (path, _) in all.iter().filter(|(path, _)| positive.matches(path)) {
            for (at, _) in path.match_indices('/') {
                assert!(
                    list.may_match_below(&path[..at]),
                    "{:?}: {path:?} below {:?}",
                    case["file"],
                    &path[..at]
                );
            }
        }
    }
}

#[test]
fn bounds() {
    use kiln_patterns::Error;
    let long = "a".repeat(kiln_patterns::MAX_PATTERN_LEN + 1);
    assert!(matches!(Patterns::new([&long]), Err(Error::TooLong { .. })));
    let many = vec!["a"; kiln_patterns::MAX_PATTERNS + 1];
    assert!(matches!(Patterns::new(many), Err(Error::TooMany { .. })));
    let stars = Patterns::new(["**/a*a*a*a*a*a*a*a*a*a*a*a*b/**/x?*"]).unwrap();
    assert!(!stars.matches(&"a".repeat(10_000)));
}
