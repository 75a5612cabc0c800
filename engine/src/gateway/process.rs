//! The process of a frontend: what it is told, and the files about it.

use std::io;
use std::path::Path;

use kiln_executor::{NetworkMode, ProcessSpec, StepMount};
use kiln_frontend::{FrontendRequest, WorkerInfo};
use kiln_llb::pb;
use prost::Message as _;
use serde_json::{Value, json};

use crate::gateway::image::ImageConfig;

/// Runs where the image has no entry point.
const DEFAULT_PROGRAM: &str = "/run";
/// Where a frontend finds files about itself.
const METADATA: &str = "/run/config/buildkit/metadata";

/// The process that serves `request`.
pub(super) fn spec(image: &ImageConfig, request: &FrontendRequest) -> serde_json::Result<ProcessSpec> {
    let mut env = image.env.clone().unwrap_or_default();
    let opts = request.opts.iter().enumerate();
    env.extend(opts.map(|(n, (key, value))| format!("BUILDKIT_FRONTEND_OPT_{n}={key}={value}")));
    let workers: Vec<Value> = request.workers.iter().map(worker).collect();
    env.push(format!("BUILDKIT_SESSION_ID={}", request.session_id));
    env.push(format!("BUILDKIT_WORKERS={}", serde_json::to_string(&workers)?));
    env.push(format!("BUILDKIT_EXPORTEDPRODUCT={}", request.product));
    Ok(ProcessSpec {
        args: image.entrypoint.clone().unwrap_or_else(|| vec![DEFAULT_PROGRAM.to_owned()]),
        env,
        cwd: image.working_dir.clone(),
        network: if image.no_network() { NetworkMode::None } else { NetworkMode::Sandbox },
        remove_mount_stubs_recursive: true,
        ..ProcessSpec::default()
    })
}

fn worker(worker: &WorkerInfo) -> Value {
    let platforms: Vec<Value> = worker.platforms.iter().map(platform).collect();
    json!({ "id": worker.id, "labels": worker.labels, "platforms": platforms, "gcPolicy": [] })
}

fn platform(platform: &pb::Platform) -> Value {
    let mut value = json!({ "architecture": platform.architecture, "os": platform.os });
    for (key, text) in [("os.version", &platform.os_version), ("variant", &platform.variant)] {
        if !text.is_empty() {
            value[key] = json!(text);
        }
    }
    if !platform.os_features.is_empty() {
        value["os.features"] = json!(platform.os_features);
    }
    value
}

/// The directory with files about a frontend; removed when dropped.
#[derive(Debug)]
pub(super) struct Metadata {
    dir: tempfile::TempDir,
}

impl Metadata {
    /// Writes the files. Blocks.
    pub(super) fn make(scratch: &Path, image: &pb::Definition) -> io::Result<Self> {
        let dir = tempfile::Builder::new().prefix("frontend-").tempdir_in(scratch)?;
        std::fs::write(dir.path().join("frontend.bin"), image.encode_to_vec())?;
        Ok(Self { dir })
    }

    pub(super) fn mount(&self) -> StepMount {
        StepMount::host(METADATA, self.dir.path(), &["rbind", "ro", "nosuid", "nodev", "noexec"])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frontend_is_told_its_options_and_workers() {
        let opts = [("filename", "D"), ("target", "a=b")];
        let opts = opts.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let mut request = FrontendRequest::new(opts);
        request.session_id = "s".to_owned();
        let platform = pb::Platform {
            os: "linux".into(),
            architecture: "arm64".into(),
            variant: "v8".into(),
            ..Default::default()
        };
        request.workers =
            vec![WorkerInfo { id: "w".into(), platforms: vec![platform], ..WorkerInfo::default() }];
        let image = ImageConfig { env: Some(vec!["A=1".into()]), ..ImageConfig::default() };
        let made = spec(&image, &request).unwrap();
        assert_eq!(made.args, ["/run"]);
        assert_eq!(
            made.env,
            [
                "A=1",
                "BUILDKIT_FRONTEND_OPT_0=filename=D",
                "BUILDKIT_FRONTEND_OPT_1=target=a=b",
                "BUILDKIT_SESSION_ID=s",
                r#"BUILDKIT_WORKERS=[{"id":"w","labels":{},"platforms":[{"architecture":"arm64","os":"linux","variant":"v8"}],"gcPolicy":[]}]"#,
                "BUILDKIT_EXPORTEDPRODUCT=",
            ]
        );
    }
}
