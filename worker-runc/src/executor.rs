use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use kiln_executor::spec::Machine;
use kiln_executor::{
    ContainerId, Error, EtcFiles, Executor, Exit, Networks, ProcessIo, ProcessSpec, Result, Started,
    StepMount,
};
use kiln_runtime::cgroups::Hierarchies;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::builtin::{self, BUILTIN};
use crate::bundle::Request;
use crate::leftovers;
use crate::options::RuncOptions;
use crate::registry::Registry;
use crate::runtime::Runtime;
use crate::watcher::Watcher;

/// Runs each process in a container of its own through `runc` or `crun`.
///
/// A step ends with the daemon: a small shell waits for the daemon's end and kills what runs then; whatever
/// slips through is killed when the next executor opens the same root.
#[derive(Clone, Debug)]
pub struct RuncExecutor {
    inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) root: PathBuf,
    pub(crate) runtime: Backend,
    pub(crate) machine: Machine,
    pub(crate) networks: Networks,
    pub(crate) hierarchies: Hierarchies,
    pub(crate) etc: EtcFiles,
    pub(crate) registry: Registry,
    pub(crate) watcher: Watcher,
    /// Owns containers and what is cleaned up after them.
    pub(crate) tasks: TaskTracker,
    /// Ends everything.
    pub(crate) closing: CancellationToken,
}

/// What makes containers.
#[derive(Debug)]
pub(crate) enum Backend {
    Builtin(Arc<kiln_runtime::Runtime>),
    External(Runtime),
}

impl RuncExecutor {
    /// Finds the runtime and cleans up after an executor that was killed. Blocks.
    ///
    /// # Errors
    /// [`Error::RuntimeMissing`] if there is no runtime.
    pub fn open(options: RuncOptions) -> Result<Self> {
        let hierarchies = Hierarchies::detect();
        make_root(&options.root)?;
        let root =
            options.root.canonicalize().map_err(|source| Error::io("resolve", &options.root, source))?;
        // No container can have this name.
        let state = root.join("run-state");
        let runtime = match options.binary.as_deref() {
            None | Some(BUILTIN) => Backend::Builtin(Arc::new(builtin::open(&options, &hierarchies)?)),
            Some(binary) => Backend::External(Runtime::find(binary, state.clone(), &hierarchies)?),
        };
        leftovers::clean(&root, &state, &hierarchies)?;
        make_root(&state)?;
        let machine = Machine {
            cgroup_parent: options.cgroup_parent,
            rootless: options.rootless,
            apparmor_profile: options.apparmor_profile,
            ..Machine::detect()
        };
        let inner = Inner {
            etc: EtcFiles::new(&root, options.dns),
            watcher: Watcher::new(root.clone()),
            root,
            runtime,
            machine,
            networks: options.networks,
            hierarchies,
            registry: Registry::default(),
            tasks: TaskTracker::new(),
            closing: CancellationToken::new(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The name of the runtime's binary.
    pub fn runtime(&self) -> &str {
        match &self.inner.runtime {
            Backend::Builtin(_) => BUILTIN,
            Backend::External(runtime) => runtime.name(),
        }
    }

    /// The name of the network that steps get by default, for the worker's labels.
    pub fn network(&self) -> &'static str {
        self.inner.networks.default_name()
    }

    /// Ends everything that runs, and waits until it is cleaned up.
    pub async fn close(&self) {
        self.inner.closing.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
        self.inner.watcher.close().await;
        self.inner.networks.close().await;
        if let Backend::Builtin(runtime) = &self.inner.runtime {
            let runtime = runtime.clone();
            // Failed, it has ended in a panic, and there is nothing left to wait for.
            let _ = tokio::task::spawn_blocking(move || runtime.close()).await;
        }
    }
}

#[async_trait]
impl Executor for RuncExecutor {
    async fn run(
        &self,
        id: &ContainerId,
        root: StepMount,
        mounts: Vec<StepMount>,
        process: ProcessSpec,
        io: ProcessIo,
        started: Option<Started>,
        cancel: CancellationToken,
    ) -> Result<Exit> {
        // First of all, so that an `exec` that comes next waits for it.
        self.inner.registry.enter(id)?;
        let pid_name = self.inner.watcher.pid_name().to_owned();
        let request = Request { id: id.clone(), root, mounts, process, pid_name };
        // The container has an owner of its own, so that it is ended in good order when this future is dropped.
        let left = CancellationToken::new();
        let _leave = left.clone().drop_guard();
        let inner = self.inner.clone();
        let task = self.inner.tasks.spawn(inner.run(request, io, started, [cancel, left]));
        task.await.map_err(|_| Error::Interrupted)?
    }

    async fn exec(
        &self,
        id: &ContainerId,
        process: ProcessSpec,
        io: ProcessIo,
        cancel: CancellationToken,
    ) -> Result<Exit> {
        let left = CancellationToken::new();
        let _leave = left.clone().drop_guard();
        let (inner, id) = (self.inner.clone(), id.clone());
        let task = self.inner.tasks.spawn(async move { inner.exec(id, process, io, [cancel, left]).await });
        task.await.map_err(|_| Error::Interrupted)?
    }
}

/// Others may pass through (a step's user must reach its root filesystem), and no more.
fn make_root(dir: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    let made = std::fs::DirBuilder::new().mode(0o711).recursive(true).create(dir);
    made.map_err(|source| Error::io("make directory", dir, source))
}
