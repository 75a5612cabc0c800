//! Every service, from the daemon's call to the client's provider and back.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt as _;
use kiln_digest::Digest;
use kiln_rootdir::Root;
use kiln_session::attach::{
    AgentSource, Attachments, AuthProvider, BlobStore, ContentProvider, DockerConfig, FileSendTargets,
    FileSyncProvider, SecretSource, SecretsProvider, SshProvider, Target,
};
use kiln_session::blobs::Blobs;
use kiln_session::filesend::{self, Sent};
use kiln_session::filesync::{self, DirRequest};
use kiln_session::fsutil::{DirTree, ReceiveOptions, WalkOptions};
use kiln_session::{Error, FixedWaiters, Lender, Sessions, Waiters, auth, secrets, ssh};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::harness::{Loop, attach, listing, root};

fn with<S>(attachments: Attachments, (service, methods): (S, &'static [&'static str])) -> Attachments
where
    S: tower::Service<
            http::Request<tonic::body::Body>,
            Response = http::Response<tonic::body::Body>,
            Error = std::convert::Infallible,
        > + tonic::server::NamedService
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send + 'static,
{
    attachments.add(service, methods)
}

#[tokio::test(flavor = "multi_thread")]
async fn directories() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::create_dir(from.path().join("dir")).unwrap();
    fs::write(from.path().join("dir/ü"), "x").unwrap();
    fs::write(from.path().join("big"), vec![b'x'; 20 << 20]).unwrap();
    let dirs = BTreeMap::from([("ctx".to_owned(), from.path().to_owned())]);
    let with_dirs = with(Attachments::new(), FileSyncProvider::new(dirs).into_service());
    let it = Loop::open(with_dirs).await;

    let request = DirRequest::new("ctx");
    let stats =
        filesync::receive(&it.session, &request, root(to.path()), ReceiveOptions::default()).await.unwrap();
    assert_eq!((stats.entries, stats.requested, stats.bytes), (3, 2, (20 << 20) + 1));
    assert_eq!(listing(to.path()), listing(from.path()));

    let mut request = DirRequest::new("ctx");
    request.include = vec!["dir/ü".to_owned()];
    filesync::receive(&it.session, &request, root(to.path()), ReceiveOptions::default()).await.unwrap();
    assert_eq!(listing(to.path()).into_keys().collect::<Vec<_>>(), ["dir", "dir/ü"]);

    let mut bad = DirRequest::new("ctx");
    bad.exclude = vec!["[".to_owned()];
    for (request, want) in [
        (DirRequest::new("other"), r#"no access allowed to dir "other""#),
        (bad, "invalid excludepatterns: [[]: syntax error in pattern"),
    ] {
        let outcome =
            filesync::receive(&it.session, &request, root(to.path()), ReceiveOptions::default()).await;
        assert_eq!(outcome.unwrap_err().to_string(), want);
    }
    let none = Loop::open(Attachments::new()).await;
    let outcome =
        filesync::receive(&none.session, &request, root(to.path()), ReceiveOptions::default()).await;
    assert!(matches!(outcome, Err(Error::NoLocalSources)));
}

