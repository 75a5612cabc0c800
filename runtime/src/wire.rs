//! Messages between the daemon, the helper and new processes: JSON over sequenced-packet sockets, with descriptors.
//!
//! All ends are programs of one build, so there are no versions. What is large goes in a memory file.

use std::io::{self, IoSlice, IoSliceMut, Read as _, Seek as _, SeekFrom, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::MemfdFlags;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};

use crate::plan::{Plan, ProcessPlan};

/// Messages themselves are small.
const MAX_MESSAGE: usize = 16 * 1024;
/// Two more than there are control group hierarchies.
pub(crate) const MAX_FDS: usize = 20;
/// The largest plan: the kernel takes no arguments and environment of more than 6 MiB.
const MAX_PLAN: u64 = 32 * 1024 * 1024;

/// To the helper.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Make a process. With it come the new process's socket, then what `cgroup` and `pid_namespace` announce.
    Clone { flags: u64, cgroup: bool, pid_namespace: bool },
    /// The process of this pidfd is to die with the daemon too.
    Watch,
}

/// From the helper, on the new process's socket.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Made {
    /// Here it is; with its pidfd.
    Process { pid: i32 },
    /// It could not be made.
    Refused { message: String },
}

/// To a new process.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Task {
    /// Enter the control groups whose `cgroup.procs` are with it.
    Enter,
    /// Become the step. With it come the plan, standard input, output and error.
    Run,
    /// Become another process of a running container. With it come the plan, standard input, output and error,
    /// and the pidfd of the container.
    Join { flags: u64 },
}

/// From a new process. When a task succeeded that makes it another program, the socket closes without a word.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// The control groups are entered.
    Entered,
    /// The task failed, and the process ends.
    Failed { message: String },
    /// The terminal's other end, which comes with it.
    Terminal,
}

/// What a plan is for.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum AnyPlan {
    Container(Box<Plan>),
    Process(Box<ProcessPlan>),
}

/// A pair of sockets that keep messages apart.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Sends a message with descriptors.
pub(crate) fn send(to: impl AsFd, message: &impl Serialize, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::other("too many descriptors for one message"));
    }
    sendmsg(to, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives a message with its descriptors; `None` at the end.
pub(crate) fn receive<T: for<'a> Deserialize<'a>>(from: impl AsFd) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut buffer = vec![0; MAX_MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut slices = [IoSliceMut::new(&mut buffer)];
        match recvmsg(from.as_fd(), &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            received => break received?,
        }
    };
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    if received.bytes == 0 {
        return Ok(None);
    }
    let bytes = buffer.get(..received.bytes).unwrap_or_default();
    Ok(Some((serde_json::from_slice(bytes)?, fds)))
}

/// Puts a plan in a memory file.
pub(crate) fn write_plan(plan: &AnyPlan) -> io::Result<OwnedFd> {
    let mut file = std::fs::File::from(rustix::fs::memfd_create("plan", MemfdFlags::CLOEXEC)?);
    file.write_all(&serde_json::to_vec(plan)?)?;
    file.seek(SeekFrom::Start(0))?;
    Ok(file.into())
}

/// Reads a plan from its file.
pub(crate) fn read_plan(file: OwnedFd) -> io::Result<AnyPlan> {
    let mut bytes = Vec::new();
    std::fs::File::from(file).take(MAX_PLAN).read_to_end(&mut bytes)?;
    Ok(serde_json::from_slice(&bytes)?)
}
