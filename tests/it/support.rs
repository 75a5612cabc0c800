//! What the tests share: a registry with a base image, a daemon with a context, and judges of what was built.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use kiln_tests::{
    Binaries, Daemon, DaemonOptions, Finished, Registry, push_base_image, wait_for, write_tree,
};
use serde_json::Value;
use tempfile::TempDir;

/// Long enough for a slow machine; a test that reaches it fails.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// A registry that every test may read and push to.
pub(crate) struct Hub {
    pub(crate) registry: Registry,
    /// A small image with a shell, users and groups.
    pub(crate) base: String,
}

/// The registry of this process; made by the first test that asks.
pub(crate) fn hub() -> Result<&'static Hub> {
    static HUB: OnceLock<Hub> = OnceLock::new();
    static MAKING: Mutex<()> = Mutex::new(());
    let _making = MAKING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(hub) = HUB.get() {
        return Ok(hub);
    }
    let registry = Registry::start()?;
    let daemon = Daemon::start(&Binaries::from_env()?, DaemonOptions::default())?;
    let base = push_base_image(&daemon, &registry, "base")?;
    Ok(HUB.get_or_init(|| Hub { registry, base }))
}

/// A daemon of one's own and a build context.
pub(crate) struct Site {
    pub(crate) daemon: Daemon,
    context: TempDir,
}

impl Site {
    /// Starts the daemon and writes the context.
    pub(crate) fn new(files: &[(&str, &str)]) -> Result<Self> {
        Self::with_options(files, DaemonOptions::default())
    }

    /// Starts the daemon with options and writes the context.
    pub(crate) fn with_options(files: &[(&str, &str)], options: DaemonOptions) -> Result<Self> {
        let site =
            Self { daemon: Daemon::start(&Binaries::from_env()?, options)?, context: tempfile::tempdir()? };
        site.write(files)?;
        Ok(site)
    }

    /// Where the context is.
    pub(crate) fn context(&self) -> &Path {
        self.context.path()
    }

    /// Writes files of the context.
    pub(crate) fn write(&self, files: &[(&str, &str)]) -> Result<()> {
        write_tree(self.context(), files)
    }

    /// A build of the context with the base image as build argument `BASE`.
    pub(crate) fn command(&self, args: &[&str]) -> Result<Command> {
        let mut command = self.daemon.build_command(self.context());
        command.arg(format!("--opt=build-arg:BASE={}", hub()?.base)).args(args);
        Ok(command)
    }

    /// Builds, whatever comes out.
    pub(crate) fn build(&self, args: &[&str]) -> Result<Finished> {
        Finished::run(&mut self.command(args)?)
    }

    /// Starts a build that goes on beside the test.
    pub(crate) fn start(&self, args: &[&str]) -> Result<Client> {
        Client::start(&mut self.command(args)?)
    }

    /// Builds into a directory.
    pub(crate) fn local(&self, args: &[&str]) -> Result<Built> {
        let dir = tempfile::tempdir()?;
        let output = format!("--output=type=local,dest={}", dir.path().display());
        let log = Finished::run(self.command(args)?.arg(output))?.success()?.stderr;
        Ok(Built { dir, log })
    }

    /// Builds this Dockerfile into a directory.
    pub(crate) fn dockerfile(&self, dockerfile: &str, args: &[&str]) -> Result<Built> {
        self.write(&[("Dockerfile", dockerfile)])?;
        self.local(args)
    }

    /// Builds into an archive that is an OCI layout, and copies it to a directory that tools read.
    pub(crate) fn image(&self, args: &[&str]) -> Result<Image> {
        let dir = tempfile::tempdir()?;
        let archive = dir.path().join("image.tar");
        let output = format!("--output=type=oci,dest={}", archive.display());
        Finished::run(self.command(args)?.arg(output))?.success()?;
        Image::copy(dir, &format!("oci-archive:{}", archive.display()))
    }
}

/// A client that runs beside the test. Dropped, it is killed.
pub(crate) struct Client {
    child: Child,
    log: Arc<Mutex<String>>,
    reader: Option<std::thread::JoinHandle<()>>,
}

