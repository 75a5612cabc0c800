//! Containers that callers of a bridge ask for, to run processes of their own in.
//!
//! The first process is run as the container's, later ones join it while it runs. What the mounts show stays writable
//! and is thrown away with the container.
//!
//! Follows moby/buildkit: frontend/gateway/container/container.go.

use std::sync::Arc;

use kiln_cache::Ref;
use kiln_executor::{ContainerId, DEFAULT_PATH, Exit, MountKind, ProcessIo, StepMount};
use kiln_frontend::{Error as FrontendError, FileRange, FileStat, Reference};
use kiln_llb::pb;
use kiln_rootdir::Root;
use kiln_solver::{OpContext, OpError, VertexDigest};
use tokio::sync::{Mutex, RwLock, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::build::{BuildBridge, BuildState};
use crate::error::{Error, ExecError, Result, chain};
use crate::files;
use crate::lending::Lending;
use crate::load::Entitlements as _;
use crate::ops::common;
use crate::ops::exec::ExecOp;
use crate::ops::exec::mounts::StepMounts;
use crate::reference::SolvedRef;

/// A container that a caller wants.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ContainerRequest {
    /// What the caller calls it.
    pub id: String,
    /// Its mounts, one of them on `/`.
    pub mounts: Vec<ContainerMount>,
    /// Which network it has.
    pub network: pb::NetMode,
    /// More names for its hosts file.
    pub extra_hosts: Vec<pb::HostIp>,
    /// Its host name; empty for the default.
    pub hostname: String,
}

/// A mount of a container.
#[derive(Clone, Debug)]
pub struct ContainerMount {
    /// Where and how. Its input and output mean nothing.
    pub mount: pb::Mount,
    /// What it shows; none for an empty filesystem.
    pub reference: Option<Arc<dyn Reference>>,
}

/// A process in a container.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ContainerProcess {
    /// Program, environment, user and directory; nothing else of it counts.
    pub meta: pb::Meta,
    /// Whether it gets a terminal.
    pub tty: bool,
    /// How tightly it is held.
    pub security: pb::SecurityMode,
    /// Secrets in its environment.
    pub secret_env: Vec<pb::SecretEnv>,
}

/// How far the first process of a container is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    New,
    Starting,
    Running,
    Ended,
}

/// A container of a caller, there until it is released.
#[derive(Debug)]
pub struct Container {
    state: Arc<BuildState>,
    /// The executor's name for it.
    id: ContainerId,
    name: String,
    /// Mounts and confinement, without a process.
    op: pb::ExecOp,
    mounted: Mounted,
    phase: watch::Sender<Phase>,
    released: CancellationToken,
    /// Read by processes for as long as they use the mounts.
    mounts_in_use: Arc<RwLock<()>>,
    /// Gives back what the mounts hold, once released.
    keeper: Mutex<Option<tokio::task::JoinHandle<()>>>,
}

/// The mounts of a container, ready to be used.
#[derive(Clone, Debug)]
struct Mounted {
    root: StepMount,
    others: Vec<StepMount>,
}

impl BuildBridge {
    /// Makes a container ready for this caller.
    ///
    /// # Errors
    /// A mount that cannot be made, an entitlement that the build lacks, an id that is taken.
    pub async fn new_container(&self, request: ContainerRequest) -> Result<()> {
        let place = self.caller.reserve_container(&request.id)?;
        let made = Container::make(self.state.clone(), request).await?;
        place.fill(Arc::new(made));
        Ok(())
    }

    /// The caller's container of that id.
    pub fn container(&self, id: &str) -> Option<Arc<Container>> {
        self.caller.container(id)
    }

    /// Ends the container of that id with all its processes; `false` if there is none.
    pub async fn release_container(&self, id: &str) -> bool {
        match self.caller.take_container(id) {
            Some(container) => {
                container.release().await;
                true
            }
            None => false,
        }
    }
}

impl Container {
    async fn make(state: Arc<BuildState>, request: ContainerRequest) -> Result<Self> {
        let mut op = pb::ExecOp { network: request.network.into(), ..pb::ExecOp::default() };
        state.granted()?.check(&mut op).map_err(Error::request)?;
        op.meta = Some(pb::Meta {
            cwd: "/".to_owned(),
            hostname: request.hostname,
            extra_hosts: request.extra_hosts,
            ..pb::Meta::default()
        });
        let mut inputs: Vec<Option<Ref>> = Vec::new();
        for (index, ContainerMount { mut mount, reference }) in request.mounts.into_iter().enumerate() {
            mount.input = -1;
            if let Some(reference) = reference
                && let Some(files) = solved(&*reference).await?
            {
                mount.input = i64::try_from(inputs.len()).unwrap_or(-1);
                inputs.push(Some(files));
            }
            mount.output = i64::try_from(index).unwrap_or(0);
            op.mounts.push(mount);
        }
        let id = ContainerId::new(common::random_id()).map_err(|error| Error::request(chain(&error)))?;
        let released = state.cancel.child_token();
        let (ready, mounted) = oneshot::channel();
        let step = exec_op(&state, op.clone());
        let mounts_in_use = Arc::new(RwLock::new(()));
        let held = Held { released: released.clone(), in_use: mounts_in_use.clone() };
        let keeping = keep(step, inputs, state.outside_context(), ready, held);
        let keeper = state.tasks.spawn(keeping);
        // From here on, whatever happens, the keeper ends with this token.
        let guard = released.clone().drop_guard();
        let mounted =
            mounted.await.map_err(|_| Error::Cancelled)?.map_err(|e| Error::request(chain(e.inner())))?;
        guard.disarm();
        let (phase, _) = watch::channel(Phase::New);
        let keeper = Mutex::new(Some(keeper));
        Ok(Self { state, id, name: request.id, op, mounted, phase, released, mounts_in_use, keeper })
    }

