//! What a reference stands for at its repository.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OnceCell;

use crate::error::{Error, Result};
use crate::git::process::{Reach, Runner};
use crate::git::remote::Remote;
use crate::git::request::{GitRequest, is_full};

/// What a reference stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Resolved {
    /// The object that it names: a commit or an annotated tag; also the source's pin.
    pub object: String,
    /// The commit, if the object is an annotated tag.
    pub peeled: Option<String>,
    /// Its full name, or the commit's if that is all there is.
    pub name: String,
}

impl Resolved {
    pub(crate) fn commit(sha: &str, name: &str) -> Self {
        Self { object: sha.to_owned(), peeled: None, name: name.to_owned() }
    }

    /// The commit.
    #[must_use]
    pub fn commit_sha(&self) -> &str {
        self.peeled.as_deref().unwrap_or(&self.object)
    }
}

/// What a build has looked up already, so that a reference means one thing throughout.
#[derive(Debug, Default)]
pub struct Listings(Mutex<HashMap<(Remote, String), Slot>>);

/// Whoever comes first looks; when that one goes away, the next takes over.
type Slot = Arc<OnceCell<Resolved>>;

impl Listings {
    pub(crate) fn slot(&self, request: &GitRequest) -> Slot {
        let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        slots.entry((request.remote.clone(), request.reference.clone())).or_default().clone()
    }
}

/// Asks the repository.
pub(crate) async fn look_up(runner: &Runner<'_>, dir: &Path, request: &GitRequest) -> Result<Resolved> {
    let remote = request.remote.as_str();
    let name = request.reference.as_str();
    if name.is_empty() {
        let listed =
            runner.run(Reach::Network, dir, &["ls-remote", "--symref", "--", remote, "HEAD"]).await?;
        return default_branch(&listed.success()?)
            .ok_or_else(|| Error::NoDefaultBranch { remote: remote.to_owned() });
    }
    let peeled = format!("{name}^{{}}");
    let listed = runner.run(Reach::Network, dir, &["ls-remote", "--", remote, name, &peeled]).await?;
    let output = listed.success()?;
    choose(&output, name).ok_or_else(|| Error::NoReference { reference: name.to_owned(), output })
}

/// Reads `ref: refs/heads/main\tHEAD` and `<sha>\tHEAD`.
fn default_branch(output: &str) -> Option<Resolved> {
    let (mut name, mut sha) = (None, None);
    for (left, right) in output.lines().filter_map(|line| line.split_once('\t')) {
        match left.strip_prefix("ref: ") {
            Some(branch) if right == "HEAD" => name = Some(branch.trim()),
            None if right == "HEAD" && is_full(left) => sha = Some(left),
            _ => {}
        }
    }
    Some(Resolved::commit(sha?, name.filter(|name| name.starts_with("refs/"))?))
}

/// The full name wins, then a branch, then a tag.
fn choose(output: &str, name: &str) -> Option<Resolved> {
    let lines: HashMap<&str, &str> = output
        .lines()
        .filter_map(|line| line.split_once('\t'))
        .filter(|(sha, _)| is_full(sha))
        .map(|(sha, name)| (name, sha))
        .collect();
    let below = |prefix: &str| format!("{prefix}{}", name.strip_prefix(prefix).unwrap_or(name));
    [below("refs/"), below("refs/heads/"), below("refs/tags/")].into_iter().find_map(|full| {
        let object = (*lines.get(full.as_str())?).to_owned();
        // The reference looks behind a tag only if it was asked for as one, and its keys tell.
        let peeled = lines.get(format!("{full}^{{}}").as_str()).filter(|_| full == below("refs/tags/"));
        let peeled = peeled.map(|sha| (*sha).to_owned());
        Some(Resolved { object, peeled, name: full })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_looked_for_in_order() {
        let sha = |n: u8| n.to_string().repeat(40);
        let output = [
            (1, "refs/heads/main"),
            (2, "refs/heads/both"),
            (3, "refs/tags/both"),
            (4, "refs/tags/v1"),
            (5, "refs/tags/v1^{}"),
            (6, "refs/pull/7/head"),
            (7, "refs/heads/deep/main"),
        ]
        .map(|(n, name)| format!("{}\t{name}\n", sha(n)))
        .concat();
        for (asked, want) in [
            ("main", Some((1, None, "refs/heads/main"))),
            ("refs/heads/main", Some((1, None, "refs/heads/main"))),
            ("heads/main", Some((1, None, "refs/heads/main"))),
            ("both", Some((2, None, "refs/heads/both"))),
            ("tags/both", Some((3, None, "refs/tags/both"))),
            ("tags/v1", Some((4, None, "refs/tags/v1"))),
            ("v1", Some((4, Some(5), "refs/tags/v1"))),
            ("refs/tags/v1", Some((4, Some(5), "refs/tags/v1"))),
            ("refs/pull/7/head", Some((6, None, "refs/pull/7/head"))),
            ("other", None),
            ("v1^{}", None),
        ] {
            let got = choose(&output, asked);
            let want = want.map(|(object, peeled, name)| Resolved {
                object: sha(object),
                peeled: peeled.map(sha),
                name: name.to_owned(),
            });
            assert_eq!(got, want, "{asked}");
        }
        let head = format!("ref: refs/heads/main\tHEAD\n{}\tHEAD\n", sha(1));
        assert_eq!(default_branch(&head), Some(Resolved::commit(&sha(1), "refs/heads/main")));
        assert_eq!(default_branch(&format!("{}\tHEAD\n", sha(1))), None);
    }
}