impl Client {
    /// Starts one.
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("failed to start {command:?}"))?;
        let stderr = child.stderr.take().context("no pipe")?;
        let log = Arc::new(Mutex::new(String::new()));
        let to = log.clone();
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                lock(&to).push_str(&(line + "\n"));
            }
        });
        Ok(Self { child, log, reader: Some(reader) })
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until its progress shows `text`.
    pub(crate) fn wait_for(&self, text: &str) -> Result<()> {
        wait_for(text, LIMIT, None, || lock(&self.log).contains(text))
            .with_context(|| format!("the client's log:\n{}", lock(&self.log)))
    }

    /// Kills it at once, as `kill -9` does, and reaps it.
    pub(crate) fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Waits for its end.
    pub(crate) fn finish(mut self) -> Result<Finished> {
        let status = self.child.wait()?;
        if let Some(reader) = self.reader.take() {
            reader.join().ok();
        }
        let stderr = lock(&self.log).clone();
        Ok(Finished {
            code: status.code().unwrap_or(-1),
            stdout: String::new(),
            stderr,
            took: Duration::ZERO,
        })
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn lock(log: &Mutex<String>) -> MutexGuard<'_, String> {
    log.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A directory that a build wrote.
pub(crate) struct Built {
    pub(crate) dir: TempDir,
    pub(crate) log: String,
}

impl Built {
    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A file's content.
    pub(crate) fn read(&self, path: &str) -> Result<String> {
        let path = self.dir.path().join(path);
        std::fs::read_to_string(&path).with_context(|| format!("no `{}`\n{}", path.display(), self.log))
    }

    /// Every entry, as [`tree`] shows them.
    pub(crate) fn tree(&self) -> Result<String> {
        tree(self.path())
    }
}

/// An image as skopeo and umoci see it.
pub(crate) struct Image {
    dir: TempDir,
}

impl Image {
    /// Copies an image from where skopeo finds it.
    pub(crate) fn pull(source: &str) -> Result<Self> {
        Self::copy(tempfile::tempdir()?, source)
    }

    pub(crate) fn copy(dir: TempDir, source: &str) -> Result<Self> {
        let to = format!("oci:{}:it", dir.path().join("layout").display());
        run("skopeo", &["copy", "--quiet", "--insecure-policy", "--src-tls-verify=false", source, &to])?;
        Ok(Self { dir })
    }

    fn name(&self) -> String {
        format!("{}:it", self.dir.path().join("layout").display())
    }

    /// Its manifest.
    pub(crate) fn manifest(&self) -> Result<Value> {
        inspect(&["--raw", &format!("oci:{}", self.name())])
    }

    /// Its configuration.
    pub(crate) fn config(&self) -> Result<Value> {
        inspect(&["--config", "--raw", &format!("oci:{}", self.name())])
    }

    /// Its root filesystem.
    pub(crate) fn unpack(&self) -> Result<PathBuf> {
        let bundle = self.dir.path().join("bundle");
        if !bundle.exists() {
            run("umoci", &["unpack", "--image", &self.name(), &bundle.display().to_string()])?;
        }
        Ok(bundle.join("rootfs"))
    }
}

/// What `skopeo inspect` says.
pub(crate) fn inspect(args: &[&str]) -> Result<Value> {
    let mut all = vec!["inspect", "--tls-verify=false"];
    all.extend(args);
    Ok(serde_json::from_str(&run("skopeo", &all)?)?)
}

/// Runs a tool; its standard output.
pub(crate) fn run(tool: &str, args: &[&str]) -> Result<String> {
    let finished = Finished::run(Command::new(tool).args(args))?;
    Ok(finished.success().with_context(|| format!("{tool} {args:?}"))?.stdout)
}

/// Every entry below `dir` in order: type and mode, owner, path, and content or target.
pub(crate) fn tree(dir: &Path) -> Result<String> {
    let mut out = String::new();
    walk(dir, "", &mut out)?;
    Ok(out)
}

fn walk(dir: &Path, below: &str, out: &mut String) -> Result<()> {
    let mut names: Vec<_> =
        std::fs::read_dir(dir)?.map(|e| e.map(|e| e.file_name())).collect::<Result<_, _>>()?;
    names.sort();
    for name in names {
        let path = dir.join(&name);
        let shown = format!("{below}{}", name.display());
        let meta = path.symlink_metadata()?;
        let mut line = |kind: &str, rest: &str| {
            let mode = meta.mode() & 0o7777;
            writeln!(out, "{kind}{mode:04o} {}:{} {shown}{rest}", meta.uid(), meta.gid())
        };
        let kind = meta.file_type();
        if kind.is_dir() {
            line("d", "/")?;
            walk(&path, &format!("{shown}/"), out)?;
        } else if kind.is_symlink() {
            line("l", &format!(" -> {}", path.read_link()?.display()))?;
        } else if kind.is_file() {
            line("-", &format!(" {:?}", String::from_utf8_lossy(&std::fs::read(&path)?)))?;
        } else if kind.is_char_device() {
            line("c", "")?;
        } else {
            line("?", "")?;
        }
    }
    Ok(())
}

/// What became of the step whose name contains `step`: `CACHED`, `DONE`, `ERROR`, `CANCELED` or nothing.
pub(crate) fn outcome<'a>(log: &'a str, step: &str) -> &'a str {
    let Some(number) =
        log.lines().find(|l| l.contains(step) && l.starts_with('#')).and_then(|l| l.split(' ').next())
    else {
        return "";
    };
    log.lines()
        .filter_map(|l| l.strip_prefix(number)?.strip_prefix(' ')?.split([' ', ':']).next())
        .find(|word| matches!(*word, "CACHED" | "DONE" | "ERROR" | "CANCELED"))
        .unwrap_or_default()
}

