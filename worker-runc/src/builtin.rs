//! Containers of the built-in runtime.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use kiln_executor::samples::Samples;
use kiln_executor::spec::{Machine, cgroups_path};
use kiln_executor::{ContainerId, Error, Exit, NetworkLease, ProcessIo, Result, Started, WindowSize, oci};
use kiln_runtime::cgroups::{ContainerGroups, Hierarchies};
use kiln_runtime::{Container, Process, Runtime, Stdio, Terminal, watch};
use rustix::pipe::PipeFlags;
use rustix::process::Signal;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::bundle::Bundle;
use crate::executor::Inner;
use crate::options::RuncOptions;
use crate::pumps::{Pumps, TerminalIo};
use crate::recorder::Recorder;
use crate::registry::{Running, State};
use crate::run::{UNKNOWN, blocking};

/// The name of the built-in runtime where a runtime's binary is named.
pub(crate) const BUILTIN: &str = "builtin";
/// After this a killed container is given up: the kernel does not let it go.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// A container that runs.
#[derive(Debug)]
pub(crate) struct Builtin {
    container: Container,
    spec: oci::Spec,
}

/// A container that is about to run.
pub(crate) struct Made {
    pub(crate) runtime: Arc<Runtime>,
    pub(crate) id: ContainerId,
    pub(crate) bundle: Bundle,
    pub(crate) network: Arc<dyn NetworkLease>,
}

/// What is left of a container, and how it ended.
pub(crate) struct Ended {
    pub(crate) bundle: Bundle,
    pub(crate) groups: Option<ContainerGroups>,
    pub(crate) recorder: Option<Recorder>,
    pub(crate) outcome: Result<Exit>,
}

/// Starts the runtime. Blocks.
pub(crate) fn open(options: &RuncOptions, hierarchies: &Hierarchies) -> Result<Runtime> {
    let machine = Machine { cgroup_parent: options.cgroup_parent.clone(), ..Machine::default() };
    let example = cgroups_path(&ContainerId::new("x")?, None, &machine);
    let mut settings = kiln_runtime::Options::default();
    settings.program = options.helper.clone();
    settings.hierarchies = hierarchies.clone();
    settings.parent_group = example.rsplit_once('/').map(|(parent, _)| parent.to_owned()).unwrap_or_default();
    Runtime::start(settings).map_err(|cause| Error::InvalidSpec {
        reason: format!(
            "the built-in runtime does not work here (it needs Linux 5.12 and the right to mount): {}; choose another by `binary`",
            chain(&cause)
        ),
    })
}

impl Inner {
    /// Runs a container until its end.
    pub(crate) async fn run_builtin(
        &self,
        made: Made,
        io: ProcessIo,
        started: Option<Started>,
        cancels: &[CancellationToken; 2],
    ) -> Result<Ended> {
        let Made { runtime, id, bundle, network } = made;
        let ended = |bundle, error| Ok(Ended { bundle, groups: None, recorder: None, outcome: Err(error) });
        if cancels.iter().any(CancellationToken::is_cancelled) || self.closing.is_cancelled() {
            return ended(bundle, Error::Cancelled);
        }
        let (streams, stdio) = match Streams::new(io, bundle.spec().process.terminal) {
            Ok(made) => made,
            Err(error) => return ended(bundle, error),
        };
        let name = id.clone();
        let (bundle, launched) = blocking(move || {
            let launched = runtime.run(name.as_str(), bundle.spec(), &stdio).map_err(error);
            (bundle, launched)
        })
        .await?;
        let container = match launched {
            Ok(container) => Arc::new(Builtin { container, spec: bundle.spec().clone() }),
            Err(error) => return ended(bundle, error),
        };
        let has_started = || {
            if let Some(started) = started {
                let _ = started.send(SystemTime::now());
            }
            let running = Running {
                bundle: bundle.dir().to_owned(),
                process: container.spec.process.clone(),
                builtin: Some(container.clone()),
            };
            self.registry.set(&id, State::Running(Box::new(running)));
        };
        let groups = container.container.groups.clone();
        let recorder = Some(Recorder::start(&self.tasks, groups.clone(), network));
        let outcome = self.follow(&container.container.process, streams, has_started, cancels).await;
        let oom = groups.oom_kills() > 0;
        let outcome = outcome.map(|code| Exit { code, oom, samples: Samples::default() });
        Ok(Ended { bundle, groups: Some(groups), recorder, outcome })
    }

    /// Runs another process in a container.
    pub(crate) async fn exec_builtin(
        &self,
        runtime: Arc<Runtime>,
        container: Arc<Builtin>,
        process: oci::Process,
        io: ProcessIo,
        cancels: &[CancellationToken; 2],
    ) -> Result<Exit> {
        let (streams, stdio) = Streams::new(io, process.terminal)?;
        let launch = move || {
            let Builtin { container, spec } = &*container;
            runtime.exec(container, spec, &process, &stdio)
        };
        let process = blocking(launch).await?.map_err(error)?;
        let code = self.follow(&process, streams, || {}, cancels).await?;
        Ok(Exit { code, oom: false, samples: Samples::default() })
    }

