//! A bridge made of data, for tests of frontends.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use kiln_llb::pb;
use prost::Message;

use crate::bridge::{Bridge, ImageMetadata, ResolveRequest, SolveRequest, SourceMetadata, Warning};
use crate::error::{Error, Result};
use crate::reference::{FileRange, FileStat, Reference};
use crate::result::FrontendResult;

/// Files of a tree: path without leading `/` to content.
pub type Tree = BTreeMap<String, Vec<u8>>;

/// Answers from tables and remembers what it was asked. It computes nothing: the tree of a graph is the one given for
/// the source it ends in.
#[derive(Debug, Default)]
pub struct FakeBridge {
    /// Images and OCI layouts by full reference.
    pub images: BTreeMap<String, FakeImage>,
    /// Trees by source identifier. A graph whose last op is no source has `derived:` and the first source below it.
    pub trees: BTreeMap<String, Tree>,
    /// Answers about sources that are no images, by identifier.
    pub sources: BTreeMap<String, SourceMetadata>,
    recorded: Mutex<Recorded>,
}

/// What the registry would say about a reference.
#[derive(Clone, Debug, Default)]
pub struct FakeImage {
    /// Digest for references without one.
    pub digest: String,
    /// Configs by platform, `any` for all.
    pub configs: BTreeMap<String, Vec<u8>>,
}

/// What a bridge was asked.
#[derive(Clone, Debug, Default)]
pub struct Recorded {
    /// Solves in order.
    pub solves: Vec<SolveRequest>,
    /// Look-ups in order.
    pub resolves: Vec<ResolveRequest>,
    /// Warnings in order.
    pub warnings: Vec<Warning>,
}

