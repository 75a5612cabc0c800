//! Broken, slow, lying and hostile registries.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use kiln_content::testing::MemoryStore;
use kiln_content::{ContentStore, ContentStoreExt, Descriptor, LocalStore, media_type};
use kiln_digest::Digest;
use kiln_registry::{Access, Config, Error, HostConfig, Kind, Observer, PushOptions, Reference, Registry};

use crate::server::{Reply, Request, Server};

const MANIFEST: &str = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},"layers":[]}"#;

pub(crate) fn config() -> Config {
    let mut config = Config::default();
    config.retry_pause = Duration::from_millis(1);
    config.retry_limit = Duration::from_millis(8);
    config.stall_timeout = Duration::from_millis(200);
    config
}

pub(crate) fn reference(server: &Server, rest: &str) -> Reference {
    Reference::parse(&format!("{}/{rest}", server.address)).unwrap()
}

pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(current) = cause {
        text.push_str(&format!(": {current}"));
        cause = current.source();
    }
    text
}

fn blob() -> Vec<u8> {
    (0..100_000_u32).map(|i| (i * 7 % 251) as u8).collect()
}

/// A host whose first part of the configuration lists `mirrors`.
fn with_mirrors(mut config: Config, origin: &Server, mirrors: &[&Server]) -> Config {
    let entry = HostConfig {
        mirrors: mirrors.iter().map(|mirror| mirror.address.clone()).collect(),
        ..HostConfig::default()
    };
    config.hosts = BTreeMap::from([(origin.address.clone(), entry)]);
    config
}

fn good_manifest(request: &Request) -> Reply {
    match request.target.contains("/manifests/") {
        true => Reply::ok(MANIFEST)
            .header("Content-Type", media_type::OCI_MANIFEST)
            .header("Docker-Content-Digest", Digest::of(MANIFEST)),
        false => Reply::new(404),
    }
}

/// Resolves `a/b:t` and shows what came of it and what was asked.
async fn check_resolve(handler: impl Fn(&Request) -> Reply + Send + Sync + 'static, want: &str) {
    let server = Server::start(handler).await;
    let registry = Registry::new(config());
    let got = match registry.resolve(&reference(&server, "a/b:t"), Access::anonymous()).await {
        Ok(found) => {
            let same = found.digest == Digest::of(MANIFEST);
            format!("{} {} {}", found.media_type, found.size, if same { "same" } else { "other" })
        }
        Err(error) => format!("{:?}: {}", error.kind(), chain(&error)),
    };
    let got = format!("{}\n{}", got.replace(&server.address, "HOST"), server.lines().join("\n"));
    assert_eq!(got, want);
}

#[tokio::test]
async fn a_head_is_enough() {
    check_resolve(
        good_manifest,
        "application/vnd.oci.image.manifest.v1+json 246 same\nHEAD /v2/a/b/manifests/t",
    )
    .await;
}

#[tokio::test]
async fn without_a_digest_the_manifest_is_read() {
    check_resolve(
        |request| match request.method.as_str() {
            "HEAD" => Reply::ok(MANIFEST).header("Content-Type", media_type::OCI_MANIFEST),
            _ => Reply::ok(MANIFEST),
        },
        "application/vnd.oci.image.manifest.v1+json 246 same\n\
         HEAD /v2/a/b/manifests/t\nGET /v2/a/b/manifests/t",
    )
    .await;
}

#[tokio::test]
async fn a_host_without_head_is_asked_by_get() {
    check_resolve(
        |request| match request.method.as_str() {
            "HEAD" => Reply::new(405),
            _ => good_manifest(request),
        },
        "application/vnd.oci.image.manifest.v1+json 246 same\n\
         HEAD /v2/a/b/manifests/t\nGET /v2/a/b/manifests/t",
    )
    .await;
}

#[tokio::test]
async fn missing_is_not_found() {
    check_resolve(|_| Reply::new(404), "NotFound: HOST/a/b:t: not found\nHEAD /v2/a/b/manifests/t").await;
}

