use std::collections::BTreeMap;

use kiln_frontend::{OciStore, ResolveMode, ResolveRequest, SourceMetadata, pb};

use crate::context::{Client, Local, ignore_patterns, marshal};
use crate::error::{Error, Result};
use crate::git_url;
use crate::graph::{Graph, Meta, State};
use crate::image::Image;
use crate::platform::Platform;
use crate::reference::Reference;

/// A context that stands for an image or a stage of that name.
#[derive(Clone, Debug)]
pub(crate) struct NamedContext {
    value: String,
    name: String,
    /// The name with its platform, if the option has one.
    key: String,
    platform: Option<Platform>,
}

/// What a named context is.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    pub(crate) state: State,
    pub(crate) image: Option<Image>,
    /// A local source whose paths are known once all stages are lowered.
    pub(crate) is_local: bool,
}

impl Client {
    /// Looks for the named context that replaces `name`.
    pub(crate) fn named_context(
        &self,
        name: &str,
        platform: Option<&Platform>,
    ) -> Result<Option<NamedContext>> {
        if name.eq_ignore_ascii_case("scratch") || name.eq_ignore_ascii_case("context") {
            return Ok(None);
        }
        let reference = Reference::parse(name)
            .map_err(|error| Error::new(format!("invalid context name {name}: {error}")))?;
        let familiar = reference.familiar();
        let name = familiar.strip_suffix(":latest").unwrap_or(&familiar);
        let shown = platform.cloned().unwrap_or_else(Platform::host).normalized().format();
        let keys = [format!("{name}::{shown}"), name.to_owned()];
        Ok(keys.into_iter().find_map(|key| {
            let value = self.options.get(&format!("context:{key}"))?.to_owned();
            Some(NamedContext { value, name: name.to_owned(), key, platform: platform.cloned() })
        }))
    }
}

impl NamedContext {
    pub(crate) async fn load(&self, client: &Client, graph: &mut Graph) -> Result<Loaded> {
        let (value, key) = (&self.value, &self.key);
        let (scheme, rest) = value
            .split_once(':')
            .ok_or_else(|| Error::new(format!("invalid context specifier {value} for {key}")))?;
        let plain = |output| Loaded { state: State::new(output), ..Loaded::default() };
        match scheme {
            "docker-image" => self.image(client, graph, rest.trim_start_matches("//")).await,
            "oci-layout" => self.layout(client, graph, rest.trim_start_matches("//")).await,
            "local" => self.local(client, graph, rest).await,
            "http" | "https" | "git" => self.remote(client, graph),
            scheme if scheme.starts_with("git@") => self.remote(client, graph),
            "input" => {
                let definition = client
                    .request
                    .inputs
                    .get(rest)
                    .ok_or_else(|| Error::new(format!("invalid input {rest} for {key}")))?;
                let mut loaded = plain(graph.import(definition)?);
                if let Some(metadata) = client.options.get(&format!("input-metadata:{rest}")) {
                    loaded.image = self.input_config(metadata, &mut loaded.state)?;
                }
                Ok(loaded)
            }
            other => Err(Error::new(format!("unsupported context source {other} for {key}"))),
        }
    }

    fn remote(&self, client: &Client, graph: &mut Graph) -> Result<Loaded> {
        let value = &self.value;
        let edge = match git_url::parse(value) {
            Some(url) => {
                let url = url.map_err(Error::new)?;
                url.to_source(graph, Meta::named(format!("[internal] load git source {value}")))
            }
            None if value.starts_with("git") => {
                return Err(Error::new(format!("invalid git context {value}")));
            }
            None => client.http(
                graph,
                value,
                "context",
                "",
                Meta::named(format!("[context {}] {value}", self.key)),
            ),
        };
        Ok(Loaded { state: State::new(Some(edge)), ..Loaded::default() })
    }

    async fn image(&self, client: &Client, graph: &mut Graph, text: &str) -> Result<Loaded> {
        if text == "scratch" {
            return Ok(Loaded::default());
        }
        let named = Reference::parse(text).map_err(Error::new)?.with_default_tag();
        let log_name = format!("[context {}] load metadata for {text}", self.key);
        let mut request = ResolveRequest::new(
            pb::SourceOp { identifier: format!("docker-image://{}", named.full()), attrs: BTreeMap::new() },
            log_name,
        );
        request.platform = self.platform.as_ref().map(Platform::to_pb);
        request.resolve_mode = client.options.resolve_mode;
        let answer = resolve(client, request, &named.full()).await?;
        let config = answer.image.map(|image| image.config).unwrap_or_default();
        let identifier = match answer.source.identifier.as_str() {
            "" => format!("docker-image://{}", named.full()),
            identifier => identifier.to_owned(),
        };
        let meta = Meta::named(format!("[context {}] {text}", self.key));
        let edge = graph.source(
            identifier,
            BTreeMap::new(),
            Some(&self.op_platform(client)),
            meta,
            &["source.image"],
        );
        let mut loaded = self.with_config(State::new(Some(edge)), &config)?;
        if let Some(image) = &mut loaded.image {
            image.created = None;
        }
        Ok(loaded)
    }

