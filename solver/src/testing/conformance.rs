//! What every store of keys keeps to.
#![allow(clippy::expect_used, clippy::panic, clippy::missing_panics_doc, reason = "a suite of assertions")]

use std::collections::BTreeSet;

use kiln_digest::Digest;

use crate::key::{KeyDigest, KeyId};
use crate::key_source::Backlink;
use crate::keys::{CacheKeys, KeyAndSelector, NewKey};
use crate::op::ResultRef;
use crate::vertex::OutputIndex;

/// Checks the numbered contract of [`CacheKeys`] on an empty store. `result` makes a new result the store can keep,
/// a different one each time.
pub async fn conformance(keys: &dyn CacheKeys, mut result: impl AsyncFnMut() -> ResultRef) {
    let case = Case { keys };
    case.roots(result().await).await;
    case.unions_and_intersections([result().await, result().await, result().await]).await;
    case.selectors_outputs_and_inputs([result().await, result().await]).await;
    case.content_and_links([result().await, result().await]).await;
    case.several_keys_in_one_call(result().await).await;
    case.many_records([result().await, result().await]).await;
    case.nil_results().await;
    case.lost_results(result().await).await;
    case.adopted_chains([result().await, result().await]).await;
    case.ways_back([result().await, result().await]).await;
}

struct Case<'a> {
    keys: &'a dyn CacheKeys,
}

fn digest(text: &str) -> KeyDigest {
    KeyDigest::Stable(Digest::of(text))
}

fn alternative(key: &KeyId) -> KeyAndSelector {
    KeyAndSelector { key: key.clone(), selector: None }
}

fn selected(key: &KeyId, selector: &str) -> KeyAndSelector {
    KeyAndSelector { key: key.clone(), selector: Some(Digest::of(selector)) }
}

fn key(name: &str, output: u32, deps: &[Vec<KeyAndSelector>]) -> NewKey {
    NewKey { digest: digest(name), output: OutputIndex(output), deps: deps.to_vec() }
}

