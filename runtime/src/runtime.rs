//! The daemon's side: a handle on the helper, and on the processes it made.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak, mpsc};
use std::thread::JoinHandle;

use kiln_executor::oci;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};

use crate::cgroups::{ContainerGroups, Hierarchies};
use crate::error::{Error, Result};
use crate::helper;
use crate::plan::{Namespaces, Plan, ProcessPlan};
use crate::seccomp;
use crate::spares::{self, Spares};
use crate::sys;
use crate::wire::{self, Answer, AnyPlan, Made, Order, Task};

/// How often an order is given again when the helper dies over it.
const TRIES: usize = 3;
/// More different filters than a worker has.
const FILTERS: usize = 16;

/// The program that is started to be the helper: it asks [`is_helper`](crate::is_helper) before anything else.
#[derive(Clone, Debug, Default)]
pub enum Program {
    /// The program that runs.
    #[default]
    Own,
    /// The one at this path.
    At(PathBuf),
}

/// What a new process has as standard input, output and error. Ignored where it has a terminal.
#[derive(Debug)]
pub struct Stdio {
    /// Read from.
    pub stdin: OwnedFd,
    /// Written to.
    pub stdout: OwnedFd,
    /// Written to.
    pub stderr: OwnedFd,
}

/// What a [`Runtime`] is made from.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Options {
    /// What the helper is.
    pub program: Program,
    /// Where control groups are.
    pub hierarchies: Hierarchies,
    /// The group right below which most containers' groups are, from the root of each hierarchy.
    pub parent_group: String,
}

/// Makes containers.
#[derive(Debug)]
pub struct Runtime {
    inner: Arc<Inner>,
    /// Makes spares, from the first container on.
    maker: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    hierarchies: Hierarchies,
    /// To the thread that starts the helper. Containers are children of that thread, and the kernel ends them
    /// when it ends: it lives as long as this value.
    keeper: mpsc::Sender<mpsc::Sender<io::Result<Arc<OwnedFd>>>>,
    socket: Mutex<Option<Arc<OwnedFd>>>,
    /// What a helper that is started anew has to watch over.
    running: Mutex<Vec<Weak<OwnedFd>>>,
    filters: Mutex<VecDeque<(oci::Seccomp, Vec<u64>)>>,
    pub(crate) spares: Spares,
}

/// A container's first process and its control groups. Dropped, the process is killed; the groups stay.
#[derive(Debug)]
pub struct Container {
    /// The process.
    pub process: Process,
    /// Its groups, for its owner to remove.
    pub groups: ContainerGroups,
}

impl Runtime {
    /// Starts the helper. Blocks.
    ///
    /// # Errors
    /// [`Error::Helper`] where the kernel is older than Linux 5.12 or the process may not make mounts.
    pub fn start(options: Options) -> Result<Self> {
        let Options { program, hierarchies, parent_group } = options;
        let (keeper, orders) = mpsc::channel::<mpsc::Sender<io::Result<Arc<OwnedFd>>>>();
        let keep = move || {
            let mut current: Option<(Child, Arc<OwnedFd>)> = None;
            while let Ok(reply) = orders.recv() {
                let alive = current.as_mut().is_some_and(|(child, _)| matches!(child.try_wait(), Ok(None)));
                let answer = match &current {
                    Some((_, socket)) if alive => Ok(socket.clone()),
                    _ => spawn(&program).map(|(child, socket)| {
                        current = Some((child, socket.clone()));
                        socket
                    }),
                };
                let _ = reply.send(answer);
            }
            // The end of its socket is the end of the helper.
            if let Some((mut child, socket)) = current {
                drop(socket);
                let _ = child.wait();
            }
        };
        let thread = std::thread::Builder::new().name("runtime".to_owned()).spawn(keep);
        thread.map_err(|source| Error::helper("start a thread for it", source))?;
        let inner = Inner {
            spares: Spares::new(hierarchies.clone(), &parent_group),
            hierarchies,
            keeper,
            socket: Mutex::default(),
            running: Mutex::default(),
            filters: Mutex::default(),
        };
        inner.connect(None)?;
        Ok(Self { inner: Arc::new(inner), maker: Mutex::default() })
    }

    /// Makes a container's control groups and its first process, and sets that on its way. Blocks, but not until the
    /// process is what it is to be: [`Process::started`] tells.
    pub fn run(&self, id: &str, spec: &oci::Spec, stdio: &Stdio) -> Result<Container> {
        let container = self.launch(id, spec, stdio);
        // Not before: what makes spares would keep the first container waiting.
        self.make_spares();
        container
    }