#[tokio::test]
async fn forbidden_is_explained() {
    check_resolve(
        |_| Reply::new(403).body(r#"{"errors":[{"code":"DENIED","message":"your address is not welcome"}]}"#),
        "Denied: unexpected status from GET request to http://HOST/v2/a/b/manifests/t: 403 Forbidden: \
         denied: your address is not welcome\nHEAD /v2/a/b/manifests/t\nGET /v2/a/b/manifests/t",
    )
    .await;
}

#[tokio::test]
async fn a_server_error_is_retried() {
    check_resolve(
        |request| if request.nth == 0 { Reply::new(503) } else { good_manifest(request) },
        "application/vnd.oci.image.manifest.v1+json 246 same\n\
         HEAD /v2/a/b/manifests/t\nHEAD /v2/a/b/manifests/t",
    )
    .await;
    check_resolve(
        |request| if request.nth < 3 { Reply::new(502) } else { good_manifest(request) },
        "application/vnd.oci.image.manifest.v1+json 246 same\n\
         HEAD /v2/a/b/manifests/t\nHEAD /v2/a/b/manifests/t\nHEAD /v2/a/b/manifests/t\nHEAD /v2/a/b/manifests/t",
    )
    .await;
}

#[tokio::test]
async fn a_busy_server_is_asked_again_a_few_times() {
    check_resolve(
        |request| {
            if request.nth < 2 { Reply::new(429).header("Retry-After", 0) } else { good_manifest(request) }
        },
        "application/vnd.oci.image.manifest.v1+json 246 same\n\
         HEAD /v2/a/b/manifests/t\nHEAD /v2/a/b/manifests/t\nHEAD /v2/a/b/manifests/t",
    )
    .await;
}

#[tokio::test]
async fn redirects_end() {
    let server = Server::start(|request| Reply::new(307).header("Location", &request.target)).await;
    let registry = Registry::new(config());
    let error = registry.resolve(&reference(&server, "a/b:t"), Access::anonymous()).await.unwrap_err();
    assert!(error.to_string().contains("stopped after 10 redirects"), "{error}");
    assert_eq!(server.lines().len(), 11);
}

#[tokio::test]
async fn huge_and_lying_manifests_are_refused() {
    check_resolve(
        |_| {
            Reply::new(200)
                .length(1 << 40)
                .header("Content-Type", media_type::OCI_MANIFEST)
                .header("Docker-Content-Digest", Digest::of("x"))
        },
        "Other: `HOST/a/b:t` has 1099511627776 bytes or more, the limit is 4194304\nHEAD /v2/a/b/manifests/t",
    )
    .await;
    check_resolve(
        |_| Reply::new(200).length(1 << 40),
        "Other: `http://HOST/v2/a/b/manifests/t` has 1099511627776 bytes or more, the limit is 4194304\n\
         HEAD /v2/a/b/manifests/t\nGET /v2/a/b/manifests/t",
    )
    .await;
    check_resolve(
        |_| good_manifest_with_digest("sha256:zz"),
        "Other: invalid response from `http://HOST/v2/a/b/manifests/t`: \"sha256:zz\" in header not a valid \
         digest\nHEAD /v2/a/b/manifests/t",
    )
    .await;
}

fn good_manifest_with_digest(digest: &str) -> Reply {
    Reply::ok(MANIFEST)
        .header("Content-Type", media_type::OCI_MANIFEST)
        .header("Docker-Content-Digest", digest)
}

#[tokio::test]
async fn a_wrong_manifest_is_not_taken_for_its_digest() {
    let server = Server::start(|_| Reply::ok(MANIFEST.replace('2', "3"))).await;
    let registry = Registry::new(config());
    let descriptor = Descriptor::of(media_type::OCI_MANIFEST, MANIFEST.as_bytes());
    let error =
        registry.read(&reference(&server, "a/b:t"), &descriptor, Access::anonymous()).await.unwrap_err();
    assert!(matches!(error, Error::DigestMismatch { .. }), "{error}");
}

#[tokio::test]
async fn an_unknown_address_fails_at_once() {
    let server = Server::start(|_| Reply::new(200)).await;
    let reference = reference(&server, "a:b");
    drop(server);
    let registry = Registry::new(config());
    let error = registry.resolve(&reference, Access::anonymous()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Other);
    assert!(chain(&error).contains("failed to do request: HEAD"), "{}", chain(&error));
}

#[tokio::test]
async fn a_good_mirror_is_preferred_and_told_whose_content_it_is() {
    let origin = Server::start(|_| Reply::new(500)).await;
    let mirror = Server::start(good_manifest).await;
    let registry = Registry::new(with_mirrors(config(), &origin, &[&mirror]));
    registry.resolve(&reference(&origin, "a/b:t"), Access::anonymous()).await.unwrap();
    let ns = origin.address.replace(':', "%3A");
    assert_eq!(mirror.lines(), [format!("HEAD /v2/a/b/manifests/t?ns={ns}")]);
    assert!(origin.lines().is_empty());
}

#[tokio::test]
async fn a_bad_mirror_is_passed_over() {
    for status in [401, 404, 500, 503] {
        let origin = Server::start(good_manifest).await;
        let mirror = Server::start(move |_| Reply::new(status)).await;
        let registry = Registry::new(with_mirrors(config(), &origin, &[&mirror]));
        registry.resolve(&reference(&origin, "a/b:t"), Access::anonymous()).await.unwrap();
        assert_eq!(mirror.lines().len(), 1, "{status}");
        assert_eq!(origin.lines(), ["HEAD /v2/a/b/manifests/t"], "{status}");
    }
}

/// Serves `bytes`, or the part of them from where the range starts.
fn ranged(request: &Request, bytes: &[u8]) -> Reply {
    match start(request) {
        0 => Reply::ok(bytes.to_vec()),
        at => Reply::new(206)
            .header("Content-Range", format!("bytes {at}-{}/{}", bytes.len() - 1, bytes.len()))
            .body(bytes[at..].to_vec()),
    }
}

fn start(request: &Request) -> usize {
    request
        .header("range")
        .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok())
        .unwrap_or(0)
}

