use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use kiln_executor::samples::Samples;
use kiln_executor::{
    ContainerId, Error, Exit, NetworkLease, NetworkRequest, ProcessIo, Result, SecurityMode, Started,
};
use kiln_runtime::cgroups::ContainerGroups;
use rustix::process::{Pid, Signal};
use tokio::process::Child;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::builtin;
use crate::bundle::{Bundle, Request, remove_dir};
use crate::executor::{Backend, Inner};
use crate::pumps::Pumps;
use crate::recorder::Recorder;
use crate::registry::{Running, State};
use crate::runtime::{Runtime, last_error};

/// How often it is looked whether the container has started.
const START_POLL: Duration = Duration::from_millis(2);
/// How often a container that is to end is killed again.
const KILL_INTERVAL: Duration = Duration::from_millis(20);
/// After this the runtime itself is killed too.
const RUNTIME_PATIENCE: Duration = Duration::from_secs(1);
/// After this a cancelled container is given up: the kernel does not let it go.
const KILL_PATIENCE: Duration = Duration::from_secs(10);
/// How often the count of processes killed for want of memory is read, where the runtime removes it at the end.
/// A step that is killed whole may be gone before the next look.
const OOM_POLL: Duration = Duration::from_millis(20);
/// The exit code of a process whose real one is not known.
pub(crate) const UNKNOWN: i32 = 255;

/// What a terminal is answered with where a runtime of its own would have to make it.
pub(crate) const NO_TERMINAL: &str = "a terminal is not available with this runtime: use the built-in one";

impl Inner {
    /// Runs a container until its end and cleans up after it.
    pub(crate) async fn run(
        self: Arc<Self>,
        request: Request,
        io: ProcessIo,
        started: Option<Started>,
        cancels: [CancellationToken; 2],
    ) -> Result<Exit> {
        let id = request.id.clone();
        let outcome = self.run_entered(request, io, started, cancels).await;
        let state = if outcome.is_ok() { State::Stopped } else { State::Failed };
        self.registry.set(&id, state);
        outcome
    }

    async fn run_entered(
        self: &Arc<Self>,
        request: Request,
        io: ProcessIo,
        started: Option<Started>,
        cancels: [CancellationToken; 2],
    ) -> Result<Exit> {
        let process = &request.process;
        let wanted = NetworkRequest {
            hostname: process.hostname.as_deref(),
            privileged: process.security == SecurityMode::Insecure,
        };
        let lease = tokio::select! {
            lease = self.networks.lease(process.network, wanted) => lease?,
            () = self.cancelled(&cancels) => return Err(Error::Cancelled),
        };
        let lease: Arc<dyn NetworkLease> = Arc::from(lease);
        let network = lease.namespace().clone();
        let id = request.id.clone();
        let dir = self.root.join(id.as_str());
        let keeps = match &self.runtime {
            Backend::Builtin(_) => true,
            Backend::External(runtime) => {
                if request.process.tty {
                    return Err(Error::InvalidSpec { reason: NO_TERMINAL.to_owned() });
                }
                self.watcher.start();
                runtime.keeps().await?
            }
        };
        let (inner, bundle_dir) = (self.clone(), dir.clone());
        let making = move || Bundle::make(&bundle_dir, request, network, &inner.etc, &inner.machine);
        let bundle = blocking(making).await??;
        let groups = ContainerGroups::new(&self.hierarchies, bundle.spec().linux.cgroups_path.as_deref());
        let (bundle, groups, recorder, outcome) = match &self.runtime {
            Backend::Builtin(runtime) => {
                let (runtime, id) = (runtime.clone(), id.clone());
                let made = builtin::Made { runtime, id, bundle, network: lease.clone() };
                let ended = self.run_builtin(made, io, started, &cancels).await?;
                (ended.bundle, ended.groups, ended.recorder, ended.outcome)
            }
            Backend::External(runtime) => {
                let container =
                    External { inner: self, runtime, id: &id, bundle: &bundle, groups: &groups, keeps };
                let recorder = Recorder::start(&self.tasks, groups.clone(), lease.clone());
                let outcome = container.run(io, started, &cancels).await;
                (bundle, Some(groups), Some(recorder), outcome)
            }
        };
        // Nothing of the snapshots is mounted any more when the caller goes on; the rest can wait.
        let unmounted = blocking(move || {
            bundle.unmount();
            recorder.map(Recorder::finish)
        })
        .await;
        let state = match &self.runtime {
            Backend::Builtin(_) => None,
            Backend::External(runtime) => Some(runtime.state_of(id.as_str())),
        };
        self.tasks.spawn_blocking(move || {
            if let Some(groups) = groups {
                groups.remove();
            }
            if let Some(state) = state {
                remove_dir(&state);
            }
            remove_dir(&dir);
        });
        let samples = unmounted?.unwrap_or_default();
        outcome.map(|exit| Exit { samples, ..exit })
    }

    pub(crate) async fn cancelled(&self, cancels: &[CancellationToken; 2]) {
        tokio::select! {
            () = cancels[0].cancelled() => {}
            () = cancels[1].cancelled() => {}
            () = self.closing.cancelled() => {}
        }
    }
}

struct External<'a> {
    inner: &'a Arc<Inner>,
    runtime: &'a Runtime,
    id: &'a ContainerId,
    bundle: &'a Bundle,
    groups: &'a ContainerGroups,
    keeps: bool,
}

