//! The step that makes a bill of materials of a result.

use std::collections::BTreeMap;

use kiln_frontend::{ResolveRequest, pb};

use crate::context::Client;
use crate::error::{Error, Result};
use crate::graph::{Edge, Meta};
use crate::image::Image;
use crate::lower::Lowering;
use crate::shell::Env;

/// A scanner image and how it is run.
#[derive(Clone, Debug)]
pub(crate) struct Scanner {
    reference: String,
    args: Vec<String>,
    env: Vec<String>,
    dir: String,
    parameters: BTreeMap<String, String>,
}

impl Scanner {
    /// Resolves the scanner that the build asks for, if it asks for one.
    pub(crate) async fn resolve(client: &Client) -> Result<Option<Self>> {
        let Some(sbom) = &client.options.sbom else { return Ok(None) };
        let identifier = format!("docker-image://{}", sbom.generator);
        let mut request =
            ResolveRequest::new(pb::SourceOp { identifier, ..pb::SourceOp::default() }, String::new());
        request.platform = Some(client.options.build_platform.to_pb());
        request.resolve_mode = client.options.resolve_mode;
        let answer = client.bridge.resolve_source_metadata(request).await.map_err(|error| {
            Error::from(error).context(format!("failed to resolve source metadata for {}", sbom.generator))
        })?;
        let reference = match answer.source.identifier.strip_prefix("docker-image://") {
            Some(reference) => reference.to_owned(),
            None => sbom.generator.clone(),
        };
        let image = Image::parse(&answer.image.unwrap_or_default().config).map_err(Error::new)?;
        let args = [image.config.entrypoint, image.config.cmd].concat();
        if args.is_empty() {
            return Err(Error::new(format!("scanner {reference} does not have cmd")));
        }
        let (env, dir) = (image.config.env, image.config.working_dir);
        Ok(Some(Self { reference, args, env, dir, parameters: sbom.parameters.clone() }))
    }
}

impl Lowering<'_> {
    /// Adds the scan of a target; returns where its statements are.
    pub(super) fn scan(&mut self, target: usize, scanner: &Scanner, id: &str) -> Edge {
        let platform = self.client.options.build_platform.clone();
        let image = format!("docker-image://{}", scanner.reference);
        let root =
            self.graph.source(image, BTreeMap::new(), Some(&platform), Meta::default(), &["source.image"]);
        let mut scanned: Vec<(String, Option<Edge>)> =
            vec![("/run/src/core/sbom".to_owned(), self.stages[target].state.output)];
        let mut ignore_cache = self.stages[target].ignores_cache;
        if self.scans(target, "BUILDKIT_SBOM_SCAN_CONTEXT") {
            scanned.push(("/run/src/extras/sbom-context".to_owned(), Some(self.context)));
        }
        for stage in self.reachable(target) {
            if stage != target && self.scans(stage, "BUILDKIT_SBOM_SCAN_STAGE") {
                let state = &self.stages[stage];
                ignore_cache |= state.ignores_cache;
                scanned.push((format!("/run/src/extras/sbom-{}", state.display_name), state.state.output));
            }
        }
        let mut env = Env::default();
        for entry in &scanner.env {
            let (key, value) = entry.split_once('=').unwrap_or((entry, ""));
            env.set(key, value);
        }
        env.set("BUILDKIT_SCAN_DESTINATION", "/run/out/");
        env.set("BUILDKIT_SCAN_SOURCE", "/run/src/core/sbom");
        if scanned.len() > 1 {
            env.set("BUILDKIT_SCAN_SOURCE_EXTRAS", "/run/src/extras");
        }
        for (key, value) in &scanner.parameters {
            env.set(&format!("BUILDKIT_SCAN_{key}"), value);
        }
        if env.get("PATH").is_none() {
            env.set("PATH", crate::image::DEFAULT_PATH);
        }
        let mut mounts = vec![
            (pb::Mount { dest: "/".to_owned(), ..pb::Mount::default() }, Some(root)),
            (pb::Mount { dest: "/run/out/".to_owned(), output: 1, ..pb::Mount::default() }, None),
        ];
        for (dest, edge) in scanned {
            mounts.push((pb::Mount { dest, output: -1, readonly: true, ..pb::Mount::default() }, edge));
        }
        mounts.push((super::run::tmpfs("/tmp", 0), None));
        mounts.sort_by(|(a, _), (b, _)| a.dest.cmp(&b.dest));
        let (wire, edges): (Vec<_>, Vec<_>) = mounts.into_iter().unzip();
        let dir = if scanner.dir.is_empty() { "/" } else { &scanner.dir };
        let exec = pb::ExecOp {
            meta: Some(pb::Meta {
                args: scanner.args.clone(),
                env: env.to_list(),
                cwd: dir.to_owned(),
                remove_mount_stubs_recursive: true,
                ..pb::Meta::default()
            }),
            mounts: wire,
            ..pb::ExecOp::default()
        };
        let meta = Meta {
            ignore_cache,
            ..Meta::named(format!("[{id}] generating sbom using {}", scanner.reference))
        };
        let caps = ["exec.meta.base", "exec.mount.bind", "exec.mount.tmpfs"];
        self.graph.exec(exec, edges, &platform, meta, &caps).output(1)
    }

    /// Whether an argument of a stage, or else a global one, switches a scan on for it.
    fn scans(&self, index: usize, key: &str) -> bool {
        let stage = &self.stages[index];
        if !stage.dispatched || stage.unregistered {
            return false;
        }
        let own = stage.args.iter().rev().find(|(name, value)| name == key && value.is_some());
        let value = own.and_then(|(_, value)| value.as_deref()).or_else(|| self.globals.get(key));
        value.is_some_and(|value| {
            crate::go::parse_bool(value)
                .unwrap_or_else(|| value.split(',').any(|name| name == stage.display_name))
        })
    }
}
