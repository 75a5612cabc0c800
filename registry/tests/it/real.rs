//! The client against a real registry process.

use kiln_content::testing::MemoryStore;
use kiln_content::{ContentStore, ContentStoreExt, Descriptor, Index, Manifest, Platform, media_type};
use kiln_registry::testing::RegistryProcess;
use kiln_registry::{Access, Error, FixedCredentials, PushOptions, Reference, Registry};

use crate::faulty::{chain, config};

const HTPASSWD: &str = "user:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";

/// An index of two images that share a layer of some size.
pub(crate) async fn sample(store: &MemoryStore) -> Descriptor {
    let shared: Vec<u8> = (0..2_000_000_u32).map(|i| (i ^ (i >> 8)) as u8).collect();
    let mut manifests = Vec::new();
    for architecture in ["amd64", "arm64"] {
        let config = format!(r#"{{"architecture":"{architecture}","os":"linux"}}"#);
        let layers = [shared.clone(), architecture.as_bytes().to_vec(), Vec::new()];
        let manifest = Manifest {
            schema_version: 2,
            media_type: media_type::OCI_MANIFEST.to_owned(),
            artifact_type: String::new(),
            config: Descriptor::of(media_type::OCI_CONFIG, config.as_bytes()),
            layers: layers.iter().map(|l| Descriptor::of(media_type::OCI_LAYER, l)).collect(),
            subject: None,
            annotations: Default::default(),
        };
        let bytes = manifest.to_bytes();
        let mut descriptor = Descriptor::of(media_type::OCI_MANIFEST, &bytes);
        descriptor.platform = Some(Platform::new("linux", architecture, ""));
        manifests.push(descriptor);
        for blob in layers.into_iter().chain([config.into_bytes(), bytes]) {
            store.put(blob.into()).await.unwrap();
        }
    }
    let index = Index {
        schema_version: 2,
        media_type: media_type::OCI_INDEX.to_owned(),
        artifact_type: String::new(),
        manifests,
        subject: None,
        annotations: Default::default(),
    };
    let bytes = index.to_bytes();
    let root = Descriptor::of(media_type::OCI_INDEX, &bytes);
    store.put(bytes.into()).await.unwrap();
    root
}

async fn pull_all(
    registry: &Registry,
    from: &Reference,
    root: &Descriptor,
    access: Access<'_>,
) -> MemoryStore {
    let store = MemoryStore::new();
    let mut open = vec![root.clone()];
    while let Some(descriptor) = open.pop() {
        registry.fetch_into(&store, from, &descriptor, access).await.unwrap();
        if media_type::is_index(&descriptor.media_type) || media_type::is_manifest(&descriptor.media_type) {
            let bytes = registry.read(from, &descriptor, access).await.unwrap();
            let document = kiln_registry::Document::parse(&bytes).unwrap();
            open.extend(document.children().into_iter().cloned());
        }
    }
    store
}

#[tokio::test]
async fn what_is_pushed_can_be_pulled() {
    let Some(process) = RegistryProcess::start().unwrap() else { return };
    let registry = Registry::new(config());
    let access = Access::anonymous();
    let store = MemoryStore::new();
    let root = sample(&store).await;
    let tagged = process.reference("a/b:t").unwrap();
    registry.push(&tagged, &root, &store, PushOptions::default(), access).await.unwrap();
    // All of it is there now, so this sends nothing but questions.
    registry.push(&tagged, &root, &store, PushOptions::default(), access).await.unwrap();

    let found = registry.resolve(&tagged, access).await.unwrap();
    assert_eq!((&found.media_type, found.digest, found.size), (&root.media_type, root.digest, root.size));
    let pinned = tagged.clone().without_object().with_digest(root.digest);
    assert_eq!(registry.resolve(&pinned, access).await.unwrap().digest, root.digest);
    let pulled = pull_all(&registry, &tagged, &found, access).await;
    assert_eq!(pulled.list().await.unwrap(), store.list().await.unwrap());

    let error = registry.resolve(&process.reference("a/b:other").unwrap(), access).await.unwrap_err();
    assert_eq!(chain(&error), format!("{}/a/b:other: not found", process.address()));
}

#[tokio::test]
async fn a_push_by_digest_leaves_the_tag_alone() {
    let Some(process) = RegistryProcess::start().unwrap() else { return };
    let registry = Registry::new(config());
    let access = Access::anonymous();
    let store = MemoryStore::new();
    let root = sample(&store).await;
    let tagged = process.reference("a/b:t").unwrap();
    let options = PushOptions::default().by_digest(true);
    registry.push(&tagged, &root, &store, options, access).await.unwrap();
    let error = registry.resolve(&tagged, access).await.unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error}");
    registry.resolve(&tagged.without_object().with_digest(root.digest), access).await.unwrap();
}

