//! Token scopes: `repository:<path>:<action>,<action>`.

use std::collections::{BTreeMap, BTreeSet};

/// A set of scopes in which each resource stands once, with all its actions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Scopes(BTreeMap<String, BTreeSet<String>>);

/// More resources than this in a challenge are not asked for.
const MAX_RESOURCES: usize = 64;

impl Scopes {
    pub(crate) fn pull(path: &str) -> Self {
        Self::default().and(&format!("repository:{path}:pull"))
    }

    pub(crate) fn push(path: &str) -> Self {
        Self::default().and(&format!("repository:{path}:pull,push"))
    }

    /// Adds one scope, or several separated by spaces.
    pub(crate) fn and(mut self, scopes: &str) -> Self {
        for scope in scopes.split(' ').filter(|scope| !scope.is_empty()) {
            let (resource, actions) = match scope.rsplit_once(':') {
                Some((resource, actions)) if resource.contains(':') => (resource, actions),
                _ => (scope, ""),
            };
            if self.0.len() >= MAX_RESOURCES && !self.0.contains_key(resource) {
                break;
            }
            self.0
                .entry(resource.to_owned())
                .or_default()
                .extend(actions.split(',').filter(|a| !a.is_empty()).map(str::to_owned));
        }
        self
    }

    pub(crate) fn merge(mut self, other: &Self) -> Self {
        for (resource, actions) in &other.0 {
            self.0.entry(resource.clone()).or_default().extend(actions.iter().cloned());
        }
        self
    }

    pub(crate) fn contains(&self, other: &Self) -> bool {
        other
            .0
            .iter()
            .all(|(resource, actions)| self.0.get(resource).is_some_and(|own| actions.is_subset(own)))
    }

    /// Returns the scopes as token servers want them, in a fixed order.
    pub(crate) fn list(&self) -> Vec<String> {
        self.0
            .iter()
            .map(|(resource, actions)| {
                if actions.is_empty() {
                    return resource.clone();
                }
                let actions: Vec<&str> = actions.iter().map(String::as_str).collect();
                format!("{resource}:{}", actions.join(","))
            })
            .collect()
    }

    /// Returns the scopes as progress shows them.
    pub(crate) fn shown(&self) -> String {
        let scopes: Vec<String> = self
            .list()
            .iter()
            .map(|scope| scope.strip_prefix("repository:").unwrap_or(scope).to_owned())
            .collect();
        scopes.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn actions_of_a_resource_come_together() {
        let scopes = Scopes::pull("a/b").and("repository:a/b:push,pull registry:catalog:* odd");
        assert_eq!(scopes.list(), ["odd", "registry:catalog:*", "repository:a/b:pull,push"]);
        assert_eq!(scopes.shown(), "odd registry:catalog:* a/b:pull,push");
        assert!(scopes.contains(&Scopes::push("a/b")));
        assert!(!Scopes::pull("a/b").contains(&scopes));
        assert!(Scopes::push("h:1/a").list()[0] == "repository:h:1/a:pull,push");
    }
}
