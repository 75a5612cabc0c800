//! A directory of a client, received again and again.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use kiln_cache::{ContentHeader, ContentSelector, EntryKind, NoProvider, RecordType, Ref};
use kiln_digest::Digest;
use kiln_session::attach::Attachments;
use kiln_solver::VertexProgress;
use kiln_source::local::{LocalRequest, Locals};

use crate::client::{Clients, directory};
use crate::image::Bench;

fn write(dir: &Path, name: &str, content: &str) {
    let path = dir.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, content).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
}

fn request(attrs: &[(&str, &str)]) -> LocalRequest {
    let attrs: std::collections::BTreeMap<String, String> =
        attrs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    LocalRequest::from_attrs("ctx", &attrs).unwrap()
}

async fn receive(bench: &Bench, clients: &Clients, request: &LocalRequest) -> Result<Ref, String> {
    let locals = Locals::new(bench.cache.clone());
    let progress = VertexProgress::discard();
    locals.snapshot(request, &clients.lender(), &progress).await.map_err(|error| error.to_string())
}

async fn files(received: &Ref) -> Vec<String> {
    let mount = received.mount(&NoProvider).await.unwrap();
    let mounted = mount.with_temp().unwrap();
    let mut found = Vec::new();
    let mut open = vec![mounted.path().to_owned()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => open.push(path),
                false => found.push(path.strip_prefix(mounted.path()).unwrap().display().to_string()),
            }
        }
    }
    found.sort();
    found
}

async fn digest(received: &Ref, path: &str) -> Digest {
    let selector = ContentSelector { path: path.to_owned(), ..ContentSelector::default() };
    received.content_digest(&[selector], &NoProvider).await.unwrap()
}

#[tokio::test]
async fn a_directory_is_kept_and_updated() {
    let bench = Bench::new().await;
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "a.txt", "data");
    write(dir.path(), "sub/b.txt", "b");
    let clients = Clients::default().open("one", directory(dir.path()));
    let request = request(&[]);

    let first = receive(&bench, &clients, &request).await.unwrap();
    assert_eq!(first.description(), "local source for ctx");
    assert_eq!(first.record_type(), RecordType::LocalSource);
    assert_eq!(files(&first).await, ["a.txt", "sub/b.txt"]);
    let header = ContentHeader {
        kind: EntryKind::File,
        mode: 0o644,
        uid: 0,
        gid: 0,
        size: 4,
        link: Vec::new(),
        device: (0, 0),
        xattrs: Vec::new(),
    };
    let mut hasher = header.hasher();
    hasher.update(b"data");
    // One selector's digest is wrapped once more.
    let wrapped = Digest::of(hasher.finish().to_string());
    assert_eq!(digest(&first, "/a.txt").await, wrapped);
    let (id, whole, sub) = (first.id().clone(), digest(&first, "/").await, digest(&first, "/sub").await);
    drop(first);

    let second = receive(&bench, &clients, &request).await.unwrap();
    assert_eq!((second.id(), digest(&second, "/").await), (&id, whole));
    drop(second);

    write(dir.path(), "a.txt", "other");
    std::fs::remove_dir_all(dir.path().join("sub")).unwrap();
    write(dir.path(), "sub/b.txt", "b");
    write(dir.path(), "sub/c.txt", "c");
    let third = receive(&bench, &clients, &request).await.unwrap();
    assert_eq!(third.id(), &id);
    assert_eq!(files(&third).await, ["a.txt", "sub/b.txt", "sub/c.txt"]);
    assert_ne!(digest(&third, "/a.txt").await, wrapped);
    assert_ne!(digest(&third, "/sub").await, sub);
    drop(third);

    std::fs::remove_file(dir.path().join("sub/c.txt")).unwrap();
    let fourth = receive(&bench, &clients, &request).await.unwrap();
    assert_eq!(digest(&fourth, "/sub").await, sub);
    drop(fourth);
    bench.cache.close().await.unwrap();
}

#[tokio::test]
async fn one_in_use_is_left_alone() {
    let bench = Bench::new().await;
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "a.txt", "1");
    let clients = Clients::default().open("one", directory(dir.path()));
    let first = receive(&bench, &clients, &request(&[])).await.unwrap();
    write(dir.path(), "a.txt", "22");
    let second = receive(&bench, &clients, &request(&[])).await.unwrap();
    assert_ne!(first.id(), second.id());
    let (before, after) = (digest(&first, "/a.txt").await, digest(&second, "/a.txt").await);
    assert_ne!(before, after);
    drop((first, second));
    bench.cache.close().await.unwrap();
}

#[tokio::test]
async fn only_what_matches_is_received() {
    let bench = Bench::new().await;
    let dir = tempfile::tempdir().unwrap();
    for name in ["a.txt", "b.txt", "sub/a.txt", "sub/deep/c.txt"] {
        write(dir.path(), name, name);
    }
    let clients = Clients::default().open("one", directory(dir.path()));
    for (attrs, want) in [
        (vec![("local.includepattern", r#"["sub"]"#)], vec!["sub/a.txt", "sub/deep/c.txt"]),
        (vec![("local.excludepatterns", r#"["**/a.txt"]"#)], vec!["b.txt", "sub/deep/c.txt"]),
        (vec![("local.followpaths", r#"["b.txt"]"#)], vec!["b.txt"]),
    ] {
        let received = receive(&bench, &clients, &request(&attrs)).await.unwrap();
        assert_eq!(files(&received).await, want);
    }
    bench.cache.close().await.unwrap();
}

#[tokio::test]
async fn whoever_has_it_is_asked() {
    let bench = Bench::new().await;
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "a.txt", "1");
    let clients = Clients::default().open("nothing", Attachments::new()).open("other", directory(dir.path()));
    for attrs in [vec![], vec![("local.session", "nothing")], vec![("local.session", "other")]] {
        let received = receive(&bench, &clients, &request(&attrs)).await.unwrap();
        assert_eq!(files(&received).await, ["a.txt"]);
    }

    let nobody = Clients::default().open("nothing", Attachments::new());
    let error = receive(&bench, &nobody, &request(&[])).await.unwrap_err();
    assert_eq!(error, "no local sources enabled");
    let missing = LocalRequest::from_attrs("x", &std::collections::BTreeMap::new()).unwrap();
    let lacking = Clients::default().open("other", directory(dir.path()));
    let error = receive(&bench, &lacking, &missing).await.unwrap_err();
    assert_eq!(error, r#"no access allowed to dir "x""#);
    bench.cache.close().await.unwrap();
}
