use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kiln_executor::samples::Samples;
use kiln_executor::{ContainerId, Error, Exit, ProcessIo, ProcessSpec, Result, find_user, oci, spec};
use kiln_rootdir::Root;
use rustix::process::Signal;
use tokio_util::sync::CancellationToken;

use crate::bundle::write_json;
use crate::executor::{Backend, Inner};
use crate::pumps::Pumps;
use crate::registry::Running;
use crate::run::{NO_TERMINAL, code_of, connect, read_pid, send_signal};
use crate::runtime::last_error;

/// How often a process that is to end is killed again.
const KILL_INTERVAL: Duration = Duration::from_millis(20);

impl Inner {
    /// Runs another process in a container.
    pub(crate) async fn exec(
        self: Arc<Self>,
        id: ContainerId,
        process: ProcessSpec,
        io: ProcessIo,
        cancels: [CancellationToken; 2],
    ) -> Result<Exit> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let running = tokio::select! {
            running = self.registry.running(&id) => running?,
            () = self.cancelled(&cancels) => return Err(Error::Cancelled),
        };
        let runtime = match (&self.runtime, &running.builtin) {
            (Backend::External(runtime), _) => runtime,
            (Backend::Builtin(runtime), Some(container)) => {
                let asked = self.exec_process(&running, process)?;
                return self.exec_builtin(runtime.clone(), container.clone(), asked, io, &cancels).await;
            }
            (Backend::Builtin(_), None) => return Err(Error::ContainerStopped { id: id.to_string() }),
        };
        if process.tty {
            return Err(Error::InvalidSpec { reason: NO_TERMINAL.to_owned() });
        }
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let files = Files::new(&running, number);
        let (path, inner) = (files.process.clone(), self.clone());
        let writing = move || write_json(&path, &inner.exec_process(&running, process)?);
        tokio::task::spawn_blocking(writing).await.map_err(|_| Error::Interrupted)??;

        let mut command = runtime.command("exec", &files.log);
        command.arg("--process").arg(&files.process).arg("--pid-file").arg(&files.pid).arg(id.as_str());
        connect(&mut command, &io);
        let mut child = runtime.spawn(command)?;
        let mut pumps = Pumps::of_child(&mut child, io);
        let code = loop {
            tokio::select! {
                status = child.wait() => {
                    break code_of(status.map_err(|source| Error::io("wait for", &files.process, source))?);
                }
                Some(signal) = pumps.signal() => send_signal(&files.pid, signal),
                () = self.cancelled(&cancels) => {
                    kill(&mut child, &files).await;
                    return Err(Error::Cancelled);
                }
            }
        };
        tokio::select! {
            () = pumps.finish() => {}
            () = self.cancelled(&cancels) => return Err(Error::Cancelled),
        }
        if !files.pid.exists()
            && let Some(message) = last_error(&files.log)
        {
            return Err(Error::Start { runtime: runtime.name().to_owned(), message });
        }
        Ok(Exit { code, oom: false, samples: Samples::default() })
    }

    /// The container's own process, with user, arguments and terminal replaced, the rest where it is given.
    fn exec_process(&self, running: &Running, process: ProcessSpec) -> Result<oci::Process> {
        let root = Root::open(&running.bundle.join("rootfs")).map_err(Error::root("open"))?;
        let user = find_user(&root, &process.user)?;
        let (has_cwd, has_env) = (!process.cwd.is_empty(), !process.env.is_empty());
        let asked = spec::oci_process(&process, user, &self.machine)?;
        let mut merged = running.process.clone();
        merged.user = asked.user;
        merged.args = asked.args;
        merged.terminal = asked.terminal;
        if has_cwd {
            merged.cwd = asked.cwd;
        }
        if has_env {
            merged.env = asked.env;
        }
        Ok(merged)
    }
}

/// The files of one such process, in the container's bundle: they go with it.
struct Files {
    process: PathBuf,
    log: PathBuf,
    pid: PathBuf,
}

impl Files {
    fn new(running: &Running, number: u64) -> Self {
        let named = |what: &str| running.bundle.join(format!("exec-{number}-{what}"));
        Self { process: named("process.json"), log: named("log.json"), pid: named("pid") }
    }
}

async fn kill(child: &mut tokio::process::Child, files: &Files) {
    loop {
        match read_pid(&files.pid) {
            Some(pid) => {
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
            None => {
                let _ = child.start_kill();
            }
        }
        if tokio::time::timeout(KILL_INTERVAL, child.wait()).await.is_ok() {
            return;
        }
    }
}
