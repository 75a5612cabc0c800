use std::fmt;
use std::pin::Pin;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::io::AsyncRead;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};
use crate::process::ProcessSpec;
use crate::samples::Samples;
use crate::step_mount::StepMount;

/// Names a container: 1 to 64 ASCII letters and digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContainerId(String);

impl ContainerId {
    /// Takes `text` as a name.
    ///
    /// # Errors
    /// [`Error::InvalidContainerId`] if it is none.
    pub fn new(text: impl Into<String>) -> Result<Self> {
        let text = text.into();
        let fits = (1..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if fits {
            Ok(Self(text))
        } else {
            Err(Error::InvalidContainerId { text: text.chars().take(80).collect() })
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a process wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// To its standard output, or to its terminal.
    Stdout(Bytes),
    /// To its standard error.
    Stderr(Bytes),
}

/// The size of a terminal, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters a line.
    pub cols: u16,
}

/// What a process is connected to.
pub struct ProcessIo {
    /// Its input; nothing if there is none. The end of the stream closes it.
    pub stdin: Option<Pin<Box<dyn AsyncRead + Send>>>,
    /// Takes its output. When the channel is full the process waits; when the receiver is gone, output is
    /// thrown away.
    pub output: mpsc::Sender<Output>,
    /// New sizes of its terminal.
    pub resize: Option<mpsc::Receiver<WindowSize>>,
    /// Signals for it, by number.
    pub signals: Option<mpsc::Receiver<i32>>,
}

impl ProcessIo {
    /// Output alone.
    pub fn new(output: mpsc::Sender<Output>) -> Self {
        Self { stdin: None, output, resize: None, signals: None }
    }
}

impl fmt::Debug for ProcessIo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProcessIo").field("stdin", &self.stdin.is_some()).finish_non_exhaustive()
    }
}

/// When a process was started.
pub type Started = oneshot::Sender<SystemTime>;

/// How a process ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Exit {
    /// Its exit code; 128 and the signal's number if a signal ended it; 255 if it is not known.
    pub code: i32,
    /// Whether the kernel killed something in the container because memory ran out.
    pub oom: bool,
    /// What the container used; empty for `exec`, and where nothing counts it.
    pub samples: Samples,
}

/// Runs processes in containers.
///
/// Every implementation keeps these, and `testing::conformance` checks them:
/// 1. `run` mounts what it is given, runs the process, and returns when it has ended, all its output has been
///    handed to the channel and nothing of the snapshots is mounted any more.
/// 2. An exit code is no error. What keeps the process from starting is one, and says what the runtime said.
/// 3. When `cancel` fires, `run` and `exec` return [`Error::Cancelled`] within 2 seconds, and no process of the
///    container is left, whatever it does. A process that had ended by then is not cancelled.
/// 4. `started` is sent when the process runs, and dropped unsent if it never does.
/// 5. A dropped `run` future counts as a cancel: the container ends soon after.
/// 6. The root filesystem afterwards differs from before by what the process did, and `/dev`, `/proc`, `/sys`
///    and the working directory if they were missing.
/// 7. `exec` of a container that has ended is [`Error::ContainerStopped`].
#[async_trait]
pub trait Executor: fmt::Debug + Send + Sync + 'static {
    /// Runs a process in a container of its own, whose root filesystem is `root`.
    #[expect(clippy::too_many_arguments, reason = "each is needed at every call, and none is optional")]
    async fn run(
        &self,
        id: &ContainerId,
        root: StepMount,
        mounts: Vec<StepMount>,
        process: ProcessSpec,
        io: ProcessIo,
        started: Option<Started>,
        cancel: CancellationToken,
    ) -> Result<Exit>;

    /// Runs another process in a container that runs, or is about to.
    async fn exec(
        &self,
        id: &ContainerId,
        process: ProcessSpec,
        io: ProcessIo,
        cancel: CancellationToken,
    ) -> Result<Exit>;
}
