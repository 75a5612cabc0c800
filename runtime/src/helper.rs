//! The helper process: clones on demand, and sees to it that nothing it made outlives the daemon.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::Signal;
use rustix::thread::{
    LinkNameSpaceType, ThreadNameSpaceType, move_into_link_name_space, move_into_thread_name_spaces,
};

use crate::child;
use crate::sys::{self, Cloned, SingleThreaded};
use crate::wire::{self, Made, Order};

/// The name under which a program is started to be the helper.
pub(crate) const NAME: &str = "kiln-runtime";
/// Where the helper finds its socket.
pub(crate) const SOCKET: i32 = 0;

/// Whether this process was started to be the helper. To be asked first of all in `main`, before any thread is
/// started; then [`run_helper`] is all there is to do.
pub fn is_helper() -> bool {
    std::env::args_os().next().is_some_and(|name| name == OsStr::new(NAME))
}

/// Is the helper until the daemon goes away. Returns an exit code.
pub fn run_helper() -> u8 {
    // The daemon's terminal is not for the helper, and neither are the daemon's signals.
    let _ = rustix::process::setsid();
    // No filesystem is in use because the daemon was started in it.
    let _ = rustix::process::chdir("/");
    let socket = sys::inherited(SOCKET);
    let outcome = SingleThreaded::check().and_then(|single| serve(&socket, single));
    u8::from(outcome.is_err())
}

fn serve(socket: &OwnedFd, single: SingleThreaded) -> io::Result<()> {
    let own_pids = std::fs::File::open("/proc/self/ns/pid")?;
    let mut made: Vec<OwnedFd> = Vec::new();
    loop {
        let mut waits = vec![PollFd::new(socket, PollFlags::IN)];
        waits.extend(made.iter().map(|pidfd| PollFd::new(pidfd, PollFlags::IN)));
        match poll(&mut waits, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready: Vec<bool> = waits.iter().map(|wait| !wait.revents().is_empty()).collect();
        drop(waits);
        let mut ended = ready.iter().skip(1).copied();
        made.retain(|_| !ended.next().unwrap_or(false));
        if !ready.first().copied().unwrap_or(false) {
            continue;
        }
        match wire::receive::<Order>(socket) {
            Ok(Some((order, fds))) => made.extend(carry_out(order, fds, &own_pids, single)),
            // Nobody is left to serve: containers do not outlive the daemon.
            Ok(None) | Err(_) => {
                for pidfd in &made {
                    let _ = rustix::process::pidfd_send_signal(pidfd, Signal::KILL);
                }
                return Ok(());
            }
        }
    }
}

/// Returns the new process, to be watched over.
fn carry_out(
    order: Order,
    fds: Vec<OwnedFd>,
    own_pids: &std::fs::File,
    single: SingleThreaded,
) -> Option<OwnedFd> {
    let mut fds = fds.into_iter();
    let first = fds.next()?;
    let Order::Clone { flags, cgroup, pid_namespace } = order else { return Some(first) };
    let cgroup = if cgroup { fds.next() } else { None };
    let target = if pid_namespace { fds.next() } else { None };
    let answer = match clone(flags, cgroup, target, own_pids, single) {
        Ok(Cloned::Child) => child::serve(first),
        Ok(Cloned::Parent { pid, pidfd }) => {
            let made = Made::Process { pid: pid.as_raw_nonzero().get() };
            // The new process ends by itself when its socket has no other end.
            let _ = wire::send(&first, &made, &[pidfd.as_fd()]);
            return Some(pidfd);
        }
        Err(error) => Made::Refused { message: format!("cannot make a process: {error}") },
    };
    let _ = wire::send(&first, &answer, &[]);
    None
}

fn clone(
    flags: u64,
    cgroup: Option<OwnedFd>,
    pid_namespace: Option<OwnedFd>,
    own_pids: &std::fs::File,
    single: SingleThreaded,
) -> io::Result<Cloned> {
    let Some(target) = pid_namespace else {
        return sys::clone_process(flags, cgroup.as_ref().map(|fd| fd.as_fd()), single);
    };
    move_into_thread_name_spaces(target.as_fd(), ThreadNameSpaceType::PROCESS_ID)?;
    let cloned = sys::clone_process(flags, cgroup.as_ref().map(|fd| fd.as_fd()), single);
    if !matches!(cloned, Ok(Cloned::Child)) {
        move_into_link_name_space(own_pids.as_fd(), Some(LinkNameSpaceType::ProcessID))?;
    }
    cloned
}
