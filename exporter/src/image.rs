//! `image`: into the content store, and from there to registries.

use std::collections::BTreeMap;

use async_trait::async_trait;

use crate::attrs::{ImageAttrs, parse_flag};
use crate::commit::{Committed, commit, response};
use crate::error::{Error, Result};
use crate::exporter::{ExportRequest, Exported, Exporter, Finalize, Kind, Tools};
use crate::progress::begin;
use crate::push::PushRequest;
use crate::source::keys;

#[derive(Debug)]
pub(crate) struct ImageExporter {
    id: usize,
    tools: Tools,
    attrs: ImageAttrs,
    push: bool,
    push_by_digest: bool,
    insecure: bool,
    unpack: bool,
    dangling_prefix: String,
    dangling_empty_only: bool,
    metadata: BTreeMap<String, String>,
}

impl ImageExporter {
    pub(crate) fn new(id: usize, attrs: &BTreeMap<String, String>, tools: Tools) -> Result<Self> {
        let inline_asked = attrs.contains_key("attestation-inline");
        let (mut attrs, rest) = ImageAttrs::load(attrs)?;
        attrs.inline_attestations |= !inline_asked;
        let mut out = Self {
            id,
            tools,
            attrs,
            push: false,
            push_by_digest: false,
            insecure: false,
            unpack: false,
            dangling_prefix: String::new(),
            dangling_empty_only: false,
            metadata: BTreeMap::new(),
        };
        for (key, value) in rest {
            match key.as_str() {
                "push" => out.push = parse_flag(&key, &value)?,
                "push-by-digest" => out.push_by_digest = parse_flag(&key, &value)?,
                "registry.insecure" => out.insecure = parse_flag(&key, &value)?,
                "unpack" => out.unpack = parse_flag(&key, &value)?,
                // About an image store, which there is none of.
                "store" | "unsafe-internal-store-allow-incomplete" | "name-canonical" => {
                    parse_flag(&key, &value)?;
                }
                "dangling-name-prefix" => out.dangling_prefix = value,
                "danging-name-empty-only" => out.dangling_empty_only = parse_flag(&key, &value)?,
                _ => {
                    out.metadata.insert(key, value);
                }
            }
        }
        Ok(out)
    }

    fn names(&self, request: &ExportRequest, committed: &Committed) -> String {
        let mut names = asked_names(&self.attrs, request);
        if !self.dangling_prefix.is_empty() && (!self.dangling_empty_only || names.is_empty()) {
            if !names.is_empty() {
                names.push(',');
            }
            names.push_str(&format!("{}@{}", self.dangling_prefix, committed.descriptor.digest));
        }
        names
    }
}

#[async_trait]
impl Exporter for ImageExporter {
    fn kind(&self) -> Kind {
        Kind::Image
    }

    fn id(&self) -> usize {
        self.id
    }

    async fn export(&self, mut request: ExportRequest) -> Result<Exported> {
        add_metadata(&mut request, &self.metadata);
        let mut attrs = self.attrs.clone();
        attrs.annotations.take_metadata(&request.source.metadata)?;
        attrs.complete(Kind::Image, request.compatibility)?;
        if self.unpack && attrs.rewrite_timestamp {
            return Err(Error::invalid("exporter option \"rewrite-timestamp\" conflicts with \"unpack\""));
        }
        let committed = commit(&self.tools, &request, &attrs).await?;
        let mut response = response(&committed);
        let names = self.names(&request, &committed);
        if !names.is_empty() {
            response.insert(keys::IMAGE_NAME.to_owned(), names.clone());
        }
        let finalize = if self.push && !names.is_empty() {
            Some(self.finalize(names, &request, &committed)?)
        } else {
            None
        };
        Ok(Exported { response, descriptor: Some(committed.descriptor), finalize })
    }
}

impl ImageExporter {
    fn finalize(&self, names: String, request: &ExportRequest, committed: &Committed) -> Result<Finalize> {
        let Some(pusher) = self.tools.pusher.clone() else {
            return Err(Error::Unsupported("push".to_owned()));
        };
        let provider = request.provider.clone();
        let session = request.session.clone();
        let committed = committed.clone();
        let (by_digest, insecure) = (self.push_by_digest, self.insecure);
        Ok(Box::new(move |progress| {
            Box::pin(async move {
                for name in names.split(',') {
                    let part = begin(&progress, "pushing layers");
                    let request = PushRequest {
                        name: name.to_owned(),
                        root: committed.descriptor.clone(),
                        by_digest,
                        insecure,
                        session: session.clone(),
                        layers: committed.layers.clone(),
                        provider: provider.clone(),
                        progress: progress.clone(),
                    };
                    push_name(name, by_digest)?;
                    let pushed = pusher.push(request).await;
                    drop(part);
                    pushed.map_err(|source| Error::Push { name: name.to_owned(), source })?;
                    let digest = committed.descriptor.digest;
                    let shown = shown_name(name);
                    drop(begin(&progress, format!("pushing manifest for {shown}@{digest}")));
                }
                Ok(())
            })
        }))
    }
}

fn push_name(name: &str, by_digest: bool) -> Result<()> {
    if by_digest
        && let Ok(reference) = kiln_registry::Reference::parse(name)
        && reference.tag().is_some()
    {
        let reason = format!("can't push tagged ref {reference} by digest");
        return Err(Error::Push { name: name.to_owned(), source: reason.into() });
    }
    Ok(())
}

fn shown_name(name: &str) -> String {
    match kiln_registry::Reference::parse(name) {
        Ok(reference) if reference.digest().is_none() => reference.or_latest().to_string(),
        Ok(reference) => reference.without_object().to_string(),
        Err(_) => name.to_owned(),
    }
}

/// Returns the names that were asked for, those of the frontend for `*`.
pub(crate) fn asked_names(attrs: &ImageAttrs, request: &ExportRequest) -> String {
    if attrs.name == "*"
        && let Some(names) = request.source.metadata.get(keys::IMAGE_NAME)
    {
        return String::from_utf8_lossy(names).into_owned();
    }
    attrs.name.clone()
}

/// Attributes that no exporter knows are metadata.
pub(crate) fn add_metadata(request: &mut ExportRequest, metadata: &BTreeMap<String, String>) {
    for (key, value) in metadata {
        request.source.metadata.insert(key.clone(), value.clone().into_bytes());
    }
}