impl External<'_> {
    async fn run(
        &self,
        io: ProcessIo,
        started: Option<Started>,
        cancels: &[CancellationToken; 2],
    ) -> Result<Exit> {
        if cancels.iter().any(CancellationToken::is_cancelled) || self.inner.closing.is_cancelled() {
            return Err(Error::Cancelled);
        }
        self.bundle.write_spec()?;
        let mut command = self.runtime.command("run", &self.bundle.log());
        if self.keeps {
            command.arg("--keep");
        }
        command.arg("--pid-file").arg(self.bundle.pid_file());
        command.arg("--bundle").arg(self.bundle.dir()).arg(self.id.as_str());
        connect(&mut command, &io);
        let mut child = self.runtime.spawn(command)?;
        let mut pumps = Pumps::of_child(&mut child, io);
        let mut oom = 0;
        let waited = tokio::select! {
            waited = self.follow(&mut child, &mut pumps, started, &mut oom) => waited,
            () = self.inner.cancelled(cancels) => {
                kill_container(&mut child, self.bundle.pid_file(), self.groups).await;
                return Err(Error::Cancelled);
            }
        };
        let code = waited.map_err(|source| Error::io("wait for", self.bundle.dir(), source))?;
        // What the process wrote last is still on its way; a receiver that does not take it can cancel.
        tokio::select! {
            () = pumps.finish() => {}
            () = self.inner.cancelled(cancels) => return Err(Error::Cancelled),
        }
        if !self.bundle.pid_file().exists() {
            let message = last_error(&self.bundle.log())
                .unwrap_or_else(|| format!("it ended with code {code} and said nothing"));
            return Err(Error::Start { runtime: self.runtime.name().to_owned(), message });
        }
        let oom = oom.max(self.groups.oom_kills()) > 0;
        Ok(Exit { code, oom, samples: Samples::default() })
    }

    /// Waits for the end, and on the way notices the start, hands on signals and counts.
    async fn follow(
        &self,
        child: &mut Child,
        pumps: &mut Pumps,
        started: Option<Started>,
        oom: &mut u64,
    ) -> std::io::Result<i32> {
        let pid_file = self.bundle.pid_file();
        let mut started = Some(started);
        let mut starting = tokio::time::interval(START_POLL);
        let mut sampling = tokio::time::interval(OOM_POLL);
        let code = loop {
            tokio::select! {
                status = child.wait() => break status.map(code_of),
                _ = starting.tick(), if started.is_some() => {
                    if pid_file.exists() {
                        self.has_started(started.take().flatten());
                    }
                }
                Some(signal) = pumps.signal(), if started.is_none() => send_signal(pid_file, signal),
                _ = sampling.tick(), if started.is_none() && !self.keeps => *oom = self.groups.oom_kills().max(*oom),
            }
        };
        if started.is_some() && pid_file.exists() {
            self.has_started(started.take().flatten());
        }
        code
    }

    fn has_started(&self, started: Option<Started>) {
        if let Some(started) = started {
            let _ = started.send(SystemTime::now());
        }
        let bundle = self.bundle.dir().to_owned();
        let running = Running { bundle, process: self.bundle.spec().process.clone(), builtin: None };
        self.inner.registry.set(self.id, State::Running(Box::new(running)));
    }
}

pub(crate) fn connect(command: &mut tokio::process::Command, io: &ProcessIo) {
    command.stdin(if io.stdin.is_some() { Stdio::piped() } else { Stdio::null() });
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
}

pub(crate) fn code_of(status: std::process::ExitStatus) -> i32 {
    status.code().unwrap_or(UNKNOWN)
}

pub(crate) fn send_signal(pid_file: &Path, number: i32) {
    let signal = Signal::from_named_raw(number);
    if let (Some(pid), Some(signal)) = (read_pid(pid_file), signal) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

pub(crate) fn read_pid(pid_file: &Path) -> Option<Pid> {
    let text = std::fs::read_to_string(pid_file).ok()?;
    text.trim().parse().ok().and_then(Pid::from_raw)
}

/// Kills the container until nothing of it is left.
async fn kill_container(child: &mut Child, pid_file: &Path, groups: &ContainerGroups) {
    let since = Instant::now();
    let mut runtime_ended = false;
    loop {
        let runtime = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let (pid_file, groups): (PathBuf, ContainerGroups) = (pid_file.to_owned(), groups.clone());
        let late = since.elapsed() > RUNTIME_PATIENCE;
        let some_left = blocking(move || {
            let init = read_pid(&pid_file);
            if !runtime_ended && let Some(init) = init {
                let _ = rustix::process::kill_process(init, Signal::KILL);
            }
            // Before the container is there, ending the runtime is what keeps it from coming.
            if (init.is_none() || late)
                && let Some(runtime) = runtime
            {
                let _ = rustix::process::kill_process_group(runtime, Signal::KILL);
            }
            groups.kill()
        })
        .await
        .unwrap_or(false);
        if runtime_ended && !some_left {
            return;
        }
        if since.elapsed() > KILL_PATIENCE {
            tracing::error!("processes of a cancelled container do not end");
            return;
        }
        if runtime_ended {
            tokio::time::sleep(KILL_INTERVAL).await;
        } else {
            runtime_ended = tokio::time::timeout(KILL_INTERVAL, child.wait()).await.is_ok();
        }
    }
}

pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|_| Error::Interrupted)
}
