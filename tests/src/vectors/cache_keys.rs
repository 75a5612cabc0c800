//! Cache records as builds export them: each case is built on an empty daemon, and what it exports to a local
//! directory is compared with what was recorded.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::vectors::Tally;
use crate::{Binaries, Daemon, DaemonOptions, Finished, WebRequest, WebResponse, WebServer};

/// Stands for a blob whose bytes are different each time.
const VARIES: &str = "VARIES";
/// Stands for a time in a recorded document.
const TIME: &str = "TIME";
/// Where the base images are, beside the cases.
const IMAGES: &str = "../base-image";

/// Runs every case below `dir`; the base images are in `base-image` beside it.
///
/// # Errors
/// What makes it impossible to run cases at all.
pub fn run(binaries: &Binaries, dir: &Path) -> Result<Tally> {
    let mut names = Vec::new();
    for entry in
        std::fs::read_dir(dir).with_context(|| format!("no folder of cases at `{}`", dir.display()))?
    {
        let entry = entry?;
        if entry.path().join("cache.json").exists() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    ensure!(!names.is_empty(), "no cases below `{}`", dir.display());
    let inputs = Inputs::new(dir)?;
    let mut tally = Tally::default();
    for name in names {
        let case = dir.join(&name);
        match inputs.check(binaries, &case) {
            Ok(()) => tally.passed += 1,
            Err(error) => tally.failed.push((name, format!("{error:#}"))),
        }
    }
    Ok(tally)
}

/// What all cases share.
struct Inputs {
    context: tempfile::TempDir,
    images: PathBuf,
    /// By name.
    digests: BTreeMap<String, String>,
    files: WebServer,
    repositories: WebServer,
    _repositories: tempfile::TempDir,
}

impl Inputs {
    fn new(dir: &Path) -> Result<Self> {
        let images = dir.join(IMAGES).canonicalize().context("no base images beside the cases")?;
        let digests = std::fs::read_to_string(images.join("digests.txt"))?;
        let digests = digests.lines().filter_map(|line| line.split_once(' '));
        let digests = digests.map(|(name, digest)| (name.to_owned(), digest.to_owned())).collect();
        let described: Value = serde_json::from_slice(&std::fs::read(dir.join("context.json"))?)?;
        let root = tempfile::tempdir()?;
        make_repository(&dir.join("git-repo/fast-import.txt"), &root.path().join("r.git"))?;
        Ok(Self {
            context: make_context(&described)?,
            images,
            digests,
            files: WebServer::start(file)?,
            repositories: WebServer::git(root.path().to_owned())?,
            _repositories: root,
        })
    }

    fn check(&self, binaries: &Binaries, case: &Path) -> Result<()> {
        let want: Value = serde_json::from_slice(&std::fs::read(case.join("cache.json"))?)?;
        let exported = tempfile::tempdir()?;
        self.build(binaries, case, exported.path())?;
        let index = exported.path().join("index.json");
        if want["nothing_exported"] == json!(true) {
            ensure!(!index.exists(), "something was exported");
            return Ok(());
        }
        ensure!(index.exists(), "nothing was exported");
        let cache = Exported::read(exported.path())?;
        cache.compare(&want)?;
        let raw = case.join("raw.json");
        if raw.exists() { cache.compare_bytes(&std::fs::read_to_string(raw)?) } else { Ok(()) }
    }

    /// The case's Dockerfile with the addresses of servers that are there.
    fn dockerfile(&self, case: &Path) -> Result<tempfile::TempDir> {
        let text = std::fs::read_to_string(case.join("Dockerfile"))?;
        let text = text.replace("http://files.test", &format!("http://{}", self.files.host()));
        let text = text.replace("git://git.test", &format!("http://{}", self.repositories.host()));
        let dir = tempfile::tempdir()?;
        std::fs::write(dir.path().join("Dockerfile"), text)?;
        Ok(dir)
    }

    fn build(&self, binaries: &Binaries, case: &Path, to: &Path) -> Result<()> {
        let options = case.join("opts.json");
        let options: Value =
            if options.exists() { serde_json::from_slice(&std::fs::read(options)?)? } else { Value::Null };
        let mode = options["mode"].as_str().unwrap_or("max");
        ensure!(mode != "inline", "a case with an inline cache");
        let daemon = Daemon::start(binaries, DaemonOptions::default())?;
        let mut command = daemon.buildctl();
        let export = format!("type=local,dest={},mode={mode},compression=uncompressed", to.display());
        command.args(["build", "--progress=plain", "--export-cache", &export]);
        for name in self.digests.keys() {
            command.arg(format!("--oci-layout={name}={}", self.images.join(name).display()));
        }
        let context = self.context.path().display();
        let finished = if case.join("Dockerfile").exists() {
            let dockerfile = self.dockerfile(case)?;
            command.arg("--frontend=dockerfile.v0").arg(format!("--local=context={context}"));
            command.arg(format!("--local=dockerfile={}", dockerfile.path().display()));
            for (name, digest) in &self.digests {
                command.arg(format!("--opt=context:{name}=oci-layout://{name}@{digest}"));
            }
            for (key, value) in options["frontend_opts"].as_object().into_iter().flatten() {
                command.arg(format!("--opt={key}={}", value.as_str().unwrap_or_default()));
            }
            Finished::run(&mut command)?
        } else {
            command.arg(format!("--local=ctx={context}"));
            run_with_input(&mut command, File::open(case.join("def.pb"))?)?
        };
        finished.success().map(drop)
    }
}

/// A file of the recorded web server.
fn file(request: &WebRequest) -> WebResponse {
    let (path, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
    let response = match path {
        "/a.txt" => WebResponse::ok("alpha\n"),
        "/dir/b.bin" => WebResponse::ok("beta\n"),
        _ => return WebResponse::status(404),
    };
    match query {
        "nolm" => response,
        "disp" => dated(response).header("Content-Disposition", "attachment; filename=\"named.txt\""),
        _ => dated(response),
    }
}

fn dated(response: WebResponse) -> WebResponse {
    response.header("Last-Modified", "Thu, 02 Jan 2020 03:04:05 GMT")
}

/// Makes the recorded repository, if the cases have one.
fn make_repository(import: &Path, repository: &Path) -> Result<()> {
    if !import.exists() {
        return Ok(());
    }
    let init = ["-c", "init.defaultBranch=main", "init", "--quiet", "--bare"];
    Finished::run(Command::new("git").args(init).arg(repository))?.success()?;
    let mut fast_import = Command::new("git");
    fast_import.arg("-C").arg(repository).args(["fast-import", "--quiet"]);
    run_with_input(&mut fast_import, File::open(import)?)?.success().map(drop)
}

fn run_with_input(command: &mut Command, input: File) -> Result<Finished> {
    let start = Instant::now();
    let output = command.stdin(Stdio::from(input)).output()?;
    Ok(Finished::of(output, start.elapsed()))
}

/// Writes the files that `context.json` describes.
fn make_context(described: &Value) -> Result<tempfile::TempDir> {
    let dir = tempfile::tempdir()?;
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755))?;
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_577_934_245);
    let mut dated = Vec::new();
    for entry in described["entries"].as_array().context("no entries in the context")? {
        let text = |key: &str| entry[key].as_str().with_context(|| format!("no `{key}` in {entry}"));
        let path = dir.path().join(text("path")?);
        match text("type")? {
            "symlink" => {
                std::os::unix::fs::symlink(text("target")?, &path)?;
                let date = ["-h", "-d", "@1577934245"];
                Finished::run(Command::new("touch").args(date).arg(&path))?.success()?;
                continue;
            }
            "dir" => std::fs::create_dir(&path)?,
            "file" => std::fs::write(&path, text("content")?)?,
            other => bail!("an entry of type `{other}`"),
        }
        let mode = u32::from_str_radix(text("mode")?, 8)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))?;
        dated.push(path);
    }
    // Directories change when something is put into them, so times come last, from the leaves up.
    for path in dated.iter().rev() {
        File::open(path)?.set_modified(time)?;
    }
    File::open(dir.path())?.set_modified(time)?;
    Ok(dir)
}

