use std::sync::Arc;

use futures::lock::Mutex;
use kiln_frontend::{FileRange, Reference, ResolveRequest, pb};

use crate::context::{Client, Local, head, ignore_patterns, marshal};
use crate::error::{Error, Result};
use crate::git_url::{self, GitUrl};
use crate::go::parse_bool;
use crate::graph::{Edge, FileStep, Graph, Meta};
use crate::paths::{base, join};
use crate::source::SourceFile;

/// The main context, found out once for a build.
#[derive(Debug)]
pub(crate) struct MainContext {
    kind: Kind,
    filename: String,
    dockerfile_local: String,
    force_local_dockerfile: bool,
    subdir: Option<String>,
    /// Text of the ignore file, once read.
    ignore: Mutex<Option<Vec<u8>>>,
    downloaded: Option<Arc<dyn Reference>>,
}

#[derive(Debug)]
enum Kind {
    Git { url: Box<GitUrl>, text: String },
    Http { url: String, archive: bool },
    Inputs { dockerfile: Option<pb::Definition>, context: Option<pb::Definition> },
}

const FILE: &str = "context";
/// How long a Dockerfile may be, in bytes.
const MAX_DOCKERFILE: usize = 16 << 20;

impl MainContext {
    pub(crate) async fn detect(client: &Client) -> Result<Self> {
        let options = &client.options;
        let key = options.get("contextkey").unwrap_or("context");
        let text = options.get(key).unwrap_or_default();
        let mut found = Self {
            kind: Kind::Inputs { dockerfile: None, context: None },
            filename: options.get("filename").unwrap_or("Dockerfile").to_owned(),
            dockerfile_local: options.get("dockerfilekey").unwrap_or("dockerfile").to_owned(),
            force_local_dockerfile: options.get("dockerfilekey").is_some(),
            subdir: options.get("contextsubdir").map(str::to_owned),
            ignore: Mutex::default(),
            downloaded: None,
        };
        if let Some(url) = git_url::parse(text) {
            let mut url = url.map_err(Error::new)?;
            let keep = options.get("build-arg:BUILDKIT_CONTEXT_KEEP_GIT_DIR").and_then(parse_bool);
            if keep == Some(true) {
                url.keep_git_dir = Some(true);
            }
            let epoch = options.get("build-arg:SOURCE_DATE_EPOCH").unwrap_or_default();
            if url.mtime.is_empty() && !epoch.is_empty() {
                url.mtime = "commit".to_owned();
            }
            found.kind = Kind::Git { url: Box::new(url), text: text.to_owned() };
        } else if text.starts_with("http://") || text.starts_with("https://") {
            found.download(client, text).await?;
        } else {
            let inputs = &client.request.inputs;
            let dockerfile = inputs.get(&found.dockerfile_local).filter(|_| !found.force_local_dockerfile);
            found.kind =
                Kind::Inputs { dockerfile: dockerfile.cloned(), context: inputs.get("context").cloned() };
        }
        Ok(found)
    }

    async fn download(&mut self, client: &Client, url: &str) -> Result<()> {
        let mut graph = Graph::default();
        let edge = http_source(client, &mut graph, url);
        let reference = client
            .solve(marshal(&graph, edge)?, false)
            .await
            .map_err(|error| error.context("failed to resolve httpcontext"))?
            .ok_or_else(|| Error::new("failed to resolve httpcontext"))?;
        let range = FileRange { offset: 0, length: 1024 };
        let start = reference
            .read_file(FILE, Some(range))
            .await
            .map_err(|error| Error::from(error).context("failed to read downloaded context"))?;
        let archive = is_archive(&start);
        if !archive {
            self.filename = FILE.to_owned();
        }
        self.kind = Kind::Http { url: url.to_owned(), archive };
        self.downloaded = Some(reference);
        Ok(())
    }

    /// Whether the context is a directory of the client.
    pub(crate) fn is_local(&self) -> bool {
        matches!(self.kind, Kind::Inputs { context: None, .. })
    }

    /// The tree with the Dockerfile of a context that is not local.
    fn remote_root(&self, client: &Client, graph: &mut Graph, for_dockerfile: bool) -> Result<Option<Edge>> {
        Ok(match &self.kind {
            Kind::Git { url, text } => {
                Some(url.to_source(graph, Meta::named(format!("[internal] load git source {text}"))))
            }
            Kind::Http { url, archive } => {
                let file = http_source(client, graph, url);
                Some(if *archive { unpack(graph, file) } else { file })
            }
            Kind::Inputs { dockerfile, context } => match if for_dockerfile { dockerfile } else { context } {
                Some(definition) => graph.import(definition)?,
                None => None,
            },
        })
    }