impl Case<'_> {
    fn find(&self, key: &NewKey) -> Vec<KeyId> {
        let lookup = self.keys.query(&key.deps, &key.digest, key.output).expect("query");
        assert_eq!(lookup.reached.len(), key.deps.len(), "one flag per dep");
        let unique: BTreeSet<_> = lookup.keys.iter().collect();
        assert_eq!(unique.len(), lookup.keys.len(), "no duplicates");
        lookup.keys
    }

    fn reached(&self, key: &NewKey) -> Vec<bool> {
        self.keys.query(&key.deps, &key.digest, key.output).expect("query").reached
    }

    async fn save(&self, key: &NewKey, result: &ResultRef) -> KeyId {
        let ids = self.keys.save(std::slice::from_ref(key), Some(result)).await.expect("save");
        assert_eq!(ids.len(), 1, "one id per key");
        ids.into_iter().next().expect("one id")
    }

    async fn loads(&self, key: &KeyId) -> usize {
        let mut loaded = 0;
        for record in self.keys.records(key).expect("records") {
            loaded += usize::from(self.keys.load(&record).await.expect("load").is_some());
        }
        loaded
    }

    /// Root keys are named by digest and output, and known once saved (1, 5, 10).
    async fn roots(&self, result: ResultRef) {
        let new = key("roots", 3, &[]);
        assert_eq!(self.find(&new), []);
        assert_eq!(self.find(&new), [], "a look-up stores nothing");
        let id = self.save(&new, &result).await;
        assert_eq!(id, KeyId::root(&Digest::of("roots"), 3));
        assert_eq!(self.find(&new), std::slice::from_ref(&id));
        assert_eq!(self.find(&key("roots", 2, &[])), []);
        assert_eq!(self.loads(&id).await, 1);
        let random = NewKey {
            digest: KeyDigest::Random(Digest::of("roots")),
            output: OutputIndex(0),
            deps: Vec::new(),
        };
        let id = self.save(&random, &result).await;
        assert_eq!(id.as_str(), format!("random:{}", Digest::of("roots").hex()));
        assert_eq!(self.find(&random), [id]);
    }

    /// Alternatives are united, inputs intersected (2, 5).
    async fn unions_and_intersections(&self, results: [ResultRef; 3]) {
        let [one, two, both] = results;
        let a = self.save(&key("ui-a", 0, &[]), &one).await;
        let b = self.save(&key("ui-b", 0, &[]), &two).await;
        let new = key("ui-op", 0, &[vec![alternative(&a)], vec![alternative(&b)]]);
        assert_eq!(self.find(&new), []);
        assert_eq!(self.reached(&new), [false, false]);
        let id = self.save(&new, &both).await;
        assert_eq!(self.find(&new), std::slice::from_ref(&id));
        assert_eq!(self.find(&key("ui-op", 0, &[vec![alternative(&b)], vec![alternative(&a)]])), []);
        assert_eq!(self.find(&key("ui-op", 0, &[vec![alternative(&a)], vec![]])), []);
        assert_eq!(self.reached(&key("ui-op", 0, &[vec![alternative(&a)], vec![]])), [true, false]);
        let more = key("ui-op", 0, &[vec![alternative(&b), alternative(&a)], vec![alternative(&b)]]);
        assert_eq!(self.find(&more), std::slice::from_ref(&id));
        // Saving under more alternatives names the same key and makes it findable through each.
        assert_eq!(self.save(&more, &both).await, id);
        assert_eq!(
            self.find(&key("ui-op", 0, &[vec![alternative(&b)], vec![alternative(&b)]])),
            std::slice::from_ref(&id)
        );
        assert_eq!(self.keys.records(&id).expect("records").len(), 1, "the same result twice is one record");
    }

    /// Links are told apart by selector, output, op digest and input number (3).
    async fn selectors_outputs_and_inputs(&self, results: [ResultRef; 2]) {
        let [below, result] = results;
        let a = self.save(&key("sel-a", 0, &[]), &below).await;
        let new = key("sel-op", 1, &[vec![selected(&a, "/x")]]);
        let id = self.save(&new, &result).await;
        assert_eq!(self.find(&new), [id]);
        assert_eq!(self.find(&key("sel-op", 1, &[vec![selected(&a, "/y")]])), []);
        assert_eq!(self.find(&key("sel-op", 1, &[vec![alternative(&a)]])), []);
        assert_eq!(self.find(&key("sel-op", 0, &[vec![selected(&a, "/x")]])), []);
        assert_eq!(self.find(&key("sel-other", 1, &[vec![selected(&a, "/x")]])), []);
        assert_eq!(self.find(&key("sel-op", 1, &[vec![], vec![selected(&a, "/x")]])), []);
    }

    /// Content keys lead to keys though nobody saved anything under them; `link` adds ways in (5, 7).
    async fn content_and_links(&self, results: [ResultRef; 2]) {
        let [below, result] = results;
        let a = self.save(&key("con-a", 0, &[]), &below).await;
        let content = KeyId::content(&Digest::of("con-content"));
        let new = key("con-op", 0, &[vec![selected(&a, "/"), alternative(&content)]]);
        let id = self.save(&new, &result).await;
        assert_eq!(self.find(&key("con-op", 0, &[vec![alternative(&content)]])), std::slice::from_ref(&id));
        let b = KeyId::root(&Digest::of("con-b"), 0);
        let random = KeyDigest::Random(Digest::of("con-random")).root(OutputIndex(0));
        let ways = vec![selected(&b, "/"), alternative(&content), selected(&random, "/")];
        self.keys.link(&key("con-op", 0, &[ways]), &id).await.expect("link");
        assert_eq!(self.find(&key("con-op", 0, &[vec![selected(&b, "/")]])), std::slice::from_ref(&id));
        assert_eq!(self.find(&key("con-op", 0, &[vec![selected(&random, "/")]])), []);
        assert_eq!(self.find(&key("con-b", 0, &[])), [], "a link does not make its input known");
        assert_eq!(self.loads(&id).await, 1);
    }

    /// One call publishes under all keys (6).
    async fn several_keys_in_one_call(&self, result: ResultRef) {
        let keys = [key("sev-manifest", 0, &[]), key("sev-config", 0, &[])];
        let ids = self.keys.save(&keys, Some(&result)).await.expect("save");
        assert_eq!(
            ids,
            [KeyId::root(&Digest::of("sev-manifest"), 0), KeyId::root(&Digest::of("sev-config"), 0)]
        );
        for id in &ids {
            assert_eq!(self.loads(id).await, 1);
        }
        let records: Vec<_> = ids.iter().flat_map(|id| self.keys.records(id).expect("records")).collect();
        assert_eq!(records[0].id, records[1].id, "the same result is the same record");
    }

    /// A key may have several results; later ones are not older (4).
    async fn many_records(&self, results: [ResultRef; 2]) {
        let new = key("many", 0, &[]);
        let mut id = None;
        let mut seen: Vec<crate::keys::CacheRecord> = Vec::new();
        for result in &results {
            let key = self.save(&new, result).await;
            let records = self.keys.records(&key).expect("records");
            let fresh: Vec<_> =
                records.into_iter().filter(|record| seen.iter().all(|old| old.id != record.id)).collect();
            assert_eq!(fresh.len(), 1);
            assert!(seen.iter().all(|old| old.created_at <= fresh[0].created_at));
            seen.extend(fresh);
            id = Some(key);
        }
        assert_eq!(self.loads(&id.expect("saved")).await, 2);
    }

    /// A nil result is a result (8).
    async fn nil_results(&self) {
        let new = key("nil", 0, &[]);
        let ids = self.keys.save(std::slice::from_ref(&new), None).await.expect("save");
        let records = self.keys.records(&ids[0]).expect("records");
        assert_eq!(records.len(), 1);
        assert!(matches!(self.keys.load(&records[0]).await, Ok(Some(None))));
    }

    /// A chain of another store gets names of this one (11).
    async fn adopted_chains(&self, results: [ResultRef; 2]) {
        let [below, result] = results;
        let known = self.save(&key("ado-known", 0, &[]), &below).await;
        let theirs = |index| KeyId::imported("ado", index);
        let root = KeyId::root(&Digest::of("ado-root"), 0);
        let content = KeyId::content(&Digest::of("ado-content"));
        let chain = [
            (root.clone(), key("ado-root", 0, &[])),
            (theirs(1), key("ado-one", 0, &[vec![selected(&root, "/"), selected(&known, "/")]])),
            (theirs(2), key("ado-two", 1, &[vec![alternative(&theirs(1))], vec![alternative(&content)]])),
        ];
        let made = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(77);
        let names = self.keys.adopt(&chain, Some(&result), made).await.expect("adopt");
        assert_eq!(names.len(), 3);
        assert_eq!(names[0], root);
        assert!(names.iter().all(|name| !name.is_imported()));
        for from in [&root, &known] {
            assert_eq!(self.find(&key("ado-one", 0, &[vec![selected(from, "/")]])), names[1..2]);
        }
        let two = |from: &KeyId| key("ado-two", 1, &[vec![alternative(from)], vec![alternative(&content)]]);
        assert_eq!(self.find(&two(&names[1])), names[2..]);
        assert_eq!(self.find(&two(&theirs(1))), [], "names of the other store mean nothing here");
        let records = self.keys.records(&names[2]).expect("records");
        assert_eq!(records.iter().map(|record| record.created_at).collect::<Vec<_>>(), [made]);
        assert!(self.keys.records(&names[1]).expect("records").is_empty());
        assert_eq!(self.loads(&names[2]).await, 1);
        assert_eq!(self.keys.adopt(&chain, Some(&result), made).await.expect("adopt"), names);
        assert_eq!(self.keys.records(&names[2]).expect("records").len(), 1);
    }

    /// Exports walk back, and find what else a result is known as (12).
    async fn ways_back(&self, results: [ResultRef; 2]) {
        let [below, result] = results;
        let keys = [key("way-manifest", 0, &[]), key("way-config", 0, &[])];
        let roots = self.keys.save(&keys, Some(&below)).await.expect("save");
        let content = KeyId::content(&Digest::of("way-content"));
        let new = key("way-op", 2, &[vec![selected(&roots[0], "/")], vec![alternative(&content)]]);
        let id = self.save(&new, &result).await;
        let mut links = self.keys.backlinks(&id).expect("backlinks");
        links.sort();
        let link = |input, from: &KeyId, selector| Backlink {
            input,
            from: from.clone(),
            selector,
            digest: KeyId::root(&Digest::of("way-op"), 2),
        };
        assert_eq!(links, [link(0, &roots[0], Some(Digest::of("/"))), link(1, &content, None)]);
        assert_eq!(self.keys.backlinks(&roots[0]).expect("backlinks"), []);
        assert_eq!(self.keys.siblings(&roots[0]).expect("siblings"), roots[1..]);
        assert_eq!(self.keys.siblings(&id).expect("siblings"), []);
    }

    /// What is lost is not loaded again, but what lies above it stays findable (8, 9).
    async fn lost_results(&self, result: ResultRef) {
        let new = key("lost", 0, &[]);
        let id = self.save(&new, &result).await;
        let records = self.keys.records(&id).expect("records");
        let above = key("lost-above", 0, &[vec![alternative(&id)]]);
        let above_ids = self.keys.save(std::slice::from_ref(&above), None).await.expect("save");
        self.keys.lost(&result).await.expect("lost");
        for record in records {
            assert!(matches!(self.keys.load(&record).await, Ok(None)));
        }
        assert_eq!(self.keys.records(&id).expect("records"), []);
        assert_eq!(self.find(&above), above_ids);
    }
}
