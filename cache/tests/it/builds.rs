//! Records of builds.

use std::time::{Duration, SystemTime};

use kiln_cache::{BuildRecord, BuildRetention};
use kiln_content::ContentStoreExt as _;

use crate::support::Fixture;

fn record(id: &str, age: u64) -> BuildRecord {
    let completed_at = SystemTime::now() - Duration::from_secs(age);
    BuildRecord {
        id: id.to_owned(),
        created_at: completed_at - Duration::from_secs(1),
        completed_at,
        generation: 1,
        pinned: false,
        body: id.as_bytes().to_vec(),
    }
}

#[tokio::test]
async fn records_keep_their_blobs_and_no_others() {
    let fixture = Fixture::new().await;
    let put = async |text: &'static str| fixture.content.put(text.into()).await.unwrap();
    let (log, error, shared) = (put("log").await, put("error").await, put("shared").await);
    let cache = fixture.cache.clone();
    cache.save_build(record("a", 0), vec![log, shared]).await.unwrap();
    cache.save_build(record("b", 0), vec![shared]).await.unwrap();
    // In its place, with another blob.
    cache.save_build(record("a", 0), vec![error, shared]).await.unwrap();
    drop(cache);
    let fixture = fixture.reopen().await;
    let here = async |digest| fixture.content.contains(&digest).await.unwrap();
    assert_eq!((here(log).await, here(error).await, here(shared).await), (false, true, true));
    assert!(fixture.cache.remove_build("a").await.unwrap());
    assert!(!fixture.cache.remove_build("a").await.unwrap());
    let fixture = fixture.reopen().await;
    let here = async |digest| fixture.content.contains(&digest).await.unwrap();
    assert_eq!((here(error).await, here(shared).await), (false, true));
    assert_eq!(fixture.cache.build_record("b").await.unwrap().unwrap().body, b"b");
    assert_eq!(fixture.content.list().await.unwrap().len(), 1);
}

#[tokio::test]
async fn only_what_is_old_and_beyond_the_newest_goes() {
    let fixture = Fixture::new().await;
    for (id, age) in [("new", 0), ("old", 100), ("older", 200), ("oldest", 300), ("kept", 400)] {
        fixture.cache.save_build(record(id, age), Vec::new()).await.unwrap();
    }
    let kept = fixture.cache.pin_build("kept", true).await.unwrap().unwrap();
    assert!(kept.pinned && kept.generation == 2);
    assert_eq!(fixture.cache.pin_build("nobody", true).await.unwrap(), None);
    assert_eq!(fixture.cache.build_ids(true).await.unwrap(), ["new", "old", "older", "oldest", "kept"]);
    let expire = async |age, count| {
        let age = Duration::from_secs(age);
        fixture.cache.expire_builds(BuildRetention { age, count }).await.unwrap()
    };
    assert_eq!(expire(1000, 0).await, [] as [&str; 0]);
    assert_eq!(expire(0, 4).await, [] as [&str; 0]);
    assert_eq!(expire(150, 3).await, ["oldest"]);
    assert_eq!(expire(50, 1).await, ["old", "older"]);
    assert_eq!(fixture.cache.build_ids(false).await.unwrap(), ["kept", "new"]);
    fixture.cache.pin_build("kept", false).await.unwrap();
    assert_eq!(expire(50, 1).await, ["kept"]);
}
