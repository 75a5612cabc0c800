use std::sync::Arc;

use async_trait::async_trait;
use kiln_frontend::{
    Attestation, AttestationKind, Bridge, Error as FrontendError, Frontend, FrontendRequest, FrontendResult,
    NamedContext, NamedContexts, Reference, References, SolveRequest, Warning, pb,
};
use serde::Serialize;

use crate::context::{Client, MainContext};
use crate::error::{Error, Result};
use crate::image::go_json;
use crate::lint::Linter;
use crate::lower::{Lowered, Request, Scanner, linter, lower};
use crate::options::Options;
use crate::parser::detect_syntax;
use crate::platform::Platform;
use crate::source::SourceFile;

/// The name that clients ask for.
pub const NAME: &str = "dockerfile.v0";

/// The frontend for Dockerfiles.
///
/// Follows moby/buildkit: frontend/dockerfile/builder/build.go.
#[derive(Clone, Copy, Debug, Default)]
pub struct DockerfileFrontend;

const CAPABILITIES: [&str; 4] = [
    "moby.buildkit.frontend.inputs",
    "moby.buildkit.frontend.subrequests",
    "moby.buildkit.frontend.contexts",
    "moby.buildkit.frontend.gitquerystring",
];

#[async_trait]
impl Frontend for DockerfileFrontend {
    async fn solve(
        &self,
        bridge: Arc<dyn Bridge>,
        request: FrontendRequest,
    ) -> Result<FrontendResult, FrontendError> {
        solve(bridge, request, false).await
    }
}

#[async_trait]
impl NamedContexts for DockerfileFrontend {
    async fn find(
        &self,
        bridge: Arc<dyn Bridge>,
        request: &FrontendRequest,
        name: &str,
    ) -> Result<Option<NamedContext>, FrontendError> {
        if !request.opts.keys().any(|key| key.starts_with("context:")) {
            return Ok(None);
        }
        let options = Options::parse(request).map_err(|error| error.into_frontend(None))?;
        let client = Client { bridge, request: request.clone(), options, offline: false };
        crate::context::find_named(&client, name).await.map_err(|error| error.into_frontend(None))
    }
}

/// Answers a request. An `offline` one is about the file itself, and its bridge need not know of images.
pub(crate) async fn solve(
    bridge: Arc<dyn Bridge>,
    request: FrontendRequest,
    offline: bool,
) -> Result<FrontendResult, FrontendError> {
    let unsupported = unsupported_capability(&request);
    if let Some((name, false)) = &unsupported {
        return Err(FrontendError::UnsupportedCapability { name: name.clone() });
    }
    let options = Options::parse(&request).map_err(|error| error.into_frontend(None))?;
    let client = Client { bridge, request, options, offline };
    let mut main = MainContext::detect(&client).await.map_err(|error| error.into_frontend(None))?;
    let file = main.read_dockerfile(&client).await.map_err(|error| error.into_frontend(None))?;
    if let Some(result) = forward(&client, &file).await? {
        return Ok(result);
    }
    if let Some((name, _)) = unsupported {
        return Err(FrontendError::UnsupportedCapability { name });
    }
    if let Some(request) = client.options.get("requestid") {
        return crate::subrequest::answer(request, &client, &main, &file).await;
    }
    build(&client, &main, &file).await.map_err(|error| error.into_frontend(Some(&file)))
}

/// The first capability that is asked for and missing; the flag says that the file may be forwarded all the same.
fn unsupported_capability(request: &FrontendRequest) -> Option<(String, bool)> {
    let caps = request.opts.get("frontend.caps")?;
    let mut missing = None;
    for cap in caps.split(',').filter(|cap| !cap.is_empty()) {
        let (name, forward) = match cap.split_once('+') {
            Some((name, rest)) => (name, rest == "forward"),
            None => (cap, false),
        };
        if !CAPABILITIES.contains(&name) {
            if !forward {
                return Some((name.to_owned(), false));
            }
            missing.get_or_insert((name.to_owned(), true));
        }
    }
    missing
}

