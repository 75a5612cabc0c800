//! The plugins' programs, and how they are run.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

use crate::config::{NetworkList, kind};
use crate::error::{Error, Result};

/// Where distributions put plugins.
const USUAL: [&str; 3] = ["/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"];
/// How plugins are called that come with the daemon, in `PATH`.
const BUNDLED: &str = "buildkit-cni-";
/// The device in the container.
const DEVICE: &str = "eth0";
/// A plugin that takes longer is killed.
const PATIENCE: Duration = Duration::from_secs(30);
/// The most that is read of what a plugin says, in bytes.
const MAX_OUTPUT: u64 = 1024 * 1024;
/// The longest message that is handed on, in characters.
const MAX_MESSAGE: usize = 2000;
/// Added to `PATH` for the programs that plugins start.
const SYSTEM_DIRS: &str = "/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin";

/// Where the programs of plugins are.
#[derive(Clone, Debug)]
pub struct Plugins {
    dirs: Vec<PathBuf>,
}

/// What an attachment is called.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attachment<'a> {
    pub(crate) id: &'a str,
    /// The file of the namespace; none if it is gone.
    pub(crate) namespace: Option<&'a Path>,
    pub(crate) hostname: Option<&'a str>,
}

impl Plugins {
    /// Those in `dir`; if none is given, in the directories that distributions use.
    pub fn new(dir: Option<PathBuf>) -> Self {
        match dir {
            Some(dir) => Self { dirs: vec![dir] },
            None => Self { dirs: USUAL.iter().map(PathBuf::from).collect() },
        }
    }

    /// Sees to it that every program of a list is there. Blocks.
    ///
    /// # Errors
    /// [`Error::PluginMissing`] names the first one that is not.
    pub fn check(&self, list: &NetworkList) -> Result<()> {
        list.programs().into_iter().try_for_each(|name| self.find(name).map(drop))
    }

    /// The daemon's own bridge with the programs that are there: those of the directories, or those that come with the
    /// reference's daemon. Blocks.
    pub fn bridge(&mut self, list: NetworkList) -> Result<NetworkList> {
        let missing = match self.check(&list) {
            Ok(()) => return Ok(list),
            Err(missing) => missing,
        };
        let path = std::env::var_os("PATH").unwrap_or_default();
        let bundled = Self { dirs: std::env::split_paths(&path).filter(|dir| dir.is_absolute()).collect() };
        let renamed = list.with_prefix(BUNDLED);
        match bundled.check(&renamed) {
            Ok(()) => {
                *self = bundled;
                Ok(renamed)
            }
            Err(_) => Err(missing),
        }
    }

    fn find(&self, name: &str) -> Result<PathBuf> {
        let mut paths = self.dirs.iter().map(|dir| dir.join(name));
        paths.find(|path| path.is_file()).ok_or_else(|| {
            let dirs: Vec<String> = self.dirs.iter().map(|dir| format!("`{}`", dir.display())).collect();
            Error::PluginMissing { plugin: name.to_owned(), looked_in: dirs.join(", ") }
        })
    }

    /// Connects a namespace; what the last plugin said.
    ///
    /// # Cancel safety
    /// None: what was set up by then stays until [`detach`](Self::detach).
    pub(crate) async fn attach(&self, list: &NetworkList, attachment: Attachment<'_>) -> Result<Value> {
        let mut previous = None;
        for plugin in list.plugins() {
            previous =
                Some(self.run("ADD", plugin, list.input(plugin, previous.as_ref()), attachment).await?);
        }
        Ok(previous.unwrap_or(Value::Null))
    }

    /// Disconnects a namespace, last plugin first. All are asked, whatever becomes of one; the first error counts.
    pub(crate) async fn detach(
        &self,
        list: &NetworkList,
        previous: Option<&Value>,
        attachment: Attachment<'_>,
    ) -> Result<()> {
        let mut outcome = Ok(());
        for plugin in list.plugins().iter().rev() {
            let done = self.run("DEL", plugin, list.input(plugin, previous), attachment).await;
            outcome = outcome.and(done.map(drop));
        }
        outcome
    }

