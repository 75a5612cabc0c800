use std::sync::Arc;

use kiln_cache::{GcPolicy, NoProvider, PruneOptions, RecordOptions, RecordType, Sharing};

use crate::support::Fixture;

/// A small generator, so that a failing run can be had again by its seed.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

async fn builder(fixture: Arc<Fixture>, seed: u64) {
    let mut random = Random(seed);
    for step in 0..60 {
        let op = format!("op{}", random.below(12));
        match random.below(5) {
            0 | 1 => match fixture.find(&op).await {
                // What was found stays while it is held, whatever is pruned beside it.
                Some(found) => {
                    tokio::task::yield_now().await;
                    found.mount(&NoProvider).await.unwrap();
                    if random.below(3) == 0 {
                        let child = fixture.layer(Some(&found), "child", "x").await;
                        fixture.save(&format!("op{}", random.below(12)), &child).await;
                        child.mount(&NoProvider).await.unwrap();
                    }
                }
                None => {
                    let made = fixture.layer(None, &format!("f{seed}-{step}"), "x").await;
                    fixture.save(&op, &made).await;
                }
            },
            2 => {
                fixture
                    .cache
                    .gc(&[GcPolicy(PruneOptions { all: true, ..PruneOptions::default() })])
                    .await
                    .unwrap();
            }
            3 => {
                let options = RecordOptions::new("local", RecordType::LocalSource);
                let source = fixture.cache.local_source("ctx", options).await.unwrap();
                source.changes();
                let view = source.commit().await.unwrap();
                view.mount(&NoProvider).await.unwrap();
                view.content_digest(&[], &NoProvider).await.unwrap();
            }
            _ => {
                let sharing = [Sharing::Shared, Sharing::Private, Sharing::Locked][random.below(3) as usize];
                let options = RecordOptions::new("mount", RecordType::CacheMount);
                let mount = fixture.cache.cache_mount("id", sharing, None, options).await.unwrap();
                tokio::task::yield_now().await;
                mount.mount().await.unwrap();
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn builds_and_collection_beside_each_other() {
    let fixture = Arc::new(Fixture::new().await);
    let mut builders = tokio::task::JoinSet::new();
    for seed in 0..6 {
        builders.spawn(builder(Arc::clone(&fixture), seed));
    }
    while let Some(done) = builders.join_next().await {
        done.unwrap();
    }
    let Ok(fixture) = Arc::try_unwrap(fixture) else { panic!("a builder still holds the catalogue") };
    fixture.cache.gc(&[GcPolicy(PruneOptions { all: true, ..PruneOptions::default() })]).await.unwrap();
    let fixture = fixture.reopen().await;
    assert_eq!(fixture.cache.disk_usage(&Default::default()).await.unwrap(), []);
    assert_eq!(fixture.reopen().await.snapshot_count().await, 0);
}
