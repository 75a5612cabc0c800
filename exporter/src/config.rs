//! The image config brought in line with the layers. What is not known here is kept.

use std::collections::BTreeMap;

use kiln_content::{History, ImageConfig, Platform, json};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::error::{Error, Result};
use crate::layers::ExportedLayer;
use crate::timestamp::Timestamp;

const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Marks history that this crate had to add.
const COMMENT: &str = "buildkit.exporter.image.v0";

/// Key of an image config: the cache records that the image carries, in base64.
pub const INLINE_CACHE: &str = "moby.buildkit.cache.v0";

/// Returns `config`, or a default one, with the diff IDs of `layers`, a history that fits them, times no later than
/// `epoch`, and the records of `cache`.
pub(crate) fn patch(
    config: Option<&[u8]>,
    base: Option<&ImageConfig>,
    layers: &[ExportedLayer],
    epoch: Option<Timestamp>,
    cache: Option<&[u8]>,
) -> Result<Vec<u8>> {
    use base64::Engine as _;
    let default;
    let config = match config.filter(|config| !config.is_empty()) {
        Some(config) => config,
        None => {
            default = default_config();
            &default
        }
    };
    let mut fields = parse(config)?;
    let mut history = parse_history(&fields)?;
    repair(&mut history, layers);
    if let Some(epoch) = epoch {
        clamp(&mut history, base, epoch);
    }

    let diff_ids: Vec<_> = layers.iter().map(|layer| layer.diff_id).collect();
    let rootfs = kiln_content::RootFs { kind: "layers".to_owned(), diff_ids };
    let created = created(&fields, history.as_deref(), epoch)?;
    let documents: Option<Vec<History>> =
        history.map(|list| list.into_iter().map(Event::into_document).collect());
    set(&mut fields, "rootfs", &rootfs)?;
    set(&mut fields, "history", &documents)?;
    if let Some(created) = created {
        set(&mut fields, "created", &created.map(|time| time.to_string()))?;
    }
    if let Some(cache) = cache {
        set(&mut fields, INLINE_CACHE, &base64::engine::general_purpose::STANDARD.encode(cache))?;
    }
    Ok(write(&fields))
}

/// Parses the config of the base image.
pub(crate) fn parse_base(config: Option<&[u8]>) -> Result<Option<ImageConfig>> {
    config
        .filter(|config| !config.is_empty())
        .map(ImageConfig::parse)
        .transpose()
        .map_err(|error| Error::invalid(format!("failed to unmarshal base image config: {}", chain(&error))))
}

type Fields = BTreeMap<String, Box<RawValue>>;

/// A line of the history with its time understood.
#[derive(Clone, Debug, PartialEq)]
struct Event {
    document: History,
    created: Option<Timestamp>,
}

impl Event {
    fn new(document: &History) -> Result<Self> {
        let created = document.created.as_deref().map(parse_time).transpose()?;
        Ok(Self { document: History { created: None, ..document.clone() }, created })
    }

    fn into_document(self) -> History {
        History { created: self.created.map(|time| time.to_string()), ..self.document }
    }
}

fn parse(config: &[u8]) -> Result<Fields> {
    #[derive(Deserialize)]
    struct Required {
        #[serde(flatten)]
        platform: Platform,
    }
    let invalid =
        |error: serde_json::Error| Error::invalid(format!("invalid image config for export: {error}"));
    let fields: Option<Fields> = serde_json::from_slice(config).map_err(invalid)?;
    let Some(fields) = fields else { return Err(Error::invalid("invalid null image config for export")) };
    let Required { platform } = serde_json::from_slice(config).map_err(invalid)?;
    if platform.os.is_empty() {
        return Err(Error::invalid("invalid image config for export: missing os"));
    }
    if platform.architecture.is_empty() {
        return Err(Error::invalid("invalid image config for export: missing architecture"));
    }
    Ok(fields)
}

/// Returns the history; `None` when there is none, which is not the same as an empty one.
fn parse_history(fields: &Fields) -> Result<Option<Vec<Event>>> {
    let Some(raw) = fields.get("history") else { return Ok(None) };
    let list: Option<Vec<History>> = serde_json::from_str(raw.get())
        .map_err(|error| Error::invalid(format!("failed to unmarshal history from config: {error}")))?;
    list.map(|list| list.iter().map(Event::new).collect()).transpose()
}