/// Fetches the blob and returns the offsets it was asked from.
async fn check_fetch(
    handler: impl Fn(&Request) -> Reply + Send + Sync + 'static,
) -> Result<Vec<usize>, Error> {
    let server = Server::start(handler).await;
    let registry = Registry::new(config());
    let store = MemoryStore::new();
    let descriptor = Descriptor::of(media_type::OCI_LAYER, &blob());
    let fetched =
        registry.fetch_into(&store, &reference(&server, "a/b:t"), &descriptor, Access::anonymous()).await;
    let stored = store.info(&descriptor.digest).await.unwrap().is_some();
    assert_eq!(fetched.is_ok(), stored);
    fetched.map(|()| server.requests().iter().map(start).collect())
}

#[tokio::test]
async fn a_broken_transfer_goes_on_where_it_stopped() {
    let offsets = check_fetch(|request| match request.nth {
        0 => Reply::new(200).length(100_000).body(blob()[..30_000].to_vec()),
        _ => ranged(request, &blob()),
    })
    .await
    .unwrap();
    assert_eq!(offsets, [0, 30_000]);
}

#[tokio::test]
async fn a_stalled_transfer_goes_on_where_it_stopped() {
    let offsets = check_fetch(|request| match request.nth {
        0 => Reply::new(200).length(100_000).body(blob()[..30_000].to_vec()).stall(),
        _ => ranged(request, &blob()),
    })
    .await
    .unwrap();
    assert_eq!(offsets, [0, 30_000]);
}

#[tokio::test]
async fn a_later_call_goes_on_where_an_earlier_one_gave_up() {
    let dir = tempfile::tempdir().unwrap();
    // What was received before is right, wrong, or all of it.
    for (before, want) in
        [(blob()[..80_000].to_vec(), vec![80_000]), (vec![7; 80_000], vec![80_000, 0]), (blob(), vec![])]
    {
        let descriptor = Descriptor::of(media_type::OCI_LAYER, &blob());
        let store = LocalStore::open(dir.path()).unwrap();
        let mut writer = store.resume(&descriptor).await.unwrap();
        writer.write(before.into()).await.unwrap();
        drop((writer, store));
        let store = LocalStore::open(dir.path()).unwrap();
        let server = Server::start(|request| ranged(request, &blob())).await;
        let registry = Registry::new(config());
        let reference = reference(&server, "a/b:t");
        registry.fetch_into(&store, &reference, &descriptor, Access::anonymous()).await.unwrap();
        assert!(store.is_intact(&descriptor.digest).await.unwrap());
        assert_eq!(server.requests().iter().map(start).collect::<Vec<_>>(), want);
        store.delete(&descriptor.digest).await.unwrap();
    }
}

#[tokio::test]
async fn a_host_that_ignores_ranges_sends_all_again() {
    let offsets = check_fetch(|request| match request.nth {
        0 => Reply::new(200).length(100_000).body(blob()[..30_000].to_vec()),
        _ => Reply::ok(blob()),
    })
    .await
    .unwrap();
    assert_eq!(offsets, [0, 30_000]);
}

#[tokio::test]
async fn a_host_that_sends_another_range_is_refused() {
    let error = check_fetch(|request| match request.nth {
        0 => Reply::new(200).length(100_000).body(blob()[..30_000].to_vec()),
        _ => Reply::new(206).header("Content-Range", "bytes 5-9/10").body("xxxxx"),
    })
    .await
    .unwrap_err();
    assert!(error.to_string().contains("it is not the range"), "{error}");
}

#[tokio::test]
async fn wrong_bytes_are_not_stored() {
    let error = check_fetch(|_| Reply::ok(vec![0; 100_000])).await.unwrap_err();
    assert!(matches!(error, Error::DigestMismatch { .. }), "{error}");
    let error = check_fetch(|_| Reply::ok(vec![0; 100_001])).await.unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");
    let error = check_fetch(|_| Reply::ok(blob()[..9].to_vec())).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Temporary, "{error}");
}