#[tokio::test]
async fn blobs_of_another_repository_are_mounted() {
    let Some(process) = RegistryProcess::start().unwrap() else { return };
    let registry = Registry::new(config());
    let access = Access::anonymous();
    let store = MemoryStore::new();
    let root = sample(&store).await;
    let first = process.reference("a/first:t").unwrap();
    registry.push(&first, &root, &store, PushOptions::default(), access).await.unwrap();

    // Only the documents are here; every other blob must come from the other repository.
    let origins = store.list().await.unwrap().iter().map(|blob| (blob.digest, vec![first.clone()])).collect();
    let thin = MemoryStore::new();
    let bytes = store.get(&root.digest, 1 << 20).await.unwrap();
    for manifest in Index::parse(&bytes).unwrap().manifests {
        thin.put(store.get(&manifest.digest, 1 << 20).await.unwrap()).await.unwrap();
    }
    thin.put(bytes).await.unwrap();
    let second = process.reference("a/second:t").unwrap();
    let options = PushOptions::default().origins(&origins);
    registry.push(&second, &root, &thin, options, access).await.unwrap();
    let pulled = pull_all(&registry, &second, &root, access).await;
    assert_eq!(pulled.list().await.unwrap(), store.list().await.unwrap());
}

#[tokio::test]
async fn ranges_are_served() {
    let Some(process) = RegistryProcess::start().unwrap() else { return };
    let registry = Registry::new(config());
    let access = Access::anonymous();
    let store = MemoryStore::new();
    let root = sample(&store).await;
    let reference = process.reference("a/b:t").unwrap();
    registry.push(&reference, &root, &store, PushOptions::default(), access).await.unwrap();
    let largest = store.list().await.unwrap().into_iter().max_by_key(|blob| blob.size).unwrap();
    let descriptor = Descriptor::new(media_type::OCI_LAYER, largest.digest, largest.size);
    let mut stream = registry.fetch(&reference, &descriptor, largest.size - 10, access).await.unwrap();
    let mut tail = Vec::new();
    while let Some(chunk) = stream.next().await.unwrap() {
        tail.extend_from_slice(&chunk);
    }
    let all = store.get(&largest.digest, u64::MAX).await.unwrap();
    assert_eq!(tail, all[all.len() - 10..]);
}

#[tokio::test]
async fn passwords_are_asked_for() {
    let started = RegistryProcess::start_with(|dir| {
        std::fs::write(dir.join("htpasswd"), HTPASSWD)?;
        Ok(format!("auth:\n  htpasswd:\n    realm: kiln\n    path: {}/htpasswd\n", dir.display()))
    });
    let Some(process) = started.unwrap() else { return };
    let registry = Registry::new(config());
    let store = MemoryStore::new();
    let root = sample(&store).await;
    let reference = process.reference("a/b:t").unwrap();
    let good = FixedCredentials::new("user", "secret");
    let bad = FixedCredentials::new("user", "wrong");
    let options = PushOptions::default();
    registry.push(&reference, &root, &store, options, Access::new(&good)).await.unwrap();
    registry.resolve(&reference, Access::new(&good)).await.unwrap();
    for access in [Access::new(&bad), Access::anonymous()] {
        let error = registry.push(&reference, &root, &store, options, access).await.unwrap_err();
        assert!(matches!(error, Error::PushDenied { .. }), "{}", chain(&error));
        let error = registry.resolve(&reference, access).await.unwrap_err();
        assert!(matches!(error, Error::PullDenied { .. }), "{}", chain(&error));
    }
}