    fn launch(&self, id: &str, spec: &oci::Spec, stdio: &Stdio) -> Result<Container> {
        let inner = &self.inner;
        let filter = spec.linux.seccomp.as_ref().map(|filter| inner.filter(filter)).transpose()?;
        let mut plan = Plan::new(id, spec, filter)?;
        let flags = Namespaces::new(&spec.linux)?.clone_flags();
        let resources = spec.linux.resources.clone().unwrap_or_default();
        let path = spec.linux.cgroups_path.as_deref();
        if let Some((process, groups)) = path.and_then(|path| inner.spares.take(flags, path, &resources)) {
            plan.cgroup_v1 = groups.v1_names();
            let plan = AnyPlan::Container(Box::new(plan));
            match process.begin(&plan, spec, stdio) {
                Ok(()) => return Ok(Container { process, groups }),
                // Somebody has killed it while it waited; another one is made.
                Err(error) => tracing::debug!(%error, "a spare process did not work"),
            }
            drop(process);
            groups.remove();
            return inner.run_new(flags, &resources, plan, spec, stdio);
        }
        inner.run_new(flags, &resources, AnyPlan::Container(Box::new(plan)), spec, stdio)
    }

    /// Runs another process in a container that was made from `spec`.
    pub fn exec(
        &self,
        container: &Container,
        spec: &oci::Spec,
        process: &oci::Process,
        stdio: &Stdio,
    ) -> Result<Process> {
        let filter = spec.linux.seccomp.as_ref().map(|filter| self.inner.filter(filter)).transpose()?;
        let plan = AnyPlan::Process(Box::new(ProcessPlan::new(process, filter)?));
        let flags = Namespaces::new(&spec.linux)?.join_flags();
        let made = self.inner.make(0, &container.groups, Some(&container.process))?;
        made.give(&Task::Join { flags }, &plan, stdio, Some(container.process.pidfd.as_fd()))?;
        Ok(made)
    }

    /// Ends the processes that wait for a container, and removes their control groups. Blocks.
    pub fn close(&self) {
        self.inner.spares.close();
        let maker = self.maker.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(maker) = maker {
            let _ = maker.join();
        }
    }

    fn make_spares(&self) {
        let mut maker = self.maker.lock().unwrap_or_else(PoisonError::into_inner);
        if maker.is_none() && !self.inner.hierarchies.v1.is_empty() {
            match spares::start(&self.inner) {
                Ok(started) => *maker = Some(started),
                Err(error) => tracing::warn!(%error, "no thread for spare processes: steps take longer"),
            }
        }
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        self.close();
    }
}

impl Inner {
    fn run_new(
        &self,
        flags: u64,
        resources: &oci::Resources,
        mut plan: AnyPlan,
        spec: &oci::Spec,
        stdio: &Stdio,
    ) -> Result<Container> {
        let groups = ContainerGroups::new(&self.hierarchies, spec.linux.cgroups_path.as_deref());
        if let AnyPlan::Container(plan) = &mut plan {
            plan.cgroup_v1 = groups.v1_names();
        }
        let made = || {
            groups.make(resources)?;
            let process = self.make(flags, &groups, None)?;
            process.begin(&plan, spec, stdio)?;
            Ok(process)
        };
        match made() {
            Ok(process) => Ok(Container { process, groups }),
            Err(error) => {
                groups.remove();
                Err(error)
            }
        }
    }

    /// Makes a process that waits for what it is to do, in its control groups.
    pub(crate) fn make(
        &self,
        flags: u64,
        groups: &ContainerGroups,
        container: Option<&Process>,
    ) -> Result<Process> {
        let unified = groups.open_unified()?;
        let process = self.clone_process(flags, unified, container)?;
        process.enter(groups)?;
        Ok(process)
    }

    fn clone_process(
        &self,
        flags: u64,
        unified: Option<OwnedFd>,
        container: Option<&Process>,
    ) -> Result<Process> {
        let mut broken: Option<Arc<OwnedFd>> = None;
        for _ in 0..TRIES {
            let helper = self.connect(broken.as_ref())?;
            let (own, other) = wire::pair().map_err(|source| Error::helper("make a socket", source))?;
            let order = Order::Clone { flags, cgroup: unified.is_some(), pid_namespace: container.is_some() };
            let mut fds = vec![other.as_fd()];
            fds.extend(unified.as_ref().map(|fd| fd.as_fd()));
            fds.extend(container.map(|container| container.pidfd.as_fd()));
            if wire::send(&*helper, &order, &fds).is_err() {
                broken = Some(helper);
                continue;
            }
            drop(other);
            if !answered(&own, &helper) {
                broken = Some(helper);
                continue;
            }
            match wire::receive::<Made>(&own) {
                Ok(Some((Made::Process { pid }, fds))) => return self.adopt(pid, fds, own),
                Ok(Some((Made::Refused { message }, _))) => return Err(Error::Start { message }),
                // It has died over this order, or a moment before.
                Ok(None) | Err(_) => broken = Some(helper),
            }
        }
        Err(Error::helper("make a process", io::Error::other("it dies again and again")))
    }

