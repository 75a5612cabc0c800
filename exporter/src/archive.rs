//! `oci` and `docker`: an OCI layout, as a tar or in a store of the client.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};

use async_trait::async_trait;
use kiln_content::tar::{EntryType, Header, TarError, Writer};
use kiln_content::{ContentStoreExt as _, Descriptor, Index, Manifest, json, media_type};
use kiln_digest::Digest;
use kiln_registry::Reference;
use kiln_session::blobs::Blobs;
use kiln_session::filesend;
use serde::Serialize;

use crate::attrs::{ImageAttrs, parse_flag};
use crate::commit::{Committed, commit, response};
use crate::error::{Error, Result};
use crate::exporter::{ExportRequest, Exported, Exporter, Kind, Tools};
use crate::image::{add_metadata, asked_names};
use crate::platforms::epoch_of;
use crate::progress::begin;
use crate::source::keys;
use crate::timestamp::Timestamp;

const CREATED: &str = "org.opencontainers.image.created";
const REF_NAME: &str = "org.opencontainers.image.ref.name";
const IMAGE_NAME: &str = "io.containerd.image.name";
const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
/// Documents larger than this are no manifests.
const DOCUMENT_MAX: u64 = 16 << 20;
/// The client's name of the store that it updates the layout's index of.
const CLIENT_STORE: &str = "export";

#[derive(Debug)]
pub(crate) struct ArchiveExporter {
    kind: Kind,
    id: usize,
    tools: Tools,
    attrs: ImageAttrs,
    tar: bool,
    metadata: BTreeMap<String, String>,
}

impl ArchiveExporter {
    pub(crate) fn new(kind: Kind, id: usize, attrs: &BTreeMap<String, String>, tools: Tools) -> Result<Self> {
        let (attrs, mut metadata) = ImageAttrs::load(attrs)?;
        let tar = metadata.remove("tar").map_or(Ok(true), |value| parse_flag("tar", &value))?;
        Ok(Self { kind, id, tools, attrs, tar, metadata })
    }
}

#[async_trait]
impl Exporter for ArchiveExporter {
    fn kind(&self) -> Kind {
        self.kind
    }

    fn id(&self) -> usize {
        self.id
    }

    async fn export(&self, mut request: ExportRequest) -> Result<Exported> {
        if self.kind == Kind::Docker && request.source.is_map() {
            return Err(Error::invalid(
                "docker exporter does not currently support exporting manifest lists",
            ));
        }
        add_metadata(&mut request, &self.metadata);
        let mut attrs = self.attrs.clone();
        attrs.annotations.take_metadata(&request.source.metadata)?;
        attrs.complete(self.kind, request.compatibility)?;
        let mut committed = commit(&self.tools, &request, &attrs).await?;
        let (top, names) = name(&committed, &attrs, &request)?;
        committed.descriptor = top;
        let mut response = response(&committed);
        if !names.is_empty() {
            response.insert(keys::IMAGE_NAME.to_owned(), names.join(","));
        }
        let client = request.client().await?;
        for layer in &committed.layers {
            self.tools.layers.fetch(layer, &*request.provider).await?;
        }
        let blobs = self.blobs(&committed).await?;
        if self.tar {
            let _part = begin(&request.progress, "sending tarball");
            let archive = self.archive(&committed, &names, blobs).await?;
            filesend::send_file(&client, self.id, &response, move |out| archive.write(out)).await?;
        } else {
            let store = Blobs::new(client, CLIENT_STORE);
            for (digest, size) in blobs {
                self.copy(&store, digest, size).await?;
            }
        }
        Ok(Exported { response, descriptor: Some(committed.descriptor), finalize: None })
    }
}

impl ArchiveExporter {
    /// Lists everything below the top document and itself, with sizes, by digest.
    async fn blobs(&self, committed: &Committed) -> Result<BTreeMap<Digest, u64>> {
        let top = &committed.descriptor;
        let mut blobs = BTreeMap::from([(top.digest, top.size)]);
        let manifests = if media_type::is_index(&top.media_type) {
            Index::parse(&self.tools.content.get(&top.digest, DOCUMENT_MAX).await?)?.manifests
        } else {
            vec![top.clone()]
        };
        for descriptor in manifests {
            let manifest = self.manifest(&descriptor).await?;
            blobs.insert(descriptor.digest, descriptor.size);
            for child in manifest.layers.iter().chain([&manifest.config]) {
                blobs.insert(child.digest, child.size);
            }
        }
        Ok(blobs)
    }

    async fn manifest(&self, descriptor: &Descriptor) -> Result<Manifest> {
        Ok(Manifest::parse(&self.tools.content.get(&descriptor.digest, DOCUMENT_MAX).await?)?)
    }

    async fn archive(
        &self,
        committed: &Committed,
        names: &[String],
        blobs: BTreeMap<Digest, u64>,
    ) -> Result<Archive> {
        let index = json::compact(&layout_index(&committed.descriptor, names)?);
        let docker = match self.kind {
            Kind::Docker => {
                let manifest = self.manifest(&committed.descriptor).await?;
                Some(json::compact(&[DockerManifest::new(&manifest, names)?]))
            }
            _ => None,
        };
        let mut files = Vec::with_capacity(blobs.len());
        for (digest, size) in blobs {
            let file = self.tools.content.open(&digest).await?;
            files.push((digest, size, file.ok_or(kiln_content::Error::NotFound(digest))?));
        }
        Ok(Archive { index, docker, files })
    }