#[tokio::test]
async fn bytes_of_a_lying_mirror_do_not_spoil_the_origin() {
    let origin = Server::start(|request| ranged(request, &blob())).await;
    let broken = Server::start(|_| Reply::new(200).length(100_000).body(vec![9; 100])).await;
    let wrong = Server::start(|_| Reply::ok(vec![0; 100_000])).await;
    for mirror in [&broken, &wrong] {
        let registry = Registry::new(with_mirrors(config(), &origin, &[mirror]));
        let store = MemoryStore::new();
        let descriptor = Descriptor::of(media_type::OCI_LAYER, &blob());
        registry
            .fetch_into(&store, &reference(&origin, "a/b:t"), &descriptor, Access::anonymous())
            .await
            .unwrap();
    }
}

#[derive(Debug, Default)]
struct Lines(Mutex<Vec<String>>);

impl Observer for Lines {
    fn received(&self, _: &Digest, current: u64, total: u64) {
        if current == total {
            self.0.lock().unwrap().push(format!("received {total}"));
        }
    }

    fn log(&self, line: &str) {
        self.0.lock().unwrap().push(line.trim_end().to_owned());
    }
}

#[tokio::test]
async fn retries_are_told() {
    let server = Server::start(|request| match request.nth {
        0 | 1 => Reply::new(500),
        _ => Reply::ok(blob()),
    })
    .await;
    let lines = Lines::default();
    let descriptor = Descriptor::of(media_type::OCI_LAYER, &blob());
    Registry::new(config())
        .fetch_into(
            &MemoryStore::new(),
            &reference(&server, "a/b:t"),
            &descriptor,
            Access::anonymous().observed(&lines),
        )
        .await
        .unwrap();
    let digest = descriptor.digest;
    assert_eq!(
        *lines.0.lock().unwrap(),
        [
            format!(
                "error: unexpected status from GET request to http://{}/v2/a/b/blobs/{digest}: 500 Internal \
                 Server Error",
                server.address
            ),
            "retrying in 1ms".to_owned(),
            "received 100000".to_owned(),
        ]
    );
}

#[tokio::test]
async fn the_addresses_of_a_descriptor_come_first_and_see_no_credentials() {
    let elsewhere = Server::start(|request| {
        assert_eq!(request.header("authorization"), None);
        Reply::ok(blob())
    })
    .await;
    let origin = Server::start(|_| Reply::new(500)).await;
    let mut descriptor = Descriptor::of(media_type::OCI_LAYER, &blob());
    descriptor.urls = vec![
        "ftp://x/".to_owned(),
        "not an address".to_owned(),
        format!("http://u:p@{}/layer", elsewhere.address),
    ];
    Registry::new(config())
        .fetch_into(&MemoryStore::new(), &reference(&origin, "a/b:t"), &descriptor, Access::anonymous())
        .await
        .unwrap();
    assert_eq!(elsewhere.lines(), ["GET /layer"]);
    assert!(origin.lines().is_empty());
}

#[tokio::test]
async fn an_upload_that_the_host_loses_is_sent_again() {
    let server = Server::start(|request| match (request.method.as_str(), request.nth) {
        ("HEAD", _) => Reply::new(404),
        ("POST", _) => Reply::new(202).header("Location", "/v2/a/b/blobs/uploads/1?state=x"),
        ("PUT", 0) if request.target.contains("uploads") => Reply::new(500),
        _ => Reply::new(201),
    })
    .await;
    let store = MemoryStore::new();
    store.put("{}".into()).await.unwrap();
    store.put(MANIFEST.into()).await.unwrap();
    let root = Descriptor::of(media_type::OCI_MANIFEST, MANIFEST.as_bytes());
    Registry::new(config())
        .push(&reference(&server, "a/b:t"), &root, &store, PushOptions::default(), Access::anonymous())
        .await
        .unwrap();
    let digest = Digest::of("{}").to_string();
    let put = format!("PUT /v2/a/b/blobs/uploads/1?state=x&digest={}", digest.replace(':', "%3A"));
    assert_eq!(
        server.lines(),
        [
            &format!("HEAD /v2/a/b/blobs/{digest}"),
            "POST /v2/a/b/blobs/uploads/",
            &put,
            &put,
            "HEAD /v2/a/b/manifests/t",
            "PUT /v2/a/b/manifests/t",
        ]
    );
    let bodies: Vec<_> = server.requests().iter().map(|request| request.body.len()).collect();
    assert_eq!(bodies, [0, 0, 2, 2, 0, MANIFEST.len()]);
}

#[tokio::test]
async fn a_push_of_what_is_not_there_says_so() {
    let server = Server::start(|_| Reply::new(404)).await;
    let root = Descriptor::of(media_type::OCI_MANIFEST, MANIFEST.as_bytes());
    let error = Registry::new(config())
        .push(
            &reference(&server, "a/b:t"),
            &root,
            &MemoryStore::new(),
            PushOptions::default(),
            Access::anonymous(),
        )
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Supply { .. }), "{error}");
    assert!(server.lines().is_empty());
}
