//! What every imported cache keeps to.
#![allow(clippy::expect_used, clippy::panic, clippy::missing_panics_doc, reason = "a suite of assertions")]

use kiln_digest::Digest;

use crate::key::{KeyDigest, KeyId};
use crate::key_source::KeySource;
use crate::keys::{KeyAndSelector, RecordId};
use crate::vertex::OutputIndex;

/// One record of a store to make.
#[derive(Clone, Debug)]
pub struct SourceEntry {
    /// The op's digest.
    pub digest: Digest,
    /// The edge's output; -1 for the content of an input.
    pub output: i64,
    /// Per input, its alternatives: a selector, and the position of an earlier entry.
    pub inputs: Vec<Vec<(Option<Digest>, usize)>>,
    /// Whether it has a result.
    pub result: bool,
}

/// Checks the numbered contract of [`KeySource`]. `make` makes a store with these entries; each call a different one.
pub async fn source_conformance<S: KeySource>(mut make: impl AsyncFnMut(&[SourceEntry]) -> S) {
    let entry = |name: &str, output, inputs: &[Vec<(Option<Digest>, usize)>], result| SourceEntry {
        digest: Digest::of(name),
        output,
        inputs: inputs.to_vec(),
        result,
    };
    let select = Some(Digest::of("/x"));
    let entries = [
        entry("base", 0, &[], false),
        entry("content", -1, &[], false),
        entry("run", 1, &[vec![(select, 0)]], true),
        entry("copy", 0, &[vec![(None, 2), (None, 0)], vec![(None, 1)]], true),
        entry("other", 0, &[vec![(None, 3)]], false),
    ];
    let source = make(&entries).await;
    let other = make(&entries).await;
    let way = |key: &KeyId, selector| vec![KeyAndSelector { key: key.clone(), selector }];
    let digest = |name: &str| KeyDigest::Stable(Digest::of(name));

    // Keys without inputs (1, 2).
    let base = KeyId::root(&Digest::of("base"), 0);
    let content = KeyId::content(&Digest::of("content"));
    assert_eq!(source.query(&[], &digest("base"), OutputIndex(0)).await.keys, std::slice::from_ref(&base));
    assert!(source.query(&[], &digest("base"), OutputIndex(1)).await.keys.is_empty());
    assert!(source.query(&[], &digest("nothing"), OutputIndex(0)).await.keys.is_empty());
    let random = KeyDigest::Random(Digest::of("base"));
    assert!(source.query(&[], &random, OutputIndex(0)).await.keys.is_empty());
    assert!(source.backlinks(&base).is_empty());

    // Keys with inputs (1, 2).
    let one = |found: crate::keys::Lookup| {
        assert_eq!(found.keys.len(), 1, "{found:?}");
        assert!(found.reached.iter().all(|reached| *reached));
        found.keys.into_iter().next().expect("one key")
    };
    let run = one(source.query(&[way(&base, select)], &digest("run"), OutputIndex(1)).await);
    assert!(run.is_imported());
    for (selector, name, output) in [(None, "run", 1), (select, "else", 1), (select, "run", 0)] {
        let found = source.query(&[way(&base, selector)], &digest(name), OutputIndex(output)).await;
        assert_eq!((found.keys.len(), found.reached), (0, vec![false]));
    }
    let copy =
        one(source.query(&[way(&run, None), way(&content, None)], &digest("copy"), OutputIndex(0)).await);
    for first in [way(&base, None), [way(&base, None), way(&run, None)].concat()] {
        assert_eq!(
            one(source.query(&[first, way(&content, None)], &digest("copy"), OutputIndex(0)).await),
            copy
        );
    }
    let found = source.query(&[way(&run, None), way(&base, None)], &digest("copy"), OutputIndex(0)).await;
    assert_eq!((found.keys.len(), found.reached), (0, vec![true, false]));

    // Another store's names lead nowhere (2).
    let theirs = one(other.query(&[way(&base, select)], &digest("run"), OutputIndex(1)).await);
    assert_ne!(theirs, run);
    let found =
        source.query(&[way(&theirs, None), way(&content, None)], &digest("copy"), OutputIndex(0)).await;
    assert_eq!((found.keys.len(), found.reached), (0, vec![false, true]));
    assert!(source.records(&theirs).is_empty() && source.backlinks(&theirs).is_empty());

    // Records (3, 4, 5).
    for key in [&run, &copy] {
        let records = source.records(key);
        assert_eq!(records.len(), 1);
        assert_eq!(source.key_of(&records[0].id).as_ref(), Some(key));
        assert_eq!(other.key_of(&records[0].id), None);
        assert!(source.load(&records[0]).await.is_some());
        assert!(other.load(&records[0]).await.is_none());
    }
    let last = one(source.query(&[way(&copy, None)], &digest("other"), OutputIndex(0)).await);
    assert!(source.records(&last).is_empty());
    assert_eq!(source.key_of(&RecordId("unknown".into())), None);

    // Back to where it came from (6).
    let links = source.backlinks(&copy);
    let mut ways: Vec<_> = links.iter().map(|link| (link.input, link.from.clone(), link.selector)).collect();
    ways.sort();
    let mut want = vec![(0, run.clone(), None), (0, base.clone(), None), (1, content, None)];
    want.sort();
    assert_eq!(ways, want);
    assert!(links.iter().all(|link| link.digest == KeyId::root(&Digest::of("copy"), 0)));
    assert_eq!(source.backlinks(&run).first().and_then(|link| link.selector), select);
}