    /// Copies a blob into the client's store.
    async fn copy(&self, store: &Blobs, digest: Digest, size: u64) -> Result<()> {
        let file = self.tools.content.open(&digest).await?.ok_or(kiln_content::Error::NotFound(digest))?;
        store.write_file(&digest, size, file).await?;
        Ok(())
    }
}

/// What goes into the tar. The files are open, so nobody can take them away.
struct Archive {
    index: Vec<u8>,
    docker: Option<Vec<u8>>,
    files: Vec<(Digest, u64, std::fs::File)>,
}

impl Archive {
    /// Writes the members in the order of their names.
    fn write(self, out: &mut dyn Write) -> io::Result<()> {
        let mut tar = Writer::new(out);
        for dir in ["blobs/", "blobs/sha256/"] {
            tar.header(&header(dir, EntryType::DIR, 0o755, 0)).map_err(tar_error)?;
        }
        for (digest, size, mut file) in self.files {
            let name = format!("blobs/sha256/{}", digest.hex());
            tar.header(&header(&name, EntryType::FILE, 0o444, size)).map_err(tar_error)?;
            io::copy(&mut file, &mut tar)?;
        }
        let mut member = |name: &str, mode: i64, data: &[u8]| -> io::Result<()> {
            tar.header(&header(name, EntryType::FILE, mode, data.len() as u64)).map_err(tar_error)?;
            tar.write_all(data)
        };
        member("index.json", 0o644, &self.index)?;
        if let Some(docker) = &self.docker {
            member("manifest.json", 0o644, docker)?;
        }
        member("oci-layout", 0o444, LAYOUT)?;
        tar.finish().map_err(tar_error)?;
        Ok(())
    }
}

fn header(name: &str, kind: EntryType, mode: i64, size: u64) -> Header {
    Header {
        name: name.as_bytes().to_vec(),
        kind,
        mode,
        size: i64::try_from(size).unwrap_or(i64::MAX),
        ..Header::default()
    }
}

pub(crate) fn tar_error(error: TarError) -> io::Error {
    match error {
        TarError::Io(error) => error,
        other => io::Error::new(io::ErrorKind::InvalidData, other),
    }
}

/// Returns the top document's descriptor as archives have it, and the image's names in full.
pub(crate) fn name(
    committed: &Committed,
    attrs: &ImageAttrs,
    request: &ExportRequest,
) -> Result<(Descriptor, Vec<String>)> {
    let mut top = committed.descriptor.clone();
    let epoch = epoch_of(&request.source, attrs.epoch, None)?;
    let created = || epoch.unwrap_or_else(Timestamp::now).whole_seconds().to_string();
    top.annotations.entry(CREATED.to_owned()).or_insert_with(created);
    Ok((top, normalized_names(&asked_names(attrs, request))?))
}

/// Returns the index of the layout: the image once for each name.
pub(crate) fn layout_index(top: &Descriptor, names: &[String]) -> Result<Index> {
    let mut manifests = Vec::new();
    for name in names {
        let mut named = top.clone();
        named.annotations.insert(IMAGE_NAME.to_owned(), name.clone());
        let reference = Reference::parse(name).map_err(|error| bad_name(name, &error))?;
        named.annotations.insert(REF_NAME.to_owned(), object_name(&reference));
        manifests.push(named);
    }
    if names.is_empty() {
        manifests.push(top.clone());
    }
    Ok(Index {
        schema_version: 2,
        media_type: media_type::OCI_INDEX.to_owned(),
        artifact_type: String::new(),
        manifests,
        subject: None,
        annotations: BTreeMap::new(),
    })
}

/// Returns what a reference names in its repository.
fn object_name(reference: &Reference) -> String {
    match (reference.tag(), reference.digest()) {
        (Some(tag), None) => tag.to_owned(),
        (tag, Some(digest)) => format!("{}@{digest}", tag.unwrap_or_default()),
        (None, None) => String::new(),
    }
}

/// The document that `docker load` reads. Field order counts.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct DockerManifest {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

impl DockerManifest {
    pub(crate) fn new(manifest: &Manifest, names: &[String]) -> Result<Self> {
        let path = |digest: &Digest| format!("blobs/sha256/{}", digest.hex());
        let familiar = |name: &String| {
            let reference = Reference::parse(name).map_err(|error| bad_name(name, &error))?;
            Ok(reference.familiar())
        };
        let tags = names.iter().map(familiar).collect::<Result<Vec<_>>>()?;
        Ok(Self {
            config: path(&manifest.config.digest),
            repo_tags: Some(tags).filter(|tags| !tags.is_empty()),
            layers: Some(manifest.layers.iter().map(|layer| path(&layer.digest)).collect()),
        })
    }
}

/// Returns names in full, each once.
fn normalized_names(names: &str) -> Result<Vec<String>> {
    let mut seen = BTreeSet::new();
    let mut out = Vec::new();
    for name in names.split(',').filter(|_| !names.is_empty()) {
        let reference = Reference::parse(name).map_err(|error| bad_name(name, &error))?;
        let full = reference.or_latest().to_string();
        if seen.insert(full.clone()) {
            out.push(full);
        }
    }
    Ok(out)
}

fn bad_name(name: &str, error: &dyn std::error::Error) -> Error {
    Error::invalid(format!("failed to parse {name}: {error}"))
}

#[cfg(test)]
mod tests;