    fn adopt(&self, pid: i32, fds: Vec<OwnedFd>, socket: OwnedFd) -> Result<Process> {
        let answer = Pid::from_raw(pid).zip(fds.into_iter().next());
        let Some((pid, pidfd)) = answer else {
            return Err(Error::helper("make a process", io::Error::other("it answers nonsense")));
        };
        let pidfd = Arc::new(pidfd);
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.retain(|other| other.strong_count() > 0);
        running.push(Arc::downgrade(&pidfd));
        drop(running);
        Ok(Process { pid, pidfd, socket, reaped: AtomicBool::new(false) })
    }

    /// The helper's socket; a new helper's if it is the one that is known to be broken.
    fn connect(&self, broken: Option<&Arc<OwnedFd>>) -> Result<Arc<OwnedFd>> {
        let mut socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(socket) = &*socket
            && !broken.is_some_and(|broken| Arc::ptr_eq(broken, socket))
        {
            return Ok(socket.clone());
        }
        if broken.is_some() {
            tracing::warn!("the runtime's helper process has died and is started again");
        }
        let gone = || Error::helper("start it", io::Error::other("its keeper is gone"));
        let (reply, answer) = mpsc::channel();
        self.keeper.send(reply).map_err(|_| gone())?;
        let started = answer.recv().map_err(|_| gone())?;
        let started = started.map_err(|source| Error::helper("start it", source))?;
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        for pidfd in running.iter().filter_map(Weak::upgrade) {
            // If this one has died too, the next order finds out.
            let _ = wire::send(&*started, &Order::Watch, &[pidfd.as_fd()]);
        }
        *socket = Some(started.clone());
        Ok(started)
    }

    /// A filter compiled; steps have few different ones.
    fn filter(&self, filter: &oci::Seccomp) -> Result<Vec<u64>> {
        let mut filters = self.filters.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, known)) = filters.iter().find(|(known, _)| known == filter) {
            return Ok(known.clone());
        }
        let compiled = seccomp::compile(filter)?;
        if filters.len() >= FILTERS {
            filters.pop_front();
        }
        filters.push_back((filter.clone(), compiled.clone()));
        Ok(compiled)
    }
}

/// Waits for an answer; whether there is one, or nobody left who could give it. A helper that dies between making a
/// process and saying so leaves the process holding the other end: it ends when this end is closed.
fn answered(own: &OwnedFd, helper: &OwnedFd) -> bool {
    loop {
        let mut waits = [PollFd::new(own, PollFlags::IN), PollFd::new(helper, PollFlags::empty())];
        match poll(&mut waits, None) {
            Err(Errno::INTR) => continue,
            Err(_) => return true,
            Ok(_) => {}
        }
        let [own, helper] = waits.map(|wait| !wait.revents().is_empty());
        if own || helper {
            return own;
        }
    }
}

/// Starts the helper, from a copy of its program's mount that nobody can write through: in a container, the
/// program is what `/proc/self/exe` leads to until the step's own takes its place.
fn spawn(program: &Program) -> io::Result<(Child, Arc<OwnedFd>)> {
    const READ_ONLY: u64 = 1;
    let path = match program {
        Program::Own => PathBuf::from("/proc/self/exe"),
        Program::At(path) => path.clone(),
    };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = match (open_tree(rustix::fs::CWD, &path, flags), program) {
        // A process that has moved into a mount namespace was started from a mount of another one.
        (Err(Errno::INVAL), Program::Own) => {
            let tree = open_tree(rustix::fs::CWD, std::fs::read_link(&path)?, flags)?;
            let (own, found) = (rustix::fs::stat(&path)?, rustix::fs::fstat(&tree)?);
            if (own.st_dev, own.st_ino) != (found.st_dev, found.st_ino) {
                return Err(io::Error::other("another program is in the place of this one"));
            }
            tree
        }
        (tree, _) => tree?,
    };
    sys::mount_setattr(tree.as_fd(), false, READ_ONLY, 0, libc::MS_PRIVATE)?;
    let (own, other) = wire::pair()?;
    let mut command = Command::new(format!("/proc/self/fd/{}", tree.as_raw_fd()));
    command.arg0(helper::NAME).env_clear();
    command.stdin(std::process::Stdio::from(other)).stdout(std::process::Stdio::null());
    Ok((command.spawn()?, Arc::new(own)))
}

/// Registers one of the descriptors of this crate with the async runtime that this is called in.
pub fn watch(fd: OwnedFd, interest: tokio::io::Interest) -> io::Result<tokio::io::unix::AsyncFd<OwnedFd>> {
    sys::watch(fd, interest)
}

/// A process of a container. Dropped, it is killed.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    pidfd: Arc<OwnedFd>,
    socket: OwnedFd,
    reaped: AtomicBool,
}