/// A cache in a local directory.
struct Exported {
    manifest_text: String,
    manifest: Value,
    config_text: String,
    config: Value,
}

impl Exported {
    fn read(dir: &Path) -> Result<Self> {
        let blob = |digest: &Value| -> Result<String> {
            let digest = digest.as_str().context("no digest")?;
            let path = dir.join("blobs").join(digest.replace(':', "/"));
            std::fs::read_to_string(&path).with_context(|| format!("no blob at `{}`", path.display()))
        };
        let index: Value = serde_json::from_slice(&std::fs::read(dir.join("index.json"))?)?;
        let manifest_text = blob(&index["manifests"][0]["digest"])?;
        let manifest: Value = serde_json::from_str(&manifest_text)?;
        let config_text = blob(&manifest["config"]["digest"])?;
        let config = serde_json::from_str(&config_text)?;
        let cache = Self { manifest_text, manifest, config_text, config };
        for layer in cache.manifest["layers"].as_array().into_iter().flatten() {
            let digest = layer["digest"].as_str().context("a layer without digest")?;
            let path = dir.join("blobs").join(digest.replace(':', "/"));
            ensure!(path.exists(), "blob `{digest}` was not exported");
        }
        Ok(cache)
    }

    /// Compares the records, after writing them as `cache.json` has them.
    fn compare(&self, want: &Value) -> Result<()> {
        let records = self.config["records"].as_array().context("no records")?;
        let wanted = want["records"].as_array().context("no recorded records")?;
        let got: Vec<Value> = records
            .iter()
            .enumerate()
            .map(|(index, record)| self.record(record, wanted.get(index)))
            .collect::<Result<_>>()?;
        if got != *wanted {
            let lines = |records: &[Value]| {
                records.iter().map(|record| format!("    {record}\n")).collect::<String>()
            };
            bail!("other records\n  got\n{}  want\n{}", lines(&got), lines(wanted));
        }
        let varies = wanted.iter().any(|record| record.to_string().contains(VARIES));
        let layers = self.config["layers"].as_array().map_or(0, Vec::len);
        ensure!(varies || json!(layers) == want["layer_count"], "{layers} layers");
        let form = json!({
            "artifactType": self.manifest.get("artifactType"),
            "mediaType": self.manifest["mediaType"],
            "schemaVersion": self.manifest["schemaVersion"],
        });
        ensure!(form == want["manifest"], "manifest of the form {form}");
        ensure!(self.manifest["config"]["mediaType"] == want["config_media_type"], "config of another type");
        Ok(())
    }