impl FakeBridge {
    /// What it was asked so far.
    pub fn recorded(&self) -> Recorded {
        self.lock().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Recorded> {
        self.recorded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn image(&self, reference: &str, platform: Option<&pb::Platform>) -> Result<ImageMetadata> {
        let not_found =
            |message: String| Error::Resolve { message: format!("{message}: not found"), source: None };
        let (name, digest) = match reference.split_once('@') {
            Some((name, digest)) => (name, Some(digest)),
            None => (reference, None),
        };
        let image = self
            .images
            .get(reference)
            .or_else(|| self.images.get(name))
            .or_else(|| self.images.get(&format!("{name}:latest")))
            .ok_or_else(|| not_found(reference.to_owned()))?;
        let digest = digest.unwrap_or(&image.digest).to_owned();
        let wanted = match platform.map(format_platform).unwrap_or_default().as_str() {
            "" => "linux/amd64".to_owned(),
            "linux/arm" => "linux/arm/v7".to_owned(),
            "linux/arm64/v8" => "linux/arm64".to_owned(),
            other => other.to_owned(),
        };
        let config = image
            .configs
            .get(&wanted)
            .or_else(|| image.configs.get("any"))
            .ok_or_else(|| not_found(format!("no match for platform in manifest {digest}")))?;
        Ok(ImageMetadata { digest, config: config.clone() })
    }
}

/// `os/arch[/variant]`.
pub fn format_platform(platform: &pb::Platform) -> String {
    let mut text = format!("{}/{}", platform.os, platform.architecture);
    if !platform.variant.is_empty() {
        text.push('/');
        text.push_str(&platform.variant);
    }
    text
}

#[async_trait]
impl Bridge for FakeBridge {
    async fn solve(&self, request: SolveRequest) -> Result<FrontendResult> {
        self.lock().solves.push(request.clone());
        let Some(definition) = request.definition.filter(|definition| !definition.def.is_empty()) else {
            return Ok(FrontendResult::default());
        };
        let tree = tree_name(&definition).and_then(|name| self.trees.get(&name)).cloned().unwrap_or_default();
        Ok(FrontendResult::single(Some(Arc::new(FakeReference { definition, tree }))))
    }

    async fn resolve_source_metadata(&self, request: ResolveRequest) -> Result<SourceMetadata> {
        self.lock().resolves.push(request.clone());
        let identifier = &request.source.identifier;
        let mut answer = SourceMetadata { source: request.source.clone(), ..SourceMetadata::default() };
        if let Some(("docker-image" | "oci-layout", reference)) = identifier.split_once("://") {
            answer.image = Some(self.image(reference, request.platform.as_ref())?);
        } else if let Some(known) = self.sources.get(identifier) {
            (answer.git, answer.http) = (known.git.clone(), known.http.clone());
        }
        Ok(answer)
    }

    async fn warn(&self, warning: Warning) -> Result<()> {
        self.lock().warnings.push(warning);
        Ok(())
    }
}

/// A tree of a [`FakeBridge`].
#[derive(Clone, Debug)]
pub struct FakeReference {
    definition: pb::Definition,
    tree: Tree,
}

#[async_trait]
impl Reference for FakeReference {
    async fn read_file(&self, path: &str, range: Option<FileRange>) -> Result<Vec<u8>> {
        let name = path.trim_start_matches('/');
        let data = self.tree.get(name).ok_or_else(|| Error::NotFound { path: path.to_owned() })?;
        Ok(match range {
            None => data.clone(),
            Some(range) => {
                let start = usize::try_from(range.offset).unwrap_or(usize::MAX);
                let length = usize::try_from(range.length).unwrap_or(usize::MAX);
                data.iter().skip(start).take(length).copied().collect()
            }
        })
    }

    async fn read_dir(&self, path: &str, _include_pattern: &str) -> Result<Vec<FileStat>> {
        let dir = path.trim_matches('/');
        let prefix = if dir.is_empty() { String::new() } else { format!("{dir}/") };
        let mut found: BTreeMap<String, FileStat> = BTreeMap::new();
        for (file, data) in &self.tree {
            let Some(rest) = file.strip_prefix(&prefix) else { continue };
            let (name, stat) = match rest.split_once('/') {
                Some((name, _)) => (name, FileStat { mode: 0o755 | 1 << 31, ..FileStat::default() }),
                None => (rest, file_stat(data)),
            };
            found.insert(name.to_owned(), FileStat { path: name.to_owned(), ..stat });
        }
        if found.is_empty() && !dir.is_empty() {
            return Err(Error::NotFound { path: path.to_owned() });
        }
        Ok(found.into_values().collect())
    }

    async fn stat(&self, path: &str) -> Result<FileStat> {
        let name = path.trim_matches('/');
        if let Some(data) = self.tree.get(name) {
            return Ok(FileStat { path: path.to_owned(), ..file_stat(data) });
        }
        self.read_dir(path, "").await?;
        Ok(FileStat { path: path.to_owned(), mode: 0o755 | 1 << 31, ..FileStat::default() })
    }

    async fn evaluate(&self) -> Result<()> {
        Ok(())
    }

    fn definition(&self) -> Option<pb::Definition> {
        Some(self.definition.clone())
    }
}

fn file_stat(data: &[u8]) -> FileStat {
    FileStat { mode: 0o644, size: i64::try_from(data.len()).unwrap_or(i64::MAX), ..FileStat::default() }
}

/// Name of the tree that a definition stands for.
fn tree_name(definition: &pb::Definition) -> Option<String> {
    let ops: Vec<pb::Op> =
        definition.def.iter().map(|bytes| pb::Op::decode(bytes.as_slice())).collect::<Result<_, _>>().ok()?;
    // The entry before the final vertex is what it asks for, as frontends put ops in dependency order.
    let last = ops.len().checked_sub(2)?;
    if let Some(pb::op::Op::Source(source)) = &ops[last].op {
        return Some(source.identifier.clone());
    }
    ops.iter().find_map(|op| match &op.op {
        Some(pb::op::Op::Source(source)) => Some(format!("derived:{}", source.identifier)),
        _ => None,
    })
}