    /// Reads the Dockerfile, and the ignore file beside it.
    pub(crate) async fn read_dockerfile(&mut self, client: &Client) -> Result<SourceFile> {
        let mut graph = Graph::default();
        let remote = match self.force_local_dockerfile {
            true => None,
            false => self.remote_root(client, &mut graph, true)?,
        };
        let lower = (base(&self.filename) == "Dockerfile").then(|| match self.filename.rsplit_once('/') {
            Some((dir, _)) => join(dir, "dockerfile"),
            None => "dockerfile".to_owned(),
        });
        let ignore_name = format!("{}.dockerignore", self.filename);
        let edge = remote.unwrap_or_else(|| {
            let mut follow = vec![self.filename.clone(), ignore_name.clone()];
            follow.extend(lower.clone());
            let local = Local {
                name: &self.dockerfile_local,
                hint: self.dockerfile_local.clone(),
                follow,
                resend: true,
                ..Local::default()
            };
            client.local(
                &mut graph,
                local,
                format!("[internal] load build definition from {}", self.filename),
            )
        });
        let definition = marshal(&graph, edge)?;
        let reference = client
            .solve(definition.clone(), false)
            .await
            .map_err(|error| error.context("failed to resolve dockerfile"))?;
        let reference = reference.ok_or_else(|| Error::new("failed to resolve dockerfile"))?;
        let mut data = reference.read_file(&self.filename, None).await;
        if let (Err(_), Some(lower)) = (&data, &lower)
            && let Ok(found) = reference.read_file(lower, None).await
        {
            data = Ok(found);
        }
        let data = data.map_err(|error| Error::from(error).context("failed to read dockerfile"))?;
        if data.len() > MAX_DOCKERFILE {
            return Err(Error::new(format!(
                "failed to read dockerfile: {} has {} bytes, it may have {MAX_DOCKERFILE}",
                self.filename,
                data.len()
            )));
        }
        if let Ok(text) = reference.read_file(&ignore_name, None).await {
            self.ignore = Mutex::new(Some(text));
        }
        let vertex = head(&definition)?;
        Ok(SourceFile { filename: self.filename.clone(), data, definition: Some(definition), vertex })
    }

    /// Patterns of the ignore file; none for a context that is not local.
    pub(crate) async fn ignore_patterns(&self, client: &Client) -> Result<Vec<String>> {
        if !self.is_local() {
            return Ok(Vec::new());
        }
        let mut ignore = self.ignore.lock().await;
        if ignore.is_none() {
            let mut graph = Graph::default();
            let local = Local {
                name: "context",
                hint: "context-.dockerignore".to_owned(),
                follow: vec![".dockerignore".to_owned()],
                resend: true,
                ..Local::default()
            };
            let edge = client.local(&mut graph, local, "[internal] load .dockerignore".to_owned());
            let text = match client.solve(marshal(&graph, edge)?, false).await? {
                Some(reference) => reference.read_file(".dockerignore", None).await.unwrap_or_default(),
                None => Vec::new(),
            };
            *ignore = Some(text);
        }
        Ok(ignore.as_deref().map(ignore_patterns).unwrap_or_default())
    }

    /// The files of the context. A local one is limited to `follow`, if that is not empty.
    pub(crate) async fn source(
        &self,
        client: &Client,
        graph: &mut Graph,
        follow: Vec<String>,
    ) -> Result<Option<Edge>> {
        if self.is_local() {
            let exclude = self.ignore_patterns(client).await?;
            let local = Local { name: "context", hint: "context".to_owned(), follow, exclude, resend: false };
            return Ok(Some(client.local(graph, local, "[internal] load build context".to_owned())));
        }
        let root = self.remote_root(client, graph, false)?;
        Ok(match &self.subdir {
            None => root,
            Some(dir) => {
                let copy = pb::FileActionCopy {
                    src: join("/", dir),
                    dest: "/".to_owned(),
                    mode: -1,
                    timestamp: -1,
                    dir_copy_contents: true,
                    ..pb::FileActionCopy::default()
                };
                let step = FileStep { source: root, action: pb::file_action::Action::Copy(copy) };
                Some(graph.file(None, vec![step], Meta::default()))
            }
        })
    }

    /// When the context was last changed, in seconds since the epoch, where that is known.
    pub(crate) async fn epoch(&self, client: &Client) -> Result<Option<i64>> {
        let mut graph = Graph::default();
        let edge = match &self.kind {
            Kind::Inputs { .. } => match self.source(client, &mut graph, Vec::new()).await? {
                Some(edge) => edge,
                None => return Ok(None),
            },
            Kind::Git { url, .. } => url.to_source(&mut graph, Meta::default()),
            Kind::Http { url, .. } => http_source(client, &mut graph, url),
        };
        let Some(source) = graph.source_op(edge) else { return Ok(None) };
        let mut request = ResolveRequest::new(source, "[internal] resolve main build context metadata");
        request.git_objects = matches!(self.kind, Kind::Git { .. });
        let answer = match client.bridge.resolve_source_metadata(request).await {
            Ok(answer) => answer,
            // A directory of the client has no time of its own, and whoever cannot say so may refuse.
            Err(_) if matches!(self.kind, Kind::Inputs { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        if let Some(git) = answer.git.filter(|git| !git.commit_object.is_empty()) {
            return Ok(crate::epoch::committer_time(&git.commit_object));
        }
        let Some(http) = answer.http else { return Ok(None) };
        if http.last_modified.is_some() {
            return Ok(http.last_modified);
        }
        match (&self.kind, &self.downloaded) {
            (Kind::Http { archive: true, .. }, Some(reference)) => {
                let data = reference.read_file(FILE, None).await?;
                Ok(crate::epoch::newest_in_tar(&data))
            }
            _ => Ok(None),
        }
    }
}

fn http_source(client: &Client, graph: &mut Graph, url: &str) -> Edge {
    client.http(graph, url, FILE, "", Meta::named("[internal] load remote build context"))
}

fn unpack(graph: &mut Graph, file: Edge) -> Edge {
    let copy = pb::FileActionCopy {
        src: format!("/{FILE}"),
        dest: "/".to_owned(),
        mode: -1,
        timestamp: -1,
        attempt_unpack_docker_compatibility: true,
        ..pb::FileActionCopy::default()
    };
    let step = FileStep { source: Some(file), action: pb::file_action::Action::Copy(copy) };
    graph.file(None, vec![step], Meta::default())
}

/// Whether a file starts like an archive: compressed, or with a tar header.
fn is_archive(start: &[u8]) -> bool {
    let magic: [&[u8]; 3] = [b"BZh", b"\x1f\x8b\x08", b"\xfd7zXZ\0"];
    magic.iter().any(|magic| start.starts_with(magic)) || crate::epoch::tar_header(start).is_some()
}
