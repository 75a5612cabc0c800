//! What every store of keys that remembers more than keys keeps to.
#![allow(clippy::expect_used, clippy::panic, clippy::missing_panics_doc, reason = "a suite of assertions")]

use kiln_digest::Digest;

use crate::key::{KeyDigest, KeyId};
use crate::keys::{CacheKeys, KeyAndSelector, NewKey};
use crate::op::ResultRef;
use crate::reason::{Fingerprint, GoneWhy, Memo, MemoInput, Remembered, Wanted};
use crate::vertex::OutputIndex;

/// Checks what the contract of [`CacheKeys`] says of memos (13, 14) on an empty store. `result` makes a new result the
/// store can keep, a different one each time.
pub async fn memo_conformance(keys: &dyn CacheKeys, mut result: impl AsyncFnMut() -> ResultRef) {
    let alternative = |key: &str| KeyAndSelector { key: KeyId::new(key), selector: None };
    let key = NewKey {
        digest: Digest::of("op").into(),
        output: OutputIndex(0),
        deps: vec![vec![alternative("random:00"), alternative("base")], vec![alternative("content")]],
    };
    let mut fingerprint = Fingerprint::default();
    fingerprint.set_kin("kin");
    fingerprint.add("argument 0", "true");
    let inputs = vec![MemoInput::new("one", None), MemoInput::new("two", Some(b"listing".to_vec()))];
    let memo = Memo::new("RUN true", fingerprint, inputs);
    let made = result().await;
    let save = async |key: &NewKey, memo: &Memo, result: &ResultRef| {
        let saved = keys.save_with(std::slice::from_ref(key), Some(result), Some(memo)).await.expect("save");
        saved.into_iter().next().expect("one id per key")
    };
    let id = save(&key, &memo, &made).await;

    let other = [KeyDigest::Stable(Digest::of("another op"))];
    let nothing = Wanted { name: "", kin: "", digests: &other, output: OutputIndex(0), deps: &[] };
    let found = |wanted: &Wanted<'_>| keys.near(wanted).expect("near");
    let (same, base) = ([key.digest], [vec![alternative("base")], Vec::new()]);
    for (way, wanted) in [
        ("name", Wanted { name: "RUN true", ..nothing.clone() }),
        ("kin", Wanted { kin: "kin", ..nothing.clone() }),
        ("digest", Wanted { digests: &same, ..nothing.clone() }),
        ("first input", Wanted { deps: &base, ..nothing.clone() }),
    ] {
        let all = found(&wanted);
        let [Remembered { memo: got, key: named, digest, deps, gone, .. }] = all.as_slice() else {
            panic!("by {way}: {all:?}")
        };
        assert_eq!(got.name, memo.name, "by {way}");
        let inputs: Vec<_> = got.inputs.iter().map(|input| (input.name.as_str(), &input.listing)).collect();
        assert_eq!(inputs, [("one", &None), ("two", &None)], "by {way}");
        assert_eq!(got.fingerprint.components(), memo.fingerprint.components(), "by {way}");
        assert_eq!((named, *digest, *gone), (&id, key.digest, None), "by {way}");
        assert_eq!(deps[0], [alternative("base")], "what holds in one session is not remembered");
        assert_eq!(deps[1], [alternative("content")]);
    }
    let listing = |input: usize| keys.listing(&id, input).expect("listing");
    assert_eq!((listing(0), listing(1), listing(2)), (None, Some(b"listing".to_vec()), None));
    assert_eq!(found(&nothing), [], "nothing comes near");
    assert_eq!(
        found(&Wanted { kin: "kin", output: OutputIndex(1), ..nothing.clone() }),
        [],
        "another output"
    );

    let wanted = Wanted { digests: &same, ..nothing.clone() };
    let again = result().await;
    save(&key, &Memo::new("RUN  true", memo.fingerprint.clone(), memo.inputs.clone()), &again).await;
    let names = |all: &[Remembered]| all.iter().map(|r| r.memo.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&found(&wanted)), ["RUN  true"], "a key has one memo");

    keys.lost(&made).await.expect("lost");
    assert!(found(&wanted).iter().all(|remembered| remembered.gone.is_none()), "one result is left");
    keys.lost(&again).await.expect("lost");
    let gone: Vec<_> = found(&wanted).iter().filter_map(|r| r.gone).map(|(_, why)| why).collect();
    assert_eq!(gone, [GoneWhy::Lost]);
    let mut memo = memo;
    memo.again = Some(id.clone());
    assert_eq!(save(&key, &memo, &result().await).await, id, "the same step has the same key again");
    assert!(found(&wanted).iter().all(|remembered| remembered.gone.is_none()));
    let foreign = NewKey { deps: vec![vec![alternative("elsewhere")], vec![alternative("content")]], ..key };
    assert_ne!(save(&foreign, &memo, &result().await).await, id, "another step has not");
}