    async fn run(
        &self,
        command: &'static str,
        plugin: &Map<String, Value>,
        input: Value,
        attachment: Attachment<'_>,
    ) -> Result<Value> {
        let name = kind(plugin).unwrap_or_default();
        let failed = |message: String| Error::Plugin {
            plugin: name.to_owned(),
            command: if command == "ADD" { "add" } else { "remove" },
            message: message.chars().take(MAX_MESSAGE).collect(),
        };
        let mut process = Command::new(self.find(name)?);
        process.env_clear().envs(self.environment(command, attachment)).kill_on_drop(true);
        process.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let ran = tokio::time::timeout(PATIENCE, async {
            let mut child = process.spawn()?;
            let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
            let tell = async {
                if let Some(mut stdin) = stdin {
                    // A plugin may end without having read all.
                    let _ = stdin.write_all(input.to_string().as_bytes()).await;
                }
            };
            let ((), stdout, stderr) = tokio::join!(tell, all_of(stdout), all_of(stderr));
            Ok::<_, std::io::Error>((child.wait().await?, stdout?, stderr?))
        });
        let (status, stdout, stderr) = match ran.await {
            Ok(ran) => ran.map_err(|error| failed(error.to_string()))?,
            Err(_) => return Err(failed(format!("it took longer than {} s", PATIENCE.as_secs()))),
        };
        if !status.success() {
            return Err(failed(message(&stdout, &stderr, status)));
        }
        if command == "DEL" {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&stdout).map_err(|error| failed(format!("what it said is no result: {error}")))
    }

    fn environment(&self, command: &str, attachment: Attachment<'_>) -> Vec<(&'static str, OsString)> {
        let Attachment { id, namespace, hostname } = attachment;
        let dirs: Vec<&str> = self.dirs.iter().filter_map(|dir| dir.to_str()).collect();
        let mut args = "IgnoreUnknown=1".to_owned();
        if let Some(hostname) = hostname {
            args.push_str(";K8S_POD_NAME=");
            args.push_str(hostname);
        }
        let own = std::env::var("PATH").unwrap_or_default();
        vec![
            ("CNI_COMMAND", command.into()),
            ("CNI_CONTAINERID", id.into()),
            ("CNI_NETNS", namespace.map(|path| path.as_os_str().to_owned()).unwrap_or_default()),
            ("CNI_IFNAME", DEVICE.into()),
            ("CNI_ARGS", args.into()),
            ("CNI_PATH", dirs.join(":").into()),
            ("PATH", format!("{own}:{SYSTEM_DIRS}").trim_start_matches(':').into()),
        ]
    }
}

async fn all_of(stream: Option<impl AsyncRead + Unpin>) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(mut stream) = stream {
        (&mut stream).take(MAX_OUTPUT).read_to_end(&mut bytes).await?;
        // A plugin that says more is heard to its end all the same.
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
    }
    Ok(bytes)
}

/// What a plugin that failed says: an error object on its standard output, or whatever it wrote.
fn message(stdout: &[u8], stderr: &[u8], status: std::process::ExitStatus) -> String {
    let said: Option<Map<String, Value>> = serde_json::from_slice(stdout).ok();
    let part = |key: &str| {
        let text = said.as_ref()?.get(key)?.as_str()?.trim();
        (!text.is_empty()).then(|| text.to_owned())
    };
    let parts: Vec<String> = [part("msg"), part("details")].into_iter().flatten().collect();
    if !parts.is_empty() {
        return parts.join(": ");
    }
    let texts = [stdout, stderr].map(|bytes| String::from_utf8_lossy(bytes).trim().to_owned());
    let texts: Vec<String> = texts.into_iter().filter(|text| !text.is_empty()).collect();
    if texts.is_empty() { format!("it said nothing ({status})") } else { texts.join(": ") }
}