    fn record(&self, record: &Value, want: Option<&Value>) -> Result<Value> {
        let mut out = serde_json::Map::new();
        out.insert("digest".to_owned(), record["digest"].clone());
        if let Some(inputs) = record.get("inputs") {
            out.insert("inputs".to_owned(), inputs.clone());
        }
        if let Some(results) = record["layers"].as_array() {
            let chains = results.iter().enumerate().map(|(index, result)| {
                let top = result["layer"].as_u64().context("a result without layer")?;
                self.chain(usize::try_from(top)?, want.map_or(&Value::Null, |want| &want["layers"][index]))
            });
            out.insert("layers".to_owned(), Value::Array(chains.collect::<Result<_>>()?));
        }
        if let Some(chains) = record.get("chains") {
            out.insert("chains".to_owned(), chains.clone());
        }
        Ok(Value::Object(out))
    }

    /// The blobs of a result from the bottom, without those that vary in the recorded one.
    fn chain(&self, top: usize, want: &Value) -> Result<Value> {
        let mut blobs = Vec::new();
        let mut next = Some(top);
        while let Some(index) = next {
            let layer = self.config["layers"].get(index).with_context(|| format!("no layer {index}"))?;
            let described = self.manifest["layers"].as_array().into_iter().flatten();
            let described = described.clone().find(|other| other["digest"] == layer["blob"]);
            let described = described.with_context(|| format!("layer {index} is not in the manifest"))?;
            blobs.push(json!({ "blob": layer["blob"], "size": described["size"] }));
            ensure!(blobs.len() <= 1000, "layers without end");
            next = usize::try_from(layer.get("parent").map_or(0, |p| p.as_i64().unwrap_or(-1))).ok();
        }
        blobs.reverse();
        for (blob, want) in blobs.iter_mut().zip(want.as_array().into_iter().flatten()) {
            if want["blob"] == VARIES {
                blob.clone_from(want);
            }
        }
        Ok(Value::Array(blobs))
    }

    /// Compares both documents byte by byte with the recorded ones, but for times and what depends on them.
    fn compare_bytes(&self, raw: &str) -> Result<()> {
        let (config, manifest) = raw
            .trim_end()
            .strip_prefix(r#"{"config":"#)
            .and_then(|rest| rest.strip_suffix('}'))
            .and_then(|rest| rest.split_once(r#","manifest":"#))
            .context("raw.json has another form")?;
        masked(config, &self.config_text).context("the config")?;
        let recorded: Value = serde_json::from_str(manifest)?;
        let mut manifest = manifest.to_owned();
        for key in ["digest", "size"] {
            let field = |document: &Value| format!(r#""{key}":{}"#, document["config"][key]);
            manifest = manifest.replacen(&field(&recorded), &field(&self.manifest), 1);
        }
        masked(&without_places(&manifest), &self.manifest_text).context("the manifest")
    }
}

/// Leaves out annotations that say where a blob was seen; nothing depends on them.
fn without_places(manifest: &str) -> String {
    let mut out = String::with_capacity(manifest.len());
    let mut rest = manifest;
    while let Some((before, after)) = rest.split_once(r#""containerd.io/distribution.source."#) {
        out.push_str(before);
        // Another annotation always follows: keys are sorted, and `containerd.io/uncompressed` is always there.
        rest = after.split_once(',').map_or("", |(_, rest)| rest);
    }
    out.push_str(rest);
    out
}

/// Compares texts; where one says `TIME`, the other may say any time.
fn masked(want: &str, got: &str) -> Result<()> {
    let quoted = format!("\"{TIME}\"");
    let mut rest = got;
    for (index, piece) in want.split(&quoted).enumerate() {
        if index > 0 {
            rest = after_time(rest).with_context(|| format!("no time where one belongs: {rest}"))?;
        }
        rest = rest.strip_prefix(piece).with_context(|| format!("differs\n  got  {got}\n  want {want}"))?;
    }
    ensure!(rest.is_empty(), "something follows: {rest}");
    Ok(())
}

/// What follows a quoted time.
fn after_time(text: &str) -> Option<&str> {
    let (time, rest) = text.strip_prefix('"')?.split_once('"')?;
    let shape = |at: usize, b: u8| match at {
        4 | 7 => b == b'-',
        10 => b == b'T',
        13 | 16 => b == b':',
        _ => true,
    };
    let good =
        time.len() >= 20 && time.ends_with('Z') && time.bytes().enumerate().all(|(at, b)| shape(at, b));
    good.then_some(rest)
}
