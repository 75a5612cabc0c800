//! Which image runs, and what it says of itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kiln_frontend::{Error as FrontendError, FrontendRequest, ResolveMode, ResolveRequest};
use kiln_llb::pb;
use kiln_llb::state::{Constraints, Source, State};
use kiln_registry::Reference;
use serde::Deserialize;

use crate::build::BuildBridge;
use crate::error::chain;
use crate::frontends::FrontendImages;

/// Labels that frontends carry.
const CAPS: &str = "moby.buildkit.frontend.caps";
const NO_NETWORK: &str = "moby.buildkit.frontend.network.none";
/// What a request with inputs asks for.
const INPUTS: &str = "moby.buildkit.frontend.inputs";
/// Images of the Dockerfile frontend 1.1.6 and 1.1.7, stable and experimental: they know inputs and do not say so.
const KNOWN_FOR_INPUTS: [&str; 4] = [
    "sha256:9ac1c43a60e31dca741a6fe8314130a9cd4c4db0311fbbc636ff992ef60ae76d",
    "sha256:080bd74d8778f83e7b670de193362d8c593c8b14f5c8fb919d28ee8feda0d069",
    "sha256:60543a9d92b92af5088fb2938fb09b2072684af8384399e153e137fe081f8ab4",
    "sha256:de85b2f3a3e8a2f7fe48e8e84a65f6fdd5cd5183afa6412fff9caa6871649c44",
];

/// An image that runs as a frontend.
#[derive(Debug)]
pub(super) struct FrontendImage {
    /// As the request names it.
    pub(super) name: String,
    /// The graph of its files.
    pub(super) definition: pb::Definition,
    pub(super) config: ImageConfig,
    /// Digest of what a reference was resolved to; empty for a context.
    digest: String,
}

/// The parts of an image config that count.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct ImageConfig {
    pub(super) env: Option<Vec<String>>,
    pub(super) entrypoint: Option<Vec<String>>,
    pub(super) working_dir: String,
    pub(super) labels: Option<BTreeMap<String, String>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Document {
    config: Option<ImageConfig>,
}

/// Finds the image that `source` names, or what an option puts in its place.
pub(super) async fn find(
    bridge: &BuildBridge,
    images: &FrontendImages,
    request: &FrontendRequest,
    source: &str,
) -> Result<FrontendImage, FrontendError> {
    if let Some(context) = images.contexts.find(Arc::new(bridge.clone()), request, source).await? {
        let config =
            context.config.as_deref().map_or(Ok(ImageConfig::default()), |json| parse(source, json))?;
        let (name, definition) = (source.to_owned(), context.definition);
        return Ok(FrontendImage { name, definition, config, digest: String::new() });
    }
    let reference =
        Reference::parse(source).map_err(|error| FrontendError::input(chain(&error)))?.or_latest();
    let op = pb::SourceOp { identifier: format!("docker-image://{reference}"), attrs: BTreeMap::new() };
    let mut asked = ResolveRequest::new(op, format!("resolve image config for docker-image://{reference}"));
    asked.resolve_mode = ResolveMode::Default;
    let found = kiln_frontend::Bridge::resolve_source_metadata(bridge, asked).await?;
    let metadata = found.image.unwrap_or_default();
    let config = parse(source, &metadata.config)?;
    let pinned = metadata.digest.parse().map(|digest| reference.with_digest(digest));
    let pinned = pinned.map_err(|_| FrontendError::internal(format!("no digest for `{source}`")))?;
    let files = Source::image(&pinned.to_string()).attr("image.recordtype", "frontend");
    let definition = State::source(files).marshal(&Constraints::default());
    let definition = definition.map_err(|error| FrontendError::internal(chain(&error)))?;
    Ok(FrontendImage { name: source.to_owned(), definition, config, digest: metadata.digest })
}

fn parse(source: &str, json: &[u8]) -> Result<ImageConfig, FrontendError> {
    let document: Document = serde_json::from_slice(json).map_err(|error| {
        FrontendError::input(format!("cannot read the config of frontend image `{source}`: {error}"))
    })?;
    Ok(document.config.unwrap_or_default())
}

impl FrontendImage {
    /// Refuses a request that asks for more than the image says it can do.
    pub(super) fn check_capabilities(&self, request: &FrontendRequest) -> Result<(), FrontendError> {
        let mut known = names(self.config.label(CAPS));
        if KNOWN_FOR_INPUTS.contains(&self.digest.as_str()) {
            known.insert(INPUTS);
        }
        let mut asked = names(request.opts.get("frontend.caps").map(String::as_str).unwrap_or_default());
        if !request.inputs.is_empty() {
            asked.insert(INPUTS);
        }
        match asked.difference(&known).next() {
            None => Ok(()),
            Some(name) => Err(FrontendError::UnsupportedCapability { name: (*name).to_owned() }),
        }
    }
}

impl ImageConfig {
    /// Whether the image says that it needs no network.
    pub(super) fn no_network(&self) -> bool {
        matches!(self.label(NO_NETWORK), "1" | "t" | "T" | "true" | "TRUE" | "True")
    }

    fn label(&self, name: &str) -> &str {
        self.labels.as_ref().and_then(|labels| labels.get(name)).map(String::as_str).unwrap_or_default()
    }
}

/// Names in a list by commas; what follows a `+` is cut.
fn names(list: &str) -> BTreeSet<&str> {
    let names = list.split(',').map(|name| name.split('+').next().unwrap_or_default());
    names.filter(|name| !name.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(labels: &[(&str, &str)], digest: &str) -> FrontendImage {
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        FrontendImage {
            name: "x".to_owned(),
            definition: pb::Definition::default(),
            config: ImageConfig { labels: Some(labels), ..ImageConfig::default() },
            digest: digest.to_owned(),
        }
    }

    #[track_caller]
    fn check(image: &FrontendImage, caps: &str, inputs: bool, want: Option<&str>) {
        let mut request = FrontendRequest::new([("frontend.caps".to_owned(), caps.to_owned())].into());
        if inputs {
            request.inputs.insert("a".to_owned(), pb::Definition::default());
        }
        let got = match image.check_capabilities(&request) {
            Ok(()) => None,
            Err(FrontendError::UnsupportedCapability { name }) => Some(name),
            Err(other) => panic!("{other}"),
        };
        assert_eq!(got.as_deref(), want);
    }

    #[test]
    fn requests_ask_for_what_the_label_says() {
        let plain = image(&[], "");
        check(&plain, "", false, None);
        check(&plain, "", true, Some(INPUTS));
        check(&plain, "a+forward,b", false, Some("a"));
        let labelled = image(&[(CAPS, "a,b+x,moby.buildkit.frontend.inputs")], "");
        check(&labelled, "a+forward,,b", true, None);
        check(&labelled, "c", false, Some("c"));
        check(&image(&[], KNOWN_FOR_INPUTS[2]), "", true, None);
    }

    #[test]
    fn configs_are_read() {
        let json = br#"{"config":{"Env":null,"Entrypoint":["/f","x"],"WorkingDir":"/w","Labels":{"moby.buildkit.frontend.network.none":"true"}}}"#;
        let config = parse("x", json).unwrap();
        assert_eq!((config.entrypoint.unwrap().len(), config.working_dir.as_str()), (2, "/w"));
        assert!(parse("x", json).unwrap().no_network());
        assert!(!parse("x", b"{}").unwrap().no_network());
        assert!(
            parse("x", b"[")
                .unwrap_err()
                .to_string()
                .starts_with("cannot read the config of frontend image `x`")
        );
    }
}