/// Hands the build to the frontend that the file or the client names instead.
async fn forward(client: &Client, file: &SourceFile) -> Result<Option<FrontendResult>, FrontendError> {
    if client.options.get("cmdline").is_some() {
        return Ok(None);
    }
    let (source, cmdline, lines) = match client.options.get("build-arg:BUILDKIT_SYNTAX") {
        Some(value) => {
            (value.trim().split(' ').next().unwrap_or_default().to_owned(), value.to_owned(), None)
        }
        None => match detect_syntax(&file.data) {
            Some(found) => (found.first, found.value, Some(found.lines)),
            None => return Ok(None),
        },
    };
    let mut opts = client.options.raw.clone();
    opts.insert("cmdline".to_owned(), cmdline.clone());
    opts.insert("source".to_owned(), source);
    let mut request = SolveRequest::frontend("gateway.v0", opts);
    request.inputs = client.request.inputs.clone();
    match client.bridge.solve(request).await {
        Ok(result) => Ok(Some(result)),
        Err(error) if !error.sources().is_empty() => Err(error),
        Err(error) => Err(match lines {
            None => error.context(format!("failed with build-arg:BUILDKIT_SYNTAX = {cmdline}")),
            Some(lines) => Error::from(error).at(&lines).into_frontend(Some(file)),
        }),
    }
}

/// What one platform of a build came to.
struct Built {
    reference: Option<Arc<dyn Reference>>,
    attestation: Option<Attestation>,
    lowered: Lowered,
}

async fn build(client: &Client, main: &MainContext, file: &SourceFile) -> Result<FrontendResult> {
    let options = &client.options;
    let targets: Vec<Option<&Platform>> = match options.target_platforms.as_slice() {
        [] => vec![None],
        platforms => platforms.iter().map(Some).collect(),
    };
    let scanner = Scanner::resolve(client).await?;
    let builds = targets
        .iter()
        .enumerate()
        .map(|(index, platform)| build_platform(client, main, file, *platform, index, scanner.as_ref()));
    let built = futures::future::try_join_all(builds).await?;

    let mut result = FrontendResult::default();
    let mut platforms = Vec::new();
    let mut refs = std::collections::BTreeMap::new();
    for (platform, Built { reference, attestation, lowered }) in targets.iter().zip(built) {
        let wanted = platform.cloned().unwrap_or_else(Platform::host).normalized();
        let exported = exported(&wanted, &lowered.image.platform());
        let suffix = if options.multi_platform { format!("/{}", exported.id) } else { String::new() };
        let json = |error: serde_json::Error| Error::new(format!("failed to marshal image config: {error}"));
        let mut add = |key: &str, value: Vec<u8>| result.metadata.insert(format!("{key}{suffix}"), value);
        add("containerimage.config", lowered.image.to_json().map_err(json)?);
        if let Some(base) = &lowered.base_image {
            add("containerimage.base.config", base.to_json().map_err(json)?);
        }
        if let Some(epoch) = lowered.epoch {
            add("source.date.epoch", epoch.to_string().into_bytes());
        }
        if let Some(attestation) = attestation {
            result.attestations.insert(exported.id.clone(), vec![attestation]);
        }
        refs.insert(exported.id.clone(), reference);
        platforms.push(exported);
    }
    let list = PlatformList { platforms };
    let list = go_json(&list).map_err(|error| Error::new(error.to_string()))?;
    result.metadata.insert("refs.platforms".to_owned(), list);
    result.refs = match options.multi_platform {
        true => References::Map(refs),
        false => References::Single(refs.into_values().next().flatten()),
    };
    Ok(result)
}