    /// Waits for the end of a process; on the way notices its start and hands on signals and sizes.
    async fn follow(
        &self,
        process: &Process,
        mut streams: Streams,
        has_started: impl FnOnce(),
        cancels: &[CancellationToken; 2],
    ) -> Result<i32> {
        let waiting = |source| Error::io("wait for", std::path::Path::new("a process"), source);
        let socket = process.socket().try_clone_to_owned().map_err(waiting)?;
        let word = watch(socket, Interest::READABLE).map_err(waiting)?;
        let pidfd = process.pidfd().try_clone_to_owned().map_err(waiting)?;
        let end = watch(pidfd, Interest::READABLE).map_err(waiting)?;
        tokio::select! {
            _ = word.readable() => {}
            () = self.cancelled(cancels) => return kill(process, &end).await,
        }
        // What it has to say is said before it becomes its program, so this does not wait for long.
        let terminal = process.started().map_err(error)?;
        has_started();
        streams.attach(terminal)?;
        let code = loop {
            tokio::select! {
                _ = end.readable() => break process.exit_code().map_err(waiting)?.unwrap_or(UNKNOWN),
                Some(signal) = streams.pumps.signal() => {
                    if let Some(signal) = Signal::from_named_raw(signal) {
                        process.signal(signal);
                    }
                }
                Some(size) = next_size(&mut streams.sizes) => resize(&streams.terminal, size),
                () = self.cancelled(cancels) => return kill(process, &end).await,
            }
        };
        // What the process wrote last is still on its way; a receiver that does not take it can cancel.
        tokio::select! {
            () = streams.pumps.finish() => Ok(code),
            () = self.cancelled(cancels) => Err(Error::Cancelled),
        }
    }
}

/// Kills a process and waits for its end. With a container's first process the kernel ends all others, and reports
/// the end of the first when they are gone.
async fn kill(process: &Process, end: &AsyncFd<OwnedFd>) -> Result<i32> {
    process.signal(Signal::KILL);
    match tokio::time::timeout(KILL_PATIENCE, end.readable()).await {
        Ok(_) => drop(process.exit_code()),
        Err(_) => tracing::error!("processes of a cancelled container do not end"),
    }
    Err(Error::Cancelled)
}

/// What a process is connected to, on this side.
struct Streams {
    pumps: Pumps,
    /// For a terminal that is yet to come.
    waiting: Option<TerminalIo>,
    terminal: Option<Terminal>,
    sizes: Option<mpsc::Receiver<WindowSize>>,
}

impl Streams {
    fn new(mut io: ProcessIo, terminal: bool) -> Result<(Self, Stdio)> {
        let failed = |source: std::io::Error| Error::io("make", std::path::Path::new("a pipe"), source);
        let null = || {
            let null = std::path::Path::new("/dev/null");
            let file = std::fs::File::options().read(true).write(true).open(null);
            file.map(OwnedFd::from).map_err(|source| Error::io("open", null, source))
        };
        let sizes = io.resize.take();
        if terminal {
            let waiting = Some(TerminalIo { stdin: io.stdin.take(), output: io.output.clone() });
            let pumps = Pumps::without_streams(io.signals.take());
            let stdio = Stdio { stdin: null()?, stdout: null()?, stderr: null()? };
            return Ok((Self { pumps, waiting, terminal: None, sizes }, stdio));
        }
        let pair = || rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|errno| failed(errno.into()));
        let (stdin, feeding) = match &io.stdin {
            Some(_) => {
                let (read, write) = pair()?;
                (read, Some(pipe::Sender::from_owned_fd(write).map_err(failed)?))
            }
            // At its end from the start.
            None => (pair()?.0, None),
        };
        let ((from_stdout, stdout), (from_stderr, stderr)) = (pair()?, pair()?);
        let receiver = |end| pipe::Receiver::from_owned_fd(end).map(Some).map_err(failed);
        let pumps = Pumps::start(feeding, receiver(from_stdout)?, receiver(from_stderr)?, io);
        Ok((Self { pumps, waiting: None, terminal: None, sizes }, Stdio { stdin, stdout, stderr }))
    }

    fn attach(&mut self, terminal: Option<Terminal>) -> Result<()> {
        let (Some(terminal), Some(io)) = (terminal, self.waiting.take()) else { return Ok(()) };
        let failed = |source| Error::io("use", std::path::Path::new("a terminal"), source);
        let ends = [terminal.try_clone().map_err(failed)?, terminal.try_clone().map_err(failed)?];
        self.pumps.add_terminal(ends, io).map_err(failed)?;
        self.terminal = Some(terminal);
        Ok(())
    }
}

/// The next size of a terminal; `None` is none and may come again and again.
async fn next_size(sizes: &mut Option<mpsc::Receiver<WindowSize>>) -> Option<WindowSize> {
    let Some(receiver) = sizes else { return std::future::pending().await };
    match receiver.recv().await {
        Some(size) => Some(size),
        None => {
            *sizes = None;
            std::future::pending().await
        }
    }
}

fn resize(terminal: &Option<Terminal>, size: WindowSize) {
    if let Some(terminal) = terminal
        && let Err(error) = terminal.resize(size.rows, size.cols)
    {
        tracing::debug!(%error, "a terminal keeps its size");
    }
}

/// An error of the runtime as the executor's callers know them.
pub(crate) fn error(error: kiln_runtime::Error) -> Error {
    match error {
        kiln_runtime::Error::Start { message } => Error::Start { runtime: BUILTIN.to_owned(), message },
        kiln_runtime::Error::Spec { reason } => Error::InvalidSpec { reason },
        other => Error::Start { runtime: BUILTIN.to_owned(), message: chain(&other) },
    }
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}