    /// Takes the place of the next process. The first one's is the container itself, which ends with it.
    pub fn next_process(self: &Arc<Self>) -> ProcessPlace {
        let is_first = self.phase.send_if_modified(|phase| {
            let is_first = *phase == Phase::New;
            if is_first {
                *phase = Phase::Starting;
            }
            is_first
        });
        ProcessPlace { container: self.clone(), is_first }
    }

    async fn spec(&self, process: ContainerProcess) -> Result<kiln_executor::ProcessSpec> {
        let mut op = self.op.clone();
        op.security = process.security.into();
        self.state.granted()?.check(&mut op).map_err(Error::request)?;
        op.secretenv = process.secret_env;
        if let Some(meta) = &mut op.meta {
            meta.args = process.meta.args;
            meta.env = process.meta.env;
            meta.user = process.meta.user;
            if !process.meta.cwd.is_empty() {
                meta.cwd = process.meta.cwd;
            }
            meta.remove_mount_stubs_recursive = process.meta.remove_mount_stubs_recursive;
            let defaults = [("PATH", DEFAULT_PATH, true), ("TERM", "xterm", process.tty)];
            for (name, value, wanted) in defaults {
                let is_set = |v: &String| v.split('=').next() == Some(name);
                if wanted && !meta.env.iter().any(is_set) {
                    meta.env.push(format!("{name}={value}"));
                }
            }
        }
        let cx = self.state.outside_context();
        let lending = Lending::new(&self.state.worker, &cx);
        let spec = exec_op(&self.state, op).process(&cx, &lending).await;
        let mut spec = spec.map_err(|error| Error::request(chain(error.inner())))?;
        spec.tty = process.tty;
        Ok(spec)
    }

    /// Reads a file below the mount of this index, as it is now.
    ///
    /// # Errors
    /// As [`Reference::read_file`].
    pub async fn read_file(
        &self,
        mount: usize,
        path: &str,
        range: Option<FileRange>,
    ) -> Result<Vec<u8>, FrontendError> {
        let path = path.to_owned();
        self.with_mount(mount, move |root| files::read(root, &path, range)).await
    }

    /// Lists a directory below the mount of this index.
    ///
    /// # Errors
    /// As [`Reference::read_dir`].
    pub async fn read_dir(
        &self,
        mount: usize,
        path: &str,
        pattern: &str,
    ) -> Result<Vec<FileStat>, FrontendError> {
        let (path, pattern) = (path.to_owned(), pattern.to_owned());
        self.with_mount(mount, move |root| files::list(root, &path, &pattern)).await
    }

    /// Describes a path below the mount of this index.
    ///
    /// # Errors
    /// As [`Reference::stat`].
    pub async fn stat(&self, mount: usize, path: &str) -> Result<FileStat, FrontendError> {
        let path = path.to_owned();
        self.with_mount(mount, move |root| files::stat(root, &path)).await
    }

    async fn with_mount<T: Send + 'static>(
        &self,
        index: usize,
        work: impl FnOnce(&Root) -> Result<T, FrontendError> + Send + 'static,
    ) -> Result<T, FrontendError> {
        let count = self.op.mounts.len();
        let asked = self.op.mounts.get(index).ok_or_else(|| {
            FrontendError::input(format!("mount index {index} is out of bounds ({count} available)"))
        })?;
        let dest = crate::ops::exec::mounts::dest(&self.op, asked);
        let mut all = self.mounted.others.iter().chain([&self.mounted.root]);
        let mount = all.find(|mount| mount.dest.as_os_str() == dest.as_str());
        let Some(StepMount { kind: MountKind::Snapshot(state), selector, .. }) = mount.cloned() else {
            return Err(FrontendError::input(format!(
                "mount {index} ({dest}) has no files that can be read"
            )));
        };
        files::blocking(move || {
            let shown = state.with_temp().map_err(files::internal)?;
            let root = Root::open(shown.path()).map_err(files::internal)?;
            match selector {
                None => work(&root),
                Some(selector) => {
                    use std::os::fd::AsRawFd as _;
                    let part = root.open_path(&selector, true).map_err(files::internal)?;
                    let path = format!("/proc/self/fd/{}", part.as_raw_fd());
                    work(&Root::open(path.as_ref()).map_err(files::internal)?)
                }
            }
        })
        .await
    }

    /// Ends all processes and gives the mounts back.
    pub(crate) async fn release(&self) {
        self.released.cancel();
        let keeper = self.keeper.lock().await.take();
        if let Some(keeper) = keeper {
            // Failed, it has panicked, and there is nothing left to wait for.
            let _ended = keeper.await;
        }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.released.cancel();
    }
}

