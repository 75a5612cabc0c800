use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use kiln_executor::{Error, Result};
use rustix::io::Errno;
use serde::Deserialize;
use tokio::process::Command;
use tokio::sync::OnceCell;

use kiln_runtime::cgroups::Hierarchies;

/// The most that is read of a runtime's log; it writes a few lines.
const MAX_LOG: usize = 256 * 1024;

/// The runtime's binary and what it can do.
#[derive(Debug)]
pub(crate) struct Runtime {
    binary: PathBuf,
    name: String,
    state: PathBuf,
    /// crun refuses to run where both versions of control groups are mounted. There it is run in a mount
    /// namespace without version 2, which has nothing to say in that case.
    hide_unified: Option<PathBuf>,
    keeps: OnceCell<bool>,
}

impl Runtime {
    /// Finds the binary; `state` is where it keeps what it knows of its containers.
    pub(crate) fn find(binary: &str, state: PathBuf, hierarchies: &Hierarchies) -> Result<Self> {
        let Some(binary) = look_up(binary) else {
            let (binary, source) = (binary.to_owned(), Errno::NOENT.into());
            return Err(Error::RuntimeMissing { binary, source });
        };
        let name = binary.file_name().unwrap_or(OsStr::new("runc")).to_string_lossy().into_owned();
        let hide_unified = match name.contains("crun") && !hierarchies.v1.is_empty() {
            true => hierarchies.v2.clone(),
            false => None,
        };
        Ok(Self { binary, name, state, hide_unified, keeps: OnceCell::new() })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Where the runtime keeps what it knows of a container.
    pub(crate) fn state_of(&self, id: &str) -> PathBuf {
        self.state.join(id)
    }

    /// A command in an environment of its own, with `log` as the place for errors.
    pub(crate) fn command(&self, subcommand: &str, log: &Path) -> Command {
        let mut command = match &self.hide_unified {
            None => Command::new(&self.binary),
            Some(unified) => {
                let mut command = Command::new("unshare");
                command.args(["--mount", "--propagation", "slave", "--", "sh", "-c"]);
                command.arg("umount -l \"$0\" && exec \"$@\"").arg(unified).arg(&self.binary);
                command
            }
        };
        command.arg("--root").arg(&self.state).arg("--log").arg(log).args(["--log-format", "json"]);
        command.arg(subcommand);
        // Nothing of the daemon's own: with NOTIFY_SOCKET or LISTEN_FDS, runtimes change what they do.
        command.env_clear();
        for name in ["PATH", "HOME", "XDG_RUNTIME_DIR", "TMPDIR"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command.current_dir("/");
        // A signal from the daemon's terminal is for the daemon.
        command.process_group(0);
        command
    }

    pub(crate) fn spawn(&self, mut command: Command) -> Result<tokio::process::Child> {
        command.spawn().map_err(|source| Error::RuntimeMissing {
            binary: command.as_std().get_program().to_string_lossy().into_owned(),
            source,
        })
    }

    /// Whether `run` can leave the container's state and control groups to the caller. Asked once.
    pub(crate) async fn keeps(&self) -> Result<bool> {
        let ask = || async {
            let mut command = Command::new(&self.binary);
            command.args(["run", "--help"]).stdin(Stdio::null()).env_remove("NOTIFY_SOCKET");
            let answer = command.output().await.map_err(|source| Error::RuntimeMissing {
                binary: self.binary.display().to_string(),
                source,
            })?;
            if !answer.status.success() {
                let said = String::from_utf8_lossy(&answer.stderr);
                let said = said.lines().last().unwrap_or("without a word").to_owned();
                return Err(Error::RuntimeMissing {
                    binary: self.binary.display().to_string(),
                    source: std::io::Error::other(format!("it does not work: {}: {said}", answer.status)),
                });
            }
            Ok(contains(&answer.stdout, b"--keep"))
        };
        self.keeps.get_or_try_init(ask).await.copied()
    }
}

/// The last error of a runtime's log, without what it says of itself.
pub(crate) fn last_error(log: &Path) -> Option<String> {
    #[derive(Deserialize)]
    struct Line {
        level: String,
        msg: String,
    }
    let content = std::fs::read(log).ok()?;
    let tail = &content[content.len().saturating_sub(MAX_LOG)..];
    let text = String::from_utf8_lossy(tail);
    let mut lines = text.lines().rev().filter_map(|line| serde_json::from_str::<Line>(line).ok());
    let message = lines.find(|line| matches!(line.level.as_str(), "error" | "fatal"))?.msg;
    let message = ["runc run failed: ", "exec failed: "]
        .iter()
        .find_map(|prefix| message.strip_prefix(prefix))
        .unwrap_or(&message);
    Some(message.to_owned())
}

fn look_up(name: &str) -> Option<PathBuf> {
    if name.contains('/') {
        return Some(PathBuf::from(name)).filter(|path| is_executable(path));
    }
    // As systemd does for units, the administrator's directories count even if PATH leaves them out.
    let path = std::env::var_os("PATH").unwrap_or_else(|| OsString::from("/usr/bin:/bin"));
    let dirs = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    dirs.map(|dir| dir.join(name)).find(|path| is_executable(path))
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

fn contains(text: &[u8], word: &[u8]) -> bool {
    text.windows(word.len()).any(|window| window == word)
}