#[tokio::test(flavor = "multi_thread")]
async fn results() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::create_dir(from.path().join("d")).unwrap();
    fs::write(from.path().join("d/f"), "content").unwrap();
    let merged = to.path().join("merged");
    let mirrored = to.path().join("mirrored");
    for dir in [&merged, &mirrored] {
        fs::create_dir(dir).unwrap();
        fs::write(dir.join("keep"), "").unwrap();
    }
    let shown = Arc::new(Mutex::new(None));
    let seen = shown.clone();
    let file = to.path().join("file");
    let path = file.clone();
    let targets = FileSendTargets::new(BTreeMap::from([
        (0, Target::dir(&merged)),
        (1, Target::Dir { path: mirrored.clone(), delete: true }),
        (
            2,
            Target::opened_by(move |metadata| {
                *seen.lock().unwrap() = Some(metadata.clone());
                Ok(Some(Box::new(fs::File::create(&path)?)))
            }),
        ),
        (3, Target::opened_by(|_| Ok(None))),
    ]));
    let it = Loop::open(with(Attachments::new(), targets.into_service())).await;
    let tree = || Arc::new(DirTree::new(Root::open(from.path()).unwrap(), WalkOptions::default()));

    assert_eq!(filesend::send_dir(&it.session, 0, tree(), false).await.unwrap(), Sent::Taken);
    assert_eq!(listing(&merged).into_keys().collect::<Vec<_>>(), ["d", "d/f", "keep"]);
    assert_eq!(
        filesend::send_dir(&it.session, 1, tree(), false).await.unwrap_err().to_string(),
        "local exporter mode=delete requires a BuildKit daemon with multi-platform local export support"
    );
    assert_eq!(filesend::send_dir(&it.session, 1, tree(), true).await.unwrap(), Sent::Taken);
    assert_eq!(listing(&mirrored), listing(from.path()));
    let missing = filesend::send_dir(&it.session, 9, tree(), false).await;
    assert_eq!(missing.unwrap_err().to_string(), "exporter 9 not found");

    let metadata = BTreeMap::from([("containerimage.digest".to_owned(), "sha256:abc".to_owned())]);
    let body = vec![b'y'; 5 << 20];
    let written = body.clone();
    let sent = filesend::send_file(&it.session, 2, &metadata, move |writer| {
        writer.write_all(&written)?;
        Ok(7)
    });
    assert_eq!(sent.await.unwrap(), (Sent::Taken, Some(7)));
    assert_eq!(fs::read(&file).unwrap(), body);
    assert_eq!(shown.lock().unwrap().take(), Some(metadata.clone()));
    let skipped = filesend::send_file(&it.session, 3, &metadata, move |writer| writer.write_all(&body));
    assert_eq!(skipped.await.unwrap().0, Sent::Skipped);
    let mut sink = filesend::file_sink(&it.session, 2, &metadata).unwrap();
    sink.write("abc".into()).await;
    assert_eq!(sink.finish().await.unwrap(), Sent::Taken);
    assert_eq!(fs::read(&file).unwrap(), b"abc");
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_and_credentials() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("s"), "from file").unwrap();
    fs::write(dir.path().join("config.json"), r#"{"auths":{"r.example":{"auth":"dTpw"}}}"#).unwrap();
    let sources = BTreeMap::from([
        ("file".to_owned(), SecretSource::File(dir.path().join("s"))),
        ("value".to_owned(), SecretSource::Value(b"v".to_vec())),
        ("big".to_owned(), SecretSource::Value(vec![0; 500 * 1024 + 1])),
    ]);
    let attachments = with(Attachments::new(), SecretsProvider::new(sources).into_service());
    let attachments = with(attachments, AuthProvider::new(DockerConfig::new(dir.path())).into_service());
    let it = Loop::open(attachments).await;
    assert_eq!(secrets::get(&it.session, "file").await.unwrap().unwrap(), b"from file");
    assert_eq!(secrets::get(&it.session, "value").await.unwrap().unwrap(), b"v");
    assert_eq!(secrets::get(&it.session, "none").await.unwrap(), None);
    let big = secrets::get(&it.session, "big").await.unwrap_err();
    assert_eq!(big.to_string(), "secret big too big. max size 500KiB");
    let found = auth::credentials(&it.session, "r.example").await.unwrap();
    assert_eq!((found.username.as_str(), found.secret.reveal()), ("u", "p"));
    assert_eq!(auth::token_authority(&it.session, "r.example", b"salt").await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn agents() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("agent");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let source = AgentSource { socket, raw: false };
    let provider = SshProvider::new(BTreeMap::from([("default".to_owned(), source)]));
    let it = Loop::open(with(Attachments::new(), provider.into_service())).await;
    ssh::check(&it.session, "default").await.unwrap();
    let unknown = ssh::check(&it.session, "other").await.unwrap_err();
    assert_eq!(unknown.to_string(), "unset ssh forward key other");

    let (mut build, daemon) = tokio::io::duplex(1024);
    let agent = async {
        let (mut connection, _) = listener.accept().await.unwrap();
        let mut request = [0; 5];
        connection.read_exact(&mut request).await.unwrap();
        // Only the listing of keys gets here.
        assert_eq!(request, [0, 0, 0, 1, 11]);
        connection.write_all(&[0, 0, 0, 2, 12, 9]).await.unwrap();
    };
    let build = async {
        // Removing all keys is refused, listing them is not.
        build.write_all(&[0, 0, 0, 1, 19]).await.unwrap();
        let mut refusal = [0; 5];
        build.read_exact(&mut refusal).await.unwrap();
        assert_eq!(refusal, [0, 0, 0, 1, 5]);
        build.write_all(&[0, 0, 0, 1, 11]).await.unwrap();
        let mut answer = [0; 6];
        build.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer, [0, 0, 0, 2, 12, 9]);
        drop(build);
    };
    let (forwarded, (), ()) = tokio::join!(ssh::forward(&it.session, "default", daemon), agent, build);
    forwarded.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs() {
    let dir = tempfile::tempdir().unwrap();
    let stores = BTreeMap::from([
        ("export".to_owned(), BlobStore { dir: dir.path().to_owned(), writable: true }),
        ("oci:x".to_owned(), BlobStore { dir: dir.path().to_owned(), writable: false }),
    ]);
    let it = Loop::open(with(Attachments::new(), ContentProvider::new(stores).into_service())).await;
    let export = Blobs::new(it.session.clone(), "export");
    let content = bytes::Bytes::from(vec![7u8; 3 << 20]);
    let digest = Digest::of(&content);
    let size = content.len() as u64;
    assert_eq!(export.size(&digest).await.unwrap(), None);
    let piece = || futures::stream::iter([Ok(content.clone())]);
    export.write(&digest, size, piece()).await.unwrap();
    // A second time it is there already.
    export.write(&digest, size, piece()).await.unwrap();
    let layout = Blobs::new(it.session.clone(), "oci:x");
    assert_eq!(layout.size(&digest).await.unwrap(), Some(size));
    assert_eq!(layout.read_all(&digest, size).await.unwrap(), content);
    let mut tail = layout.read(&digest, size - 3).await.unwrap();
    assert_eq!(tail.next().await.unwrap().unwrap(), bytes::Bytes::from_static(&[7; 3]));
    assert!(tail.next().await.is_none());
    let other = Digest::of(b"other");
    let wrong = export.write(&other, size, piece()).await.unwrap_err().to_string();
    assert_eq!(wrong, format!("content has digest {digest}, not {other}"));
    assert!(layout.write(&other, size, piece()).await.is_err());
    let unknown = Blobs::new(it.session.clone(), "local:y").read(&digest, 0).await;
    assert_eq!(unknown.err().unwrap().to_string(), "unknown store local:y");
    // Nothing is left of what failed.
    assert_eq!(fs::read_dir(dir.path().join("blobs/sha256")).unwrap().count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_ends_with_its_client() {
    let it = Loop::open(Attachments::new()).await;
    assert!(it.session.supports("/GRPC.health.v1.health/check"));
    it.cut();
    it.session.closed().cancelled().await;
    let gone = it.sessions.get("one", Duration::ZERO).await.unwrap_err();
    assert_eq!(gone.to_string(), "no active session for one: context deadline exceeded");
    // Nothing of it stays.
    it.sessions.shutdown().await;
    assert!(it.sessions.is_empty());
}

#[derive(Debug, Default)]
struct Changing(Mutex<Vec<String>>);

impl Waiters for Changing {
    fn sessions(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn work_goes_on_with_another_waiter() {
    let sessions = Sessions::new();
    let one = attach(&sessions, "one", Attachments::new());
    let _two = attach(&sessions, "two", Attachments::new());
    let waiters = Arc::new(Changing(Mutex::new(vec!["one".to_owned()])));
    let lender = Lender::new(sessions.clone(), waiters.clone());
    let tries = AtomicUsize::new(0);
    let done: Result<String, Error> = lender
        .any(async |session| {
            tries.fetch_add(1, Ordering::Relaxed);
            if session.id() == "one" {
                // The client goes away in the middle, and somebody else has joined.
                waiters.0.lock().unwrap().push("two".to_owned());
                one.abort();
                session.closed().cancelled().await;
                return Err(Error::Closed { id: session.id().to_owned() });
            }
            Ok(session.id().to_owned())
        })
        .await;
    assert_eq!(done.unwrap(), "two");
    assert_eq!(tries.into_inner(), 2);
    let nobody = Lender::new(sessions, Arc::new(FixedWaiters::default()));
    let outcome: Result<(), Error> = nobody.any(async |_| Ok(())).await;
    assert_eq!(outcome.unwrap_err().to_string(), "no active sessions");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_client_is_not_waited_for_alone() {
    let sessions = Sessions::new();
    let _one = attach(&sessions, "one", Attachments::new());
    let _three = attach(&sessions, "three", Attachments::new());
    let waiters = FixedWaiters(["one", "two", "three"].map(str::to_owned).to_vec());
    let lender = Lender::new(sessions.clone(), Arc::new(waiters));
    sessions.get("one", Duration::from_secs(5)).await.unwrap();
    sessions.get("three", Duration::from_secs(5)).await.unwrap();
    let answer: Result<String, Error> = lender
        .soonest(async |session| match session.id() {
            "one" => std::future::pending().await,
            id => Ok(id.to_owned()),
        })
        .await;
    // The second has never appeared: those who are there come first.
    assert_eq!(answer.unwrap(), "three");
    let refused: Result<(), Error> =
        lender.soonest(async |session| Err(Error::Closed { id: session.id().to_owned() })).await;
    assert!(refused.is_err());
}