/// The place of one process in a container.
#[derive(Debug)]
pub struct ProcessPlace {
    container: Arc<Container>,
    is_first: bool,
}

impl ProcessPlace {
    /// Runs the process to its end. `started` is told when it may be spoken to.
    ///
    /// # Errors
    /// What keeps it from starting. An exit code is none.
    ///
    /// # Cancel safety
    /// Dropped, the process ends soon after, and if it was the first, the container with it.
    pub async fn run(
        self,
        process: ContainerProcess,
        io: ProcessIo,
        started: oneshot::Sender<()>,
    ) -> Result<Exit> {
        let container = &self.container;
        let spec = container.spec(process).await?;
        let cancel = container.released.child_token();
        let _end = cancel.clone().drop_guard();
        let in_use = container.mounts_in_use.clone().read_owned().await;
        if cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let tasks = &container.state.tasks;
        let (executor, id) = (container.state.worker.executor.clone(), container.id.clone());
        if !self.is_first {
            let mut phase = container.phase.subscribe();
            // The sender is the container's.
            let reached = phase.wait_for(|phase| *phase != Phase::Starting).await;
            if reached.is_ok_and(|phase| *phase == Phase::Ended) {
                let ended = kiln_executor::Error::ContainerStopped { id: container.name.clone() };
                return Err(Error::request(ended.to_string()));
            }
            let _gone = started.send(());
            // Whoever waits for it may leave; it is ended in good order all the same.
            let task = tasks.spawn(async move {
                let exit = executor.exec(&id, spec, io, cancel).await;
                drop(in_use);
                exit
            });
            return task.await.map_err(|_| Error::Cancelled)?.map_err(run_error);
        }
        let (up, is_up) = oneshot::channel();
        let Mounted { root, others } = container.mounted.clone();
        let task = tasks.spawn(async move {
            let exit = executor.run(&id, root, others, spec, io, Some(up), cancel).await;
            drop(in_use);
            exit
        });
        // Not sent, it has ended without a start, and says why below.
        if is_up.await.is_ok() {
            container.phase.send_replace(Phase::Running);
            let _gone = started.send(());
        }
        task.await.map_err(|_| Error::Cancelled)?.map_err(run_error)
    }
}

impl Drop for ProcessPlace {
    fn drop(&mut self) {
        if self.is_first {
            self.container.phase.send_replace(Phase::Ended);
        }
    }
}

/// How long mounts are held: until the container is released, and nothing uses them any more.
struct Held {
    released: CancellationToken,
    in_use: Arc<RwLock<()>>,
}

/// Prepares the mounts, tells of them, and holds them until the container is released.
async fn keep(
    step: ExecOp,
    inputs: Vec<Option<Ref>>,
    cx: OpContext,
    ready: oneshot::Sender<Result<Mounted, OpError>>,
    held: Held,
) {
    let provider = common::provider(&step.worker, &cx);
    let lending = Lending::new(&step.worker, &cx);
    let mut mounts = StepMounts::new(&step, &inputs, &provider, &lending, &cx);
    let preparing = async {
        common::unlazy_all(&inputs, &provider, &cx).await?;
        mounts.prepare().await?;
        let root = mounts.root.clone().ok_or_else(|| OpError::failed(ExecError::NoRoot))?;
        Ok(Mounted { root, others: mounts.others.clone() })
    };
    let prepared = tokio::select! {
        prepared = preparing => prepared,
        () = held.released.cancelled() => Err(OpError::cancelled()),
    };
    let is_ready = prepared.is_ok();
    if ready.send(prepared).is_ok() && is_ready {
        tokio::select! {
            () = held.released.cancelled() => {}
            full = mounts.out_of_space() => {
                tracing::warn!(error = %full, "the disk is full: a container of a frontend or client has to end");
                held.released.cancel();
            }
        }
        let _unused = held.in_use.write().await;
    }
    drop(mounts.close().await);
}

/// The state behind a reference of the engine.
async fn solved(reference: &dyn Reference) -> Result<Option<Ref>> {
    let any: &dyn std::any::Any = reference;
    let ours = any.downcast_ref::<SolvedRef>();
    ours.ok_or_else(|| Error::request("a mount shows a reference that is not the build's"))?.state().await
}

fn exec_op(state: &BuildState, op: pb::ExecOp) -> ExecOp {
    let vertex = VertexDigest(kiln_digest::Digest::of(b"container"));
    // A container's programs are the caller's own choice: they are tried as they are.
    ExecOp { worker: state.worker.clone(), op, platform: None, resources: None, vertex }
}

fn run_error(error: kiln_executor::Error) -> Error {
    match error {
        kiln_executor::Error::Cancelled => Error::Cancelled,
        error => Error::request(chain(&error)),
    }
}