    async fn layout(&self, client: &Client, graph: &mut Graph, text: &str) -> Result<Loaded> {
        let (store, digest) = match text.split_once('@') {
            Some((store, digest)) => (store, digest),
            None => {
                let message = format!("oci-layout reference {} has no digest", crate::text::quote(text));
                return Err(Error::new(message));
            }
        };
        let store = store.rsplit_once(':').map_or(store, |(name, _)| name);
        let wrong = |error: String| {
            Error::new(format!("could not parse oci-layout reference {}: {error}", crate::text::quote(text)))
        };
        crate::reference::check_digest(digest).map_err(wrong)?;
        let name = Reference::parse(&self.name).map_err(wrong)?.with_digest(digest).full();
        let session = client.request.session_id.clone();
        let attrs: BTreeMap<String, String> =
            [("oci.session".to_owned(), session.clone()), ("oci.store".to_owned(), store.to_owned())].into();
        let identifier = format!("oci-layout://{name}");
        let mut request = ResolveRequest::new(
            pb::SourceOp { identifier: identifier.clone(), attrs: attrs.clone() },
            format!("[context {}] load metadata for {name}", self.key),
        );
        request.platform = self.platform.as_ref().map(Platform::to_pb);
        request.oci_store = Some(OciStore { session_id: session, store_id: store.to_owned() });
        request.resolve_mode = ResolveMode::Default;
        let answer = resolve(client, request, &name).await?;
        let config = answer.image.map(|image| image.config).unwrap_or_default();
        let meta = Meta::named(format!("[context {}] OCI load from client", self.key));
        let edge =
            graph.source(identifier, attrs, Some(&self.op_platform(client)), meta, &["source.ocilayout"]);
        self.with_config(State::new(Some(edge)), &config)
    }

    async fn local(&self, client: &Client, graph: &mut Graph, name: &str) -> Result<Loaded> {
        let mut side = Graph::default();
        let ignore = Local {
            name,
            hint: format!("context:{}-.dockerignore", self.key),
            follow: vec![".dockerignore".to_owned()],
            resend: true,
            ..Local::default()
        };
        let edge = client.local(&mut side, ignore, format!("[context {}] load .dockerignore", self.key));
        let exclude = match client.solve(marshal(&side, edge)?, true).await? {
            Some(reference) => {
                ignore_patterns(&reference.read_file(".dockerignore", None).await.unwrap_or_default())
            }
            None => Vec::new(),
        };
        let shared = client.options.get(&format!("sharedkey:localdir:{}", self.key)).unwrap_or_default();
        let local =
            Local { name, hint: format!("context:{}-{shared}", self.key), exclude, ..Local::default() };
        let edge = client.local(graph, local, format!("[context {}] load from client", self.key));
        Ok(Loaded { state: State::new(Some(edge)), image: None, is_local: true })
    }

    fn op_platform(&self, client: &Client) -> Platform {
        self.platform.clone().unwrap_or_else(|| client.options.build_platform.clone())
    }

    fn input_config(&self, metadata: &str, state: &mut State) -> Result<Option<Image>> {
        let failed =
            |error: String| Error::new(format!("failed to parse input metadata {metadata}: {error}"));
        let entries: BTreeMap<String, String> =
            serde_json::from_str(metadata).map_err(|error| failed(error.to_string()))?;
        let Some(config) = entries.get("containerimage.config") else { return Ok(None) };
        let config = crate::base64::decode(config).ok_or_else(|| failed("illegal base64 data".to_owned()))?;
        let loaded = self.with_config(std::mem::take(state), &config)?;
        *state = loaded.state;
        Ok(loaded.image)
    }

    /// Takes environment, directory and platform from an image config.
    fn with_config(&self, mut state: State, config: &[u8]) -> Result<Loaded> {
        let image = Image::parse(config)
            .map_err(|error| Error::new(format!("failed to parse image config for {}: {error}", self.key)))?;
        for entry in &image.config.env {
            let (key, value) = entry.split_once('=').unwrap_or((entry, ""));
            state.env.set(key, value);
        }
        if !image.config.working_dir.is_empty() {
            state.dir = Some(image.config.working_dir.clone());
        }
        if !image.architecture.is_empty() && !image.os.is_empty() {
            state.platform = Some(image.platform().normalized());
        }
        Ok(Loaded { state, image: Some(image), is_local: false })
    }
}

/// What replaces `name`, for who wants its files and config alone.
pub(crate) async fn find(client: &Client, name: &str) -> Result<Option<kiln_frontend::NamedContext>> {
    let Some(context) = client.named_context(name, None)? else { return Ok(None) };
    let mut graph = Graph::default();
    let loaded = context.load(client, &mut graph).await?;
    let definition = match loaded.state.output {
        Some(root) => marshal(&graph, root)?,
        None => pb::Definition::default(),
    };
    let json = |error: serde_json::Error| Error::new(format!("failed to marshal image config: {error}"));
    let config = loaded.image.map(|image| image.to_json().map_err(json)).transpose()?;
    Ok(Some(kiln_frontend::NamedContext { definition, config }))
}

async fn resolve(client: &Client, request: ResolveRequest, reference: &str) -> Result<SourceMetadata> {
    let answer = client.bridge.resolve_source_metadata(request).await;
    answer.map_err(|error| {
        Error::from(error).context(format!("failed to resolve source metadata for {reference}"))
    })
}