/// The outer end of a process's terminal.
#[derive(Debug)]
pub struct Terminal(OwnedFd);

impl Terminal {
    /// Tells it its size.
    pub fn resize(&self, rows: u16, cols: u16) -> io::Result<()> {
        sys::resize_terminal(self.0.as_fd(), rows, cols)
    }

    /// Another handle on it.
    pub fn try_clone(&self) -> io::Result<OwnedFd> {
        self.0.try_clone()
    }
}

impl Process {
    /// Its number outside.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Readable once the process has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Readable when the process has become its program, or failed to, or has made a terminal.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Waits until the process has become its program; its terminal, if it was to have one. Blocks, unless
    /// [`socket`](Self::socket) is readable.
    ///
    /// # Errors
    /// [`Error::Start`] if it did not, with the reason.
    pub fn started(&self) -> Result<Option<Terminal>> {
        let mut terminal = None;
        loop {
            match wire::receive::<Answer>(&self.socket) {
                Ok(None) => return Ok(terminal),
                Ok(Some((Answer::Terminal, fds))) => terminal = fds.into_iter().next().map(Terminal),
                Ok(Some((Answer::Failed { message }, _))) => {
                    return Err(Error::Start {
                        message: format!("unable to start container process: {message}"),
                    });
                }
                Ok(Some((Answer::Entered, _))) => {}
                Err(source) => return Err(Error::helper("hear from a process", source)),
            }
        }
    }

    /// Sends it a signal. The end of a container's first process is the end of all of them.
    pub fn signal(&self, signal: Signal) {
        // It may have ended.
        let _ = rustix::process::pidfd_send_signal(&*self.pidfd, signal);
    }

    /// How it ended, if it has: its exit code, or 128 and the number of the signal.
    pub fn exit_code(&self) -> io::Result<Option<i32>> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        self.wait(options)
    }

    fn wait(&self, options: WaitIdOptions) -> io::Result<Option<i32>> {
        let status = rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), options)?;
        let Some(status) = status else { return Ok(None) };
        self.reaped.store(true, Ordering::Release);
        let signal = status.terminating_signal();
        Ok(status.exit_status().or(signal.map(|signal| 128 + signal)))
    }

    /// Enters groups of version 1.
    fn enter(&self, groups: &ContainerGroups) -> Result<()> {
        let entries = groups.open_entries()?;
        if entries.is_empty() {
            return Ok(());
        }
        let fds: Vec<BorrowedFd<'_>> = entries.iter().map(|fd| fd.as_fd()).collect();
        wire::send(&self.socket, &Task::Enter, &fds)
            .map_err(|source| Error::helper("give a task to a process", source))?;
        match wire::receive::<Answer>(&self.socket) {
            Ok(Some((Answer::Entered, _))) => Ok(()),
            Ok(Some((Answer::Failed { message }, _))) => Err(Error::Start { message }),
            Ok(_) => Err(Error::helper("hear from a process", io::Error::from(io::ErrorKind::UnexpectedEof))),
            Err(source) => Err(Error::helper("hear from a process", source)),
        }
    }

    /// Sets it on its way to be a container's first process.
    fn begin(&self, plan: &AnyPlan, spec: &oci::Spec, stdio: &Stdio) -> Result<()> {
        if !spec.linux.uid_mappings.is_empty() {
            self.map_ids(&spec.linux)?;
        }
        self.give(&Task::Run, plan, stdio, None)
    }

    fn give(&self, task: &Task, plan: &AnyPlan, stdio: &Stdio, also: Option<BorrowedFd<'_>>) -> Result<()> {
        let failed = |source| Error::helper("give a task to a process", source);
        let plan = wire::write_plan(plan).map_err(failed)?;
        let mut fds = vec![plan.as_fd(), stdio.stdin.as_fd(), stdio.stdout.as_fd(), stdio.stderr.as_fd()];
        fds.extend(also);
        wire::send(&self.socket, task, &fds).map_err(failed)
    }

    /// Says which ids the container's are outside.
    fn map_ids(&self, linux: &oci::Linux) -> Result<()> {
        for (file, mappings) in [("uid_map", &linux.uid_mappings), ("gid_map", &linux.gid_mappings)] {
            let lines: String =
                mappings.iter().map(|m| format!("{} {} {}\n", m.container_id, m.host_id, m.size)).collect();
            let path = format!("/proc/{}/{file}", self.pid.as_raw_nonzero());
            std::fs::write(&path, lines).map_err(|source| Error::Start {
                message: format!("cannot map the ids of a user namespace: {source}"),
            })?;
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.reaped.load(Ordering::Acquire) {
            self.signal(Signal::KILL);
            let _ = self.wait(WaitIdOptions::EXITED);
        }
    }
}
