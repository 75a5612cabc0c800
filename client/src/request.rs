//! What is to be solved, and the request that says so.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use kiln_api::control::{CacheOptions, CacheOptionsEntry, Exporter, SolveRequest};
use kiln_api::pb;
use kiln_api::sourcepolicy::Policy;
use kiln_session::attach::{
    AgentSource, Attachments, AuthProvider, BlobStore, ContentProvider, DockerConfig, FileSendTargets,
    FileSyncProvider, SecretSource, SecretsProvider, SshProvider, Target,
};
use prost::Message as _;

use crate::error::{Error, Result};
use crate::layout;

/// Tag of a local cache that names none.
const DEFAULT_TAG: &str = "latest";

/// A cache to import from or export to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CacheEntry {
    /// Its type, say `registry`.
    pub kind: String,
    /// Its attributes.
    pub attrs: BTreeMap<String, String>,
}

/// A form in which the result is wanted.
#[derive(Clone, Debug)]
pub struct ExportEntry {
    /// Its type, say `local`.
    pub kind: String,
    /// Its attributes, as the daemon is to see them.
    pub attrs: BTreeMap<String, String>,
    /// What comes back to us.
    pub target: ExportTarget,
}

/// Where the result of an exporter goes.
#[derive(Clone, Debug)]
pub enum ExportTarget {
    /// Nothing comes back, as with an image that is pushed.
    None,
    /// A file or a directory.
    Files(Target),
    /// An OCI layout in a directory, blob by blob.
    Layout(PathBuf),
}

/// What to build and with what. `Default` is an empty request, to be filled in.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct SolveOptions {
    /// Name of the build; random if empty.
    pub reference: String,
    /// The frontend, say `dockerfile.v0`; empty for a definition.
    pub frontend: String,
    /// The frontend's options.
    pub frontend_attrs: BTreeMap<String, String>,
    /// Definitions that the frontend uses by name.
    pub frontend_inputs: BTreeMap<String, pb::Definition>,
    /// What to build without a frontend.
    pub definition: Option<pb::Definition>,
    /// Directories to offer, by name.
    pub locals: BTreeMap<String, PathBuf>,
    /// OCI layouts to offer, by name.
    pub oci_layouts: BTreeMap<String, PathBuf>,
    /// Forms in which the result is wanted.
    pub exports: Vec<ExportEntry>,
    /// Caches to export to.
    pub cache_exports: Vec<CacheEntry>,
    /// Caches to import from.
    pub cache_imports: Vec<CacheEntry>,
    /// What the build may do beyond the usual.
    pub entitlements: Vec<String>,
    /// Secrets to offer, by id.
    pub secrets: BTreeMap<String, SecretSource>,
    /// SSH agents to offer, by id.
    pub ssh: BTreeMap<String, AgentSource>,
    /// Docker's configuration, for registry credentials.
    pub docker_config: Option<DockerConfig>,
    /// What the daemon finds local snapshots of this client by.
    pub shared_key: String,
    /// More services to offer.
    pub attachments: Attachments,
    /// Which sources are allowed.
    pub source_policy: Option<Policy>,
    /// Keep the build out of the history.
    pub internal: bool,
    /// Let steps reach the network through the daemon's proxy only.
    pub proxy_network: bool,
}

/// The request, what the session offers, and what is left to do after success.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) request: SolveRequest,
    pub(crate) attachments: Attachments,
    pub(crate) shared_key: String,
    /// Local caches that are exported to.
    pub(crate) cache_layouts: Vec<CacheLayout>,
    /// Layouts that results are exported to, with the name of the image.
    pub(crate) export_layouts: Vec<(PathBuf, Option<String>)>,
}

/// A directory that a cache is exported to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct CacheLayout {
    pub(crate) dir: PathBuf,
    pub(crate) tag: String,
    /// Its position among the exports of caches.
    pub(crate) position: usize,
    /// What is not referred to any more is removed.
    pub(crate) reset: bool,
}

