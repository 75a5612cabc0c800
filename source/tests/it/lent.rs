//! Credentials and layouts of clients.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use kiln_cache::NoProvider;
use kiln_registry::Access;
use kiln_registry::testing::RegistryProcess;
use kiln_session::attach::{Attachments, AuthProvider, BlobStore, ContentProvider, DockerConfig};
use kiln_solver::VertexProgress;
use kiln_source::image::{ImageProvider, ImageRequest, Resolutions};
use kiln_source::{SessionCredentials, SessionLayouts};

use crate::client::Clients;
use crate::image::{Bench, MULTI, amd64};

const HTPASSWD: &str = "user:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";

#[tokio::test]
async fn a_password_is_lent_for_the_time_of_a_call() {
    let started = RegistryProcess::start_with(|dir| {
        std::fs::write(dir.join("htpasswd"), HTPASSWD)?;
        Ok(format!("auth:\n  htpasswd:\n    realm: kiln\n    path: {}/htpasswd\n", dir.display()))
    });
    let Some(process) = started.unwrap() else { return };
    let docker = tempfile::tempdir().unwrap();
    // `user:secret`
    let config = format!(r#"{{"auths":{{"{}":{{"auth":"dXNlcjpzZWNyZXQ="}}}}}}"#, process.address());
    std::fs::write(docker.path().join("config.json"), config).unwrap();
    let (service, methods) = AuthProvider::new(DockerConfig::new(docker.path())).into_service();
    let with = Clients::default().open("with", Attachments::new().add(service, methods));
    let without = Clients::default().open("without", Attachments::new());

    let bench = Bench::new().await;
    let request = ImageRequest::new(&process.reference("a/b:t").unwrap().to_string(), amd64()).unwrap();
    for (clients, want) in [
        // The registry is empty, which only those who may look are told.
        (with, "a/b:t: not found"),
        (without, "pull access denied, repository does not exist or may require authorization"),
        (Clients::default(), "pull access denied, repository does not exist or may require authorization"),
    ] {
        let credentials = SessionCredentials::new(clients.lender());
        let error =
            bench.images.resolve_root(&request, Access::new(&credentials)).await.unwrap_err().to_string();
        assert!(error.ends_with(want), "{error}");
    }

    // Whoever may not look stands before who may.
    let (service, methods) = AuthProvider::new(DockerConfig::new(docker.path())).into_service();
    let both = Clients::default()
        .open("without", Attachments::new())
        .open("with", Attachments::new().add(service, methods));
    let credentials = SessionCredentials::new(both.lender());
    let (memory, progress) = (Resolutions::new(), VertexProgress::discard());
    let resolved = bench.images.resolve(&request, &memory, Access::new(&credentials), &(), &progress).await;
    let error = resolved.unwrap_err().to_string();
    assert!(error.ends_with("a/b:t: not found"), "{error}");
}

#[tokio::test]
async fn a_layout_is_read_from_the_client() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/multi");
    let stores = BTreeMap::from([("oci:store".to_owned(), BlobStore { dir, writable: false })]);
    let (service, methods) = ContentProvider::new(stores).into_service();
    let clients = Clients::default()
        .open("nothing", Attachments::new())
        .open("one", Attachments::new().add(service, methods));

    let bench = Bench::new().await;
    let layouts = Arc::new(SessionLayouts::new(clients.lender()));
    let credentials = Arc::new(SessionCredentials::new(clients.lender()));
    let attrs = BTreeMap::from([("oci.store".to_owned(), "store".to_owned())]);
    let request = ImageRequest::layout_from_attrs(&format!("base@{MULTI}"), &attrs, amd64()).unwrap();
    let progress = VertexProgress::discard();
    let access = Access::new(&*credentials);
    let image =
        bench.images.resolve(&request, &Resolutions::new(), access, &*layouts, &progress).await.unwrap();
    assert_eq!((image.root.digest.to_string().as_str(), image.layers.len()), (MULTI, 2));
    let top = bench.images.snapshot(&image, &request).await.unwrap().unwrap();
    assert!(bench.content.info(&image.layers[0].digest).await.unwrap().is_none());
    let provider = ImageProvider::new(bench.images.clone(), credentials, layouts, progress);
    top.unlazy(&provider).await.unwrap();
    top.mount(&NoProvider).await.unwrap();
    drop(top);
    bench.cache.close().await.unwrap();
}
