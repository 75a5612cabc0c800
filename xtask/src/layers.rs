//! `cargo xtask layers`: our crates' dependency edges against the written table.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};

use crate::shell;

/// Crates, bottom to top. A crate may depend only on crates of earlier rows, and only on those named beside it.
const TABLE: &[(&str, &[&str])] = &[
    ("kiln-patterns", &[]),
    ("kiln-rootdir", &[]),
    ("kiln-progress", &[]),
    ("kiln-digest", &[]),
    ("kiln-llb", &["kiln-digest"]),
    ("kiln-api", &["kiln-llb"]),
    ("kiln-content", &["kiln-digest", "kiln-rootdir"]),
    ("kiln-session", &["kiln-api", "kiln-digest", "kiln-patterns", "kiln-rootdir"]),
    ("kiln-snapshot", &["kiln-rootdir"]),
    ("kiln-executor", &["kiln-rootdir", "kiln-snapshot"]),
    ("kiln-solver", &["kiln-digest"]),
    ("kiln-registry", &["kiln-content", "kiln-digest"]),
    (
        "kiln-cache",
        &["kiln-content", "kiln-digest", "kiln-patterns", "kiln-rootdir", "kiln-snapshot", "kiln-solver"],
    ),
    (
        "kiln-source",
        &[
            "kiln-cache",
            "kiln-content",
            "kiln-digest",
            "kiln-registry",
            "kiln-rootdir",
            "kiln-session",
            "kiln-snapshot",
            "kiln-solver",
        ],
    ),
    (
        "kiln-exporter",
        &[
            "kiln-cache",
            "kiln-content",
            "kiln-digest",
            "kiln-registry",
            "kiln-rootdir",
            "kiln-session",
            "kiln-snapshot",
            "kiln-solver",
        ],
    ),
    (
        "kiln-remotecache",
        &[
            "kiln-cache",
            "kiln-content",
            "kiln-digest",
            "kiln-exporter",
            "kiln-registry",
            "kiln-session",
            "kiln-solver",
            "kiln-source",
        ],
    ),
    ("kiln-frontend", &["kiln-llb"]),
    ("kiln-frontend-dockerfile", &["kiln-digest", "kiln-frontend", "kiln-llb", "kiln-patterns"]),
    ("kiln-frontend-process", &["kiln-api", "kiln-frontend", "kiln-llb"]),
    ("dockerfile-frontend", &["kiln-frontend-dockerfile", "kiln-frontend-process"]),
    (
        "kiln-engine",
        &[
            "kiln-cache",
            "kiln-content",
            "kiln-digest",
            "kiln-executor",
            "kiln-exporter",
            "kiln-frontend",
            "kiln-llb",
            "kiln-patterns",
            "kiln-registry",
            "kiln-remotecache",
            "kiln-rootdir",
            "kiln-session",
            "kiln-snapshot",
            "kiln-solver",
            "kiln-source",
        ],
    ),
    ("kiln-runtime", &["kiln-executor", "kiln-rootdir"]),
    ("kiln-cdi", &["kiln-executor"]),
    ("kiln-cni", &["kiln-executor", "kiln-runtime"]),
    ("kiln-worker-runc", &["kiln-executor", "kiln-rootdir", "kiln-runtime", "kiln-snapshot"]),
    (
        "kiln-control",
        &[
            "kiln-api",
            "kiln-cache",
            "kiln-content",
            "kiln-digest",
            "kiln-engine",
            "kiln-frontend",
            "kiln-llb",
            "kiln-session",
            "kiln-solver",
        ],
    ),
    ("kiln-client", &["kiln-api", "kiln-session"]),
    (
        "buildkitd",
        &[
            "kiln-cache",
            "kiln-cdi",
            "kiln-cni",
            "kiln-content",
            "kiln-control",
            "kiln-engine",
            "kiln-executor",
            "kiln-frontend",
            "kiln-frontend-dockerfile",
            "kiln-llb",
            "kiln-registry",
            "kiln-runtime",
            "kiln-session",
            "kiln-snapshot",
            "kiln-solver",
            "kiln-source",
            "kiln-worker-runc",
        ],
    ),
    ("kiln-cli", &["kiln-client", "kiln-llb", "kiln-progress"]),
    ("buildctl", &["kiln-cli", "kiln-client", "kiln-digest", "kiln-llb", "kiln-progress"]),
    (
        "kiln",
        &[
            "kiln-cli",
            "kiln-client",
            "kiln-digest",
            "kiln-frontend",
            "kiln-frontend-dockerfile",
            "kiln-progress",
            "kiln-rootdir",
        ],
    ),
    ("kiln-tests", &[]),
    ("kiln-vectors", &[]),
    ("kiln-xtask", &["kiln-llb", "kiln-tests", "kiln-vectors"]),
];

/// Compares the table with what `cargo metadata` reports.
pub(crate) fn check() -> Result<()> {
    let text = shell::capture("cargo", &["metadata", "--format-version", "1", "--no-deps", "--offline"])?;
    let metadata: serde_json::Value =
        serde_json::from_str(&text).context("failed to read the output of cargo metadata")?;
    let mut actual: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for package in metadata["packages"].as_array().context("cargo metadata lists no packages")? {
        let name = package["name"].as_str().unwrap_or_default().to_owned();
        let edges = package["dependencies"].as_array().into_iter().flatten();
        let ours = edges.filter(|d| d["path"].is_string() && d["kind"].as_str() != Some("dev"));
        actual.insert(name, ours.filter_map(|d| d["name"].as_str().map(str::to_owned)).collect());
    }
    let problems = compare(TABLE, &actual);
    if !problems.is_empty() {
        bail!("the crates' dependencies are not as xtask/src/layers.rs says:\n  {}", problems.join("\n  "));
    }
    Ok(())
}

fn compare(table: &[(&str, &[&str])], actual: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    let mut problems = Vec::new();
    let row = |name: &str| table.iter().position(|(n, _)| *n == name);
    for (name, edges) in actual {
        let Some(own) = row(name) else {
            problems.push(format!("`{name}` is not in the table"));
            continue;
        };
        for edge in edges {
            if !table[own].1.contains(&edge.as_str()) {
                problems.push(format!("`{name}` depends on `{edge}`, which its row does not name"));
            } else if row(edge).is_none_or(|r| r >= own) {
                problems.push(format!("`{name}` depends on `{edge}`, which is not below it"));
            }
        }
    }
    problems.extend(
        table
            .iter()
            .filter(|(n, _)| !actual.contains_key(*n))
            .map(|(n, _)| format!("`{n}` is in the table only")),
    );
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upward_unknown_and_missing_edges_are_found() {
        let table: &[(&str, &[&str])] = &[("a", &["b"]), ("b", &[]), ("gone", &[])];
        let actual = [("a", vec!["b"]), ("b", vec!["a"]), ("new", vec![])];
        let actual = actual
            .into_iter()
            .map(|(n, e)| (n.to_owned(), e.into_iter().map(str::to_owned).collect()))
            .collect();
        let problems = compare(table, &actual);
        assert_eq!(problems.len(), 4, "{problems:?}");
    }
}