impl SolveOptions {
    /// Reads the disk: layouts of caches, and whether directories are there.
    pub(crate) fn prepare(mut self, session: &str) -> Result<Prepared> {
        if self.definition.is_some() && !self.frontend.is_empty() {
            return Err(Error::Options {
                reason: format!("invalid definition for frontend {}", self.frontend),
            });
        }
        let mut stores = BTreeMap::new();
        for (name, dir) in &self.oci_layouts {
            stores.insert(format!("oci:{name}"), BlobStore { dir: dir.clone(), writable: false });
        }
        let imports = self.imports(&mut stores)?;
        let (exports, cache_layouts) = self.exports(&mut stores)?;
        let export_layouts = self.export_layouts(&mut stores)?;
        if !imports.is_empty() && !self.frontend.is_empty() {
            let entries: Vec<_> = imports
                .iter()
                .map(|entry| serde_json::json!({ "Type": entry.r#type, "Attrs": entry.attrs }))
                .collect();
            let entries = serde_json::Value::from(entries).to_string();
            self.frontend_attrs.insert("cache-imports".to_owned(), entries);
        }
        let exporters: Vec<Exporter> = self
            .exports
            .iter()
            .map(|export| Exporter { r#type: export.kind.clone(), attrs: export.attrs.clone() })
            .collect();
        let first = exporters.first().cloned().unwrap_or_default();
        let attachments = self.attachments(stores)?;
        let reference = if self.reference.is_empty() { random_id() } else { self.reference };
        let request = SolveRequest {
            r#ref: reference,
            definition: self.definition,
            // For daemons that know of one exporter only.
            exporter_deprecated: first.r#type,
            exporter_attrs_deprecated: first.attrs,
            session: session.to_owned(),
            frontend: self.frontend,
            frontend_attrs: self.frontend_attrs,
            cache: Some(CacheOptions { exports, imports, ..CacheOptions::default() }),
            entitlements: self.entitlements,
            frontend_inputs: self.frontend_inputs,
            internal: self.internal,
            source_policy: self.source_policy,
            exporters,
            proxy_network: self.proxy_network,
            ..SolveRequest::default()
        };
        Ok(Prepared { request, attachments, shared_key: self.shared_key, cache_layouts, export_layouts })
    }

    fn imports(&self, stores: &mut BTreeMap<String, BlobStore>) -> Result<Vec<CacheOptionsEntry>> {
        let mut imports = Vec::new();
        for entry in &self.cache_imports {
            let mut attrs = entry.attrs.clone();
            if entry.kind == "local" {
                let src = attrs.get("src").filter(|src| !src.is_empty()).cloned();
                let src = src.ok_or_else(|| option("local cache importer requires src"))?;
                let dir = PathBuf::from(&src);
                if !attrs.contains_key("digest") {
                    let tag = attrs.get("tag").map_or(DEFAULT_TAG, String::as_str);
                    match layout::resolve(&dir, tag) {
                        Ok(Some(digest)) => {
                            attrs.insert("digest".to_owned(), digest);
                        }
                        Ok(None) => {
                            tracing::warn!(src, tag, "local cache import not found, skipped");
                            continue;
                        }
                        Err(error) => {
                            tracing::warn!(src, %error, "local cache import cannot be read, skipped");
                            continue;
                        }
                    }
                }
                stores.entry(format!("local:{src}")).or_insert_with(|| BlobStore { dir, writable: false });
            }
            imports.push(CacheOptionsEntry { r#type: entry.kind.clone(), attrs });
        }
        Ok(imports)
    }

    fn exports(
        &self,
        stores: &mut BTreeMap<String, BlobStore>,
    ) -> Result<(Vec<CacheOptionsEntry>, Vec<CacheLayout>)> {
        let mut exports = Vec::new();
        let mut layouts = Vec::new();
        for (position, entry) in self.cache_exports.iter().enumerate() {
            if entry.kind == "local" {
                let dest = entry.attrs.get("dest").filter(|dest| !dest.is_empty());
                let dest = dest.ok_or_else(|| option("local cache exporter requires dest"))?;
                let tag = entry.attrs.get("tag").map_or(DEFAULT_TAG, String::as_str);
                let dir = PathBuf::from(dest);
                stores.insert(format!("local:{dest}"), BlobStore { dir: dir.clone(), writable: true });
                let reset = match entry.attrs.get("reset").map(String::as_str) {
                    Some("1" | "t" | "T" | "true" | "TRUE" | "True") => true,
                    None | Some("0" | "f" | "F" | "false" | "FALSE" | "False") => false,
                    Some(other) => {
                        return Err(option(&format!("failed to parse reset: invalid boolean {other:?}")));
                    }
                };
                layouts.push(CacheLayout { dir, tag: tag.to_owned(), position, reset });
            }
            exports.push(CacheOptionsEntry { r#type: entry.kind.clone(), attrs: entry.attrs.clone() });
        }
        Ok((exports, layouts))
    }

    fn export_layouts(
        &self,
        stores: &mut BTreeMap<String, BlobStore>,
    ) -> Result<Vec<(PathBuf, Option<String>)>> {
        let mut layouts = Vec::new();
        for export in &self.exports {
            let ExportTarget::Layout(dir) = &export.target else { continue };
            let store = BlobStore { dir: dir.clone(), writable: true };
            if stores.insert("export".to_owned(), store).is_some() {
                return Err(option("only one export to an OCI layout directory is supported"));
            }
            layouts.push((dir.clone(), export.attrs.get("name").filter(|name| !name.is_empty()).cloned()));
        }
        Ok(layouts)
    }

    fn attachments(&self, stores: BTreeMap<String, BlobStore>) -> Result<Attachments> {
        let mut attachments = self.attachments.clone();
        let locals = self.offered_locals()?;
        if !locals.is_empty() {
            let (service, methods) = FileSyncProvider::new(locals).into_service();
            attachments = attachments.add(service, methods);
        }
        let targets: BTreeMap<usize, Target> = self
            .exports
            .iter()
            .enumerate()
            .filter_map(|(id, export)| match &export.target {
                ExportTarget::Files(target) => Some((id, target.clone())),
                _ => None,
            })
            .collect();
        if !targets.is_empty() {
            let (service, methods) = FileSendTargets::new(targets).into_service();
            attachments = attachments.add(service, methods);
        }
        if !stores.is_empty() {
            let (service, methods) = ContentProvider::new(stores).into_service();
            attachments = attachments.add(service, methods);
        }
        if !self.secrets.is_empty() {
            let (service, methods) = SecretsProvider::new(self.secrets.clone()).into_service();
            attachments = attachments.add(service, methods);
        }
        if !self.ssh.is_empty() {
            let (service, methods) = SshProvider::new(self.ssh.clone()).into_service();
            attachments = attachments.add(service, methods);
        }
        if let Some(config) = &self.docker_config {
            let (service, methods) = AuthProvider::new(config.clone()).into_service();
            attachments = attachments.add(service, methods);
        }
        Ok(attachments)
    }

    /// A definition gets the directories that it names, a frontend all of them.
    fn offered_locals(&self) -> Result<BTreeMap<String, PathBuf>> {
        for dir in self.locals.values() {
            let name = || dir.display().to_string();
            match std::fs::metadata(dir) {
                Ok(metadata) if metadata.is_dir() => {}
                Ok(_) => return Err(Error::NotADirectory { name: name(), source: None }),
                Err(source) => {
                    return Err(Error::NotADirectory { name: name(), source: Some(source) });
                }
            }
        }
        let Some(definition) = &self.definition else { return Ok(self.locals.clone()) };
        let mut offered = BTreeMap::new();
        for name in named_locals(definition) {
            let dir = self.locals.get(&name).ok_or_else(|| Error::LocalNotEnabled { name: name.clone() })?;
            offered.insert(name, dir.clone());
        }
        Ok(offered)
    }
}

fn named_locals(definition: &pb::Definition) -> BTreeSet<String> {
    // An op that cannot be read is for the daemon to complain about.
    let ops = definition.def.iter().filter_map(|bytes| pb::Op::decode(bytes.as_slice()).ok());
    let sources = ops.filter_map(|op| match op.op {
        Some(pb::op::Op::Source(source)) => Some(source.identifier),
        _ => None,
    });
    sources.filter_map(|identifier| identifier.strip_prefix("local://").map(str::to_owned)).collect()
}

fn option(reason: &str) -> Error {
    Error::Options { reason: reason.to_owned() }
}

/// As long and in the same alphabet as the reference's.
pub(crate) fn random_id() -> String {
    const ALPHABET: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    (0..25).map(|_| char::from(ALPHABET[rand::random_range(0..ALPHABET.len())])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition(locals: &[&str]) -> pb::Definition {
        let ops = locals.iter().map(|name| pb::Op {
            op: Some(pb::op::Op::Source(pb::SourceOp {
                identifier: format!("local://{name}"),
                ..pb::SourceOp::default()
            })),
            ..pb::Op::default()
        });
        pb::Definition { def: ops.map(|op| op.encode_to_vec()).collect(), ..pb::Definition::default() }
    }

    #[test]
    fn a_definition_gets_the_directories_it_names() {
        let dir = tempfile::tempdir().unwrap();
        let mut options = SolveOptions { definition: Some(definition(&["a"])), ..SolveOptions::default() };
        options.locals.insert("b".to_owned(), dir.path().to_owned());
        let refused = options.clone().prepare("s").unwrap_err();
        assert_eq!(refused.to_string(), "local directory a not enabled");
        options.locals.insert("a".to_owned(), dir.path().to_owned());
        assert_eq!(options.offered_locals().unwrap().into_keys().collect::<Vec<_>>(), ["a"]);
        options.frontend = "dockerfile.v0".to_owned();
        let refused = options.prepare("s").unwrap_err();
        assert_eq!(refused.to_string(), "invalid definition for frontend dockerfile.v0");
    }

    #[test]
    fn both_generations_of_fields_are_sent() {
        let dir = tempfile::tempdir().unwrap();
        let cache = dir.path().to_str().unwrap().to_owned();
        layout::put(dir.path(), serde_json::json!({ "digest": "sha256:aa" }), Some("latest")).unwrap();
        let mut options = SolveOptions { frontend: "dockerfile.v0".to_owned(), ..SolveOptions::default() };
        let export = |kind: &str| ExportEntry {
            kind: kind.to_owned(),
            attrs: BTreeMap::from([("k".to_owned(), kind.to_owned())]),
            target: ExportTarget::None,
        };
        options.exports = vec![export("image"), export("oci")];
        let entry = |kind: &str, attrs: &[(&str, &str)]| CacheEntry {
            kind: kind.to_owned(),
            attrs: attrs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        };
        options.cache_imports = vec![
            entry("local", &[("src", &cache)]),
            entry("local", &[("src", "/nowhere")]),
            entry("registry", &[("ref", "r/x")]),
        ];
        options.cache_exports = vec![
            entry("registry", &[("ref", "r/y")]),
            entry("local", &[("dest", &cache), ("tag", "t"), ("reset", "true")]),
        ];
        let prepared = options.prepare("s").unwrap();
        let request = prepared.request;
        assert_eq!(request.exporter_deprecated, "image");
        assert_eq!(request.exporter_attrs_deprecated["k"], "image");
        assert_eq!(request.exporters.len(), 2);
        assert_eq!(request.r#ref.len(), 25);
        let imports = request.cache.unwrap().imports;
        assert_eq!(imports.len(), 2);
        assert_eq!(imports[0].attrs["digest"], "sha256:aa");
        assert_eq!(
            request.frontend_attrs["cache-imports"],
            format!(
                r#"[{{"Type":"local","Attrs":{{"digest":"sha256:aa","src":"{cache}"}}}},{{"Type":"registry","Attrs":{{"ref":"r/x"}}}}]"#
            )
        );
        let layout =
            CacheLayout { dir: dir.path().to_owned(), tag: "t".to_owned(), position: 1, reset: true };
        assert_eq!(prepared.cache_layouts, [layout]);
    }
}
