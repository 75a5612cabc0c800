//! The recorded answers of the reference in `testdata/`.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::path::{Path, PathBuf};

use kiln_patterns::{DirState, Filter, Patterns, ignore_file};
use kiln_vectors::Vectors;
use serde_json::Value;

fn own() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata")
}

fn load(dir: &Path, name: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(dir.join(name)).unwrap()).unwrap()
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
    let mut vectors = Vectors::new(own());
    let data = load(vectors.dir(), "ignore.json");
    for (number, case) in data["cases"].as_array().unwrap().iter().enumerate() {
        let file = case["file"].as_str().unwrap();
        vectors.check(format!("ignore {}: {file:?}", number + 1), || {
            let patterns = ignore_file(file);
            assert_eq!(patterns, strings(&case["patterns"]), "patterns");
            let list = match Patterns::new(&patterns) {
                Ok(list) => list,
                Err(error) => {
                    assert_eq!(Some(error.to_string().as_str()), case["error"].as_str());
                    return Ok(());
                }
            };
            assert!(case.get("error").is_none(), "it compiles");
            for (path, want) in case["ignored"].as_object().unwrap() {
                assert_eq!(list.matches(path), want.as_bool().unwrap(), "{path:?}");
            }
            let filter = Filter::new([""; 0], &patterns).unwrap();
            assert_eq!(walk(&data["tree"], &filter), strings(&case["transferred"]), "walk");
            Ok(())
        });
    }
    vectors.finish(76);
}

#[test]
fn include_lists() {
    let mut vectors = Vectors::new(own());
    let data = load(vectors.dir(), "include.json");
    // Follow paths need links resolved on disk, which is the file sender's part.
    let cases = data["cases"].as_array().unwrap().iter().enumerate();
    for (number, case) in cases.filter(|(_, case)| strings(&case["follow"]).is_empty()) {
        let mut include = strings(&case["include"]);
        vectors.check(format!("include {}: {include:?}", number + 1), || {
            // The recording sender also de-duplicates paths, which drops every absolute one before it gets here.
            include.retain(|pattern| !pattern.starts_with('/'));
            let filter = Filter::new(&include, [""; 0]).unwrap();
            assert_eq!(walk(&data["tree"], &filter), strings(&case["transferred"]));
            Ok(())
        });
    }
    vectors.finish(16);
}

#[test]
fn pruning_never_loses_a_match() {
    let data = load(&own(), "ignore.json");
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