async fn build_platform(
    client: &Client,
    main: &MainContext,
    file: &SourceFile,
    platform: Option<&Platform>,
    index: usize,
    scanner: Option<&Scanner>,
) -> Result<Built> {
    let mut lint = linter(client, file)?;
    lint.muted = index > 0;
    let request = Request { client, file, platform, all_stages: false, graph: true, scanner };
    let lowered = lower(request, main, &mut lint).await;
    warn(client, file, &lint).await;
    let mut lowered = lowered?;
    let mut solve = SolveRequest::definition(std::mem::take(&mut lowered.definition));
    solve.cache_imports = client.options.cache_imports.clone();
    let reference = client.bridge.solve(solve).await?.single_ref().cloned();
    let attestation = match lowered.attestation.take() {
        None => None,
        Some(scan) => {
            let scanned = client.bridge.solve(SolveRequest::definition(scan)).await?.single_ref().cloned();
            let mut attestation = Attestation::new(AttestationKind::Bundle, scanned);
            attestation.predicate_type = "https://spdx.dev/Document".to_owned();
            attestation.metadata.insert("reason".to_owned(), b"sbom".to_vec());
            attestation.metadata.insert("sbom-core".to_owned(), b"sbom".to_vec());
            Some(attestation)
        }
    };
    Ok(Built { reference, attestation, lowered })
}

/// How much of a Dockerfile may be sent with warnings, in bytes: each carries the whole file.
const MAX_WARNED: usize = 64 << 20;

/// Sends what the linter found.
async fn warn(client: &Client, file: &SourceFile, lint: &Linter) {
    let shown = lint.hits.len().min(MAX_WARNED / file.data.len().max(1) + 1);
    for hit in lint.hits.iter().take(shown) {
        let mut warning = Warning::default();
        let line = hit.ranges.first().map_or(0, |range| range.start);
        warning.vertex = file.vertex.clone();
        warning.level = 1;
        warning.short = format!("{}: {}", hit.rule.name(), hit.message);
        if line > 0 {
            warning.short.push_str(&format!(" (line {line})"));
        }
        warning.detail = vec![hit.rule.description().to_owned()];
        warning.url = hit.rule.url();
        warning.source = Some(file.to_pb());
        warning.ranges = hit.ranges.iter().map(|range| range.to_pb()).collect::<Vec<pb::Range>>();
        // A client that cannot be told is told nothing; the build goes on.
        let _ = client.bridge.warn(warning).await;
    }
    let more = lint.hits.len() - shown;
    if more > 0 {
        let mut warning = Warning::default();
        warning.vertex = file.vertex.clone();
        warning.level = 1;
        warning.short = format!("{more} more warnings are not shown: check the Dockerfile to see them all");
        let _ = client.bridge.warn(warning).await;
    }
}

#[derive(Serialize)]
struct PlatformList {
    #[serde(rename = "Platforms")]
    platforms: Vec<Exported>,
}

/// A platform of the result, as exporters read it.
#[derive(Serialize)]
struct Exported {
    #[serde(rename = "ID")]
    id: String,
    #[serde(rename = "Platform")]
    platform: ExportedPlatform,
}

#[derive(Serialize)]
struct ExportedPlatform {
    architecture: String,
    os: String,
    #[serde(rename = "os.version", skip_serializing_if = "String::is_empty")]
    os_version: String,
    #[serde(rename = "os.features", skip_serializing_if = "Vec::is_empty")]
    os_features: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    variant: String,
}

/// The id comes from the platform asked for; Windows takes its version from the image where it was not.
fn exported(wanted: &Platform, image: &Platform) -> Exported {
    let id = wanted.format();
    let mut platform = wanted.clone();
    if platform.is_windows() && image.is_windows() {
        if platform.os_version.is_empty() {
            platform.os_version = image.os_version.clone();
        }
        if platform.os_features.is_empty() {
            platform.os_features = image.os_features.clone();
        }
    }
    let Platform { os, arch, variant, os_version, os_features } = platform;
    Exported { id, platform: ExportedPlatform { architecture: arch, os, os_version, os_features, variant } }
}
