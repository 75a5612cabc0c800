use kiln_cache::{
    ContentChange, ContentHeader, ContentSelector, EntryKind, MutableRef, NoProvider, RecordOptions,
    RecordType, Ref, nil_content_digest,
};
use kiln_digest::Digest;

use crate::support::{Fixture, write};

fn path(path: &str) -> ContentSelector {
    ContentSelector { path: path.into(), ..ContentSelector::default() }
}

async fn digest(one: &Ref, selectors: &[ContentSelector]) -> Digest {
    one.content_digest(selectors, &NoProvider).await.unwrap()
}

fn file(text: &str) -> ContentChange {
    let header = ContentHeader {
        kind: EntryKind::File,
        mode: 0o644,
        uid: 0,
        gid: 0,
        size: text.len() as u64,
        link: Vec::new(),
        device: (0, 0),
        xattrs: Vec::new(),
    };
    let mut hasher = header.hasher();
    hasher.update(text.as_bytes());
    ContentChange::Entry { header, digest: Some(hasher.finish()) }
}

fn context() -> RecordOptions {
    RecordOptions::new("local source for context", RecordType::LocalSource)
}

async fn put(source: &MutableRef, name: &str, text: &str) {
    write(&source.mount().await.unwrap(), name, text);
    source.changes().push(name, file(text));
}

#[tokio::test]
async fn the_part_that_counts_is_what_all_layers_show() {
    let fixture = Fixture::new().await;
    let base = fixture.layer(None, "dir/a", "1").await;
    let same = fixture.layer(Some(&base), "other", "2").await;
    let changed = fixture.layer(Some(&base), "dir/a", "2").await;
    let flat = fixture.layer(None, "dir/a", "2").await;
    let selectors = [path("/dir/a")];
    assert_eq!(digest(&base, &selectors).await, digest(&same, &selectors).await);
    assert_ne!(digest(&base, &selectors).await, digest(&changed, &selectors).await);
    assert_eq!(digest(&flat, &selectors).await, digest(&changed, &selectors).await);
    assert_ne!(digest(&base, &[]).await, digest(&same, &[]).await);
    let error = base.content_digest(&[path("/nope")], &NoProvider).await.unwrap_err();
    assert_eq!(error.to_string(), "\"/nope\": not found");
    let file = digest(&base, &selectors).await;
    let alone = Digest::of("361186de53fb6206f6f1fcff589b597967bdb453b52852bb1caf4b316df10b22");
    assert_ne!(file, alone, "one selector is wrapped too");
}

#[tokio::test]
async fn answers_are_kept_with_the_record() {
    let fixture = Fixture::new().await;
    let base = fixture.layer(None, "a", "1").await;
    fixture.save("base", &base).await;
    let first = digest(&base, &[path("/a")]).await;
    drop(base);
    let fixture = fixture.reopen().await;
    let base = fixture.find("base").await.unwrap();
    // The answer needs no files any more.
    let directory = fixture.snapshots.diff_dir(base.layers()[0].snapshot.as_ref().unwrap()).await.unwrap();
    std::fs::remove_file(directory.join("a")).unwrap();
    assert_eq!(digest(&base, &[path("/a")]).await, first);
}

#[tokio::test]
async fn a_received_context_follows_its_changes() {
    let fixture = Fixture::new().await;
    let source = fixture.cache.local_source("ctx", context()).await.unwrap();
    put(&source, "a", "1").await;
    put(&source, "b", "2").await;
    let view = source.commit().await.unwrap();
    let (whole, a, b) =
        (digest(&view, &[]).await, digest(&view, &[path("a")]).await, digest(&view, &[path("b")]).await);
    drop(view);

    let fixture = fixture.reopen().await;
    let source = fixture.cache.local_source("ctx", context()).await.unwrap();
    put(&source, "b", "3").await;
    let view = source.commit().await.unwrap();
    assert_eq!(digest(&view, &[path("a")]).await, a);
    assert_ne!(digest(&view, &[path("b")]).await, b);
    assert_ne!(digest(&view, &[]).await, whole);
    drop(view);

    let fixture = fixture.reopen().await;
    let source = fixture.cache.local_source("ctx", context()).await.unwrap();
    put(&source, "b", "2").await;
    let view = source.commit().await.unwrap();
    assert_eq!(digest(&view, &[]).await, whole, "the same files as at first");
    drop(view);

    let other = fixture.cache.local_source("other", context()).await.unwrap();
    write(&other.mount().await.unwrap(), "a", "1");
    write(&other.mount().await.unwrap(), "b", "2");
    let view = other.commit().await.unwrap();
    assert_eq!(digest(&view, &[]).await, whole, "without a list of changes the files are read");
}

#[tokio::test]
async fn nothing_but_the_root_is_in_an_empty_state() {
    assert_eq!(nil_content_digest(&[]).unwrap(), Digest::of(Digest::of("").to_string()));
    let error = nil_content_digest(&[path("a")]).unwrap_err();
    assert_eq!(error.to_string(), "a: no such file or directory");
}

#[tokio::test]
async fn an_unchanged_context_keeps_its_answers() {
    let fixture = Fixture::new().await;
    let source = fixture.cache.local_source("ctx", context()).await.unwrap();
    put(&source, "a", "1").await;
    put(&source, "b", "2").await;
    let view = source.commit().await.unwrap();
    let a = digest(&view, &[path("a")]).await;
    drop(view);
    let source = fixture.cache.local_source("ctx", context()).await.unwrap();
    source.changes();
    let view = source.commit().await.unwrap();
    assert_eq!(digest(&view, &[path("a")]).await, a);
    let b = digest(&view, &[path("b")]).await;
    drop(view);
    let source = fixture.cache.local_source("ctx", context()).await.unwrap();
    source.changes().push("b", ContentChange::Removed);
    std::fs::remove_file(source.mount().await.unwrap().with_temp().unwrap().path().join("b")).unwrap();
    put(&source, "a", "2").await;
    let view = source.commit().await.unwrap();
    assert_ne!(digest(&view, &[path("a")]).await, a);
    assert!(view.content_digest(&[path("b")], &NoProvider).await.is_err());
    drop(view);
    let source = fixture.cache.local_source("ctx", context()).await.unwrap();
    put(&source, "b", "2").await;
    let view = source.commit().await.unwrap();
    assert_eq!(digest(&view, &[path("b")]).await, b);
}