/// Makes as many lines with a layer as there are layers, all of them with a time.
fn repair(history: &mut Option<Vec<Event>>, layers: &[ExportedLayer]) {
    let with_layer = history.iter().flatten().filter(|event| !event.document.empty_layer).count();
    if with_layer > layers.len() {
        tracing::warn!("image config has more history than layers");
        let mut left = layers.len();
        for event in history.iter_mut().flatten().filter(|event| !event.document.empty_layer) {
            match left.checked_sub(1) {
                Some(rest) => left = rest,
                None => event.document.empty_layer = true,
            }
        }
    }
    for layer in layers.iter().skip(with_layer) {
        let document = History {
            created_by: if layer.description.is_empty() {
                "created by buildkit".to_owned()
            } else {
                layer.description.clone()
            },
            comment: COMMENT.to_owned(),
            ..History::default()
        };
        let created = Some(Timestamp::from(layer.created_at));
        history.get_or_insert_default().push(Event { document, created });
    }
    let Some(history) = history else { return };
    let own = history.iter_mut().filter(|event| !event.document.empty_layer);
    for (event, layer) in own.zip(layers) {
        event.created.get_or_insert(Timestamp::from(layer.created_at));
    }
    // Lines without a layer take the time of the first new layer, or of the line before.
    let first_gap = history.iter().position(|event| event.created.is_none());
    let after_gap = first_gap.and_then(|gap| history.iter().skip(gap).find_map(|event| event.created));
    let before = history.iter().rev().find_map(|event| event.created);
    let mut created = after_gap.or(before);
    let mut seen_gap = false;
    for event in history {
        match event.created {
            Some(time) if seen_gap => created = Some(time),
            Some(_) => {}
            None => {
                seen_gap = true;
                event.created = created;
            }
        }
    }
}

/// Brings times down to the epoch, but for the beginning that is the base image's own.
fn clamp(history: &mut Option<Vec<Event>>, base: Option<&ImageConfig>, epoch: Timestamp) {
    let base: Vec<Option<Event>> =
        base.map(|base| base.history.iter().map(|line| Event::new(line).ok()).collect()).unwrap_or_default();
    let mut base = base.into_iter();
    let mut diverged = false;
    for event in history.iter_mut().flatten() {
        if !diverged && base.next().flatten().as_ref() == Some(event) {
            continue;
        }
        diverged = true;
        if event.created.is_none_or(|time| time.is_after(epoch)) {
            event.created = Some(epoch);
        }
    }
}

/// Returns the new value of `created`, when it has to change.
fn created(
    fields: &Fields,
    history: Option<&[Event]>,
    epoch: Option<Timestamp>,
) -> Result<Option<Option<Timestamp>>> {
    let Some(raw) = fields.get("created") else {
        let last = history.into_iter().flatten().rev().find_map(|event| event.created);
        return Ok(Some(last));
    };
    let Some(epoch) = epoch else { return Ok(None) };
    let text: Option<String> = serde_json::from_str(raw.get()).map_err(|error| {
        Error::invalid(format!("failed to unmarshal creation time {:?}: {error}", raw.get()))
    })?;
    let Some(text) = text else { return Ok(None) };
    Ok(parse_time(&text)?.is_after(epoch).then_some(Some(epoch)))
}

fn parse_time(text: &str) -> Result<Timestamp> {
    Timestamp::parse(text)
        .ok_or_else(|| Error::invalid(format!("failed to unmarshal creation time {text:?}")))
}

fn set<T: serde::Serialize>(fields: &mut Fields, key: &str, value: &T) -> Result<()> {
    let raw = serde_json::value::to_raw_value(value)
        .map_err(|error| Error::invalid(format!("failed to marshal {key}: {error}")))?;
    fields.insert(key.to_owned(), raw);
    Ok(())
}

fn write(fields: &Fields) -> Vec<u8> {
    json::compact_raw(&json::compact(fields))
}

fn default_config() -> Vec<u8> {
    let platform = Platform::host().normalized();
    let config = kiln_content::Config {
        env: vec![DEFAULT_PATH.to_owned()],
        working_dir: "/".to_owned(),
        ..kiln_content::Config::default()
    };
    json::compact(&ImageConfig { platform, config, ..ImageConfig::default() })
}

/// Writes an error with its causes, where only a text can be handed on.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