/// Asserts the outcome of steps, all in one message.
#[track_caller]
pub(crate) fn check_outcomes(log: &str, want: &[(&str, &str)]) {
    let got: Vec<_> = want.iter().map(|(step, _)| (*step, outcome(log, step))).collect();
    assert_eq!(got, want, "\n{log}");
}

/// Asserts that a text holds all of these.
#[track_caller]
pub(crate) fn check_contains(text: &str, wanted: &[&str]) {
    let missing: Vec<_> = wanted.iter().filter(|w| !text.contains(**w)).collect();
    assert!(missing.is_empty(), "without {missing:?}:\n{text}");
}

/// Names of the entries of a tar archive, sorted.
pub(crate) fn tar_names(archive: &Path) -> Result<Vec<String>> {
    let mut names: Vec<_> =
        run("tar", &["-tf", &archive.display().to_string()])?.lines().map(str::to_owned).collect();
    names.sort();
    Ok(names)
}

/// The mount points below a directory.
pub(crate) fn mounts_below(dir: &Path) -> Result<Vec<String>> {
    let dir = dir.display().to_string();
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    Ok(mounts.lines().filter(|l| l.contains(&dir)).map(str::to_owned).collect())
}

/// Process ids whose command line contains `text`, this process left out.
pub(crate) fn processes_with(text: &str) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|n| n.parse().ok()) else { continue };
        // A process may end while it is looked at.
        let Ok(line) = std::fs::read(format!("/proc/{pid}/cmdline")) else { continue };
        if pid != std::process::id() && String::from_utf8_lossy(&line).contains(text) {
            found.push(pid);
        }
    }
    Ok(found)
}

/// Sends a signal, by its short name, to a process.
pub(crate) fn signal(name: &str, pid: u32) -> Result<()> {
    run("kill", &["-s", name, &pid.to_string()]).map(drop)
}

/// A text that no other run of any test has.
pub(crate) fn unique() -> Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/uuid")?.trim().to_owned())
}

/// Pushes an image made of hand-made layers; its reference.
pub(crate) fn push_layers(registry: &Registry, name: &str, layers: &[PathBuf]) -> Result<String> {
    let dir = tempfile::tempdir()?;
    let layout = dir.path().join("layout").display().to_string();
    let image = format!("{layout}:it");
    run("umoci", &["init", "--layout", &layout])?;
    run("umoci", &["new", "--image", &image])?;
    for layer in layers {
        run("umoci", &["raw", "add-layer", "--image", &image, &layer.display().to_string()])?;
    }
    let reference = format!("{}/{name}:latest", registry.address());
    let to = format!("docker://{reference}");
    run(
        "skopeo",
        &["copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false", &format!("oci:{image}"), &to],
    )?;
    Ok(reference)
}

/// Fails unless both directories hold the same.
pub(crate) fn same_tree(a: &Path, b: &Path) -> Result<()> {
    let (a, b) = (tree(a)?, tree(b)?);
    ensure!(a == b, "different trees:\n{a}\n---\n{b}");
    Ok(())
}

/// The digest in a metadata file.
pub(crate) fn metadata(path: &Path) -> Result<Value> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("no metadata at `{}`", path.display()))?;
    let value: Value = serde_json::from_str(&text)?;
    if !value.is_object() {
        bail!("metadata is no object: {text}");
    }
    Ok(value)
}
