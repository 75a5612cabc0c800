//! System calls that have no safe wrapper in `rustix`: all of the crate's unsafe code.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

use rustix::process::Pid;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
const KEYCTL_JOIN_SESSION_KEYRING: libc::c_long = 1;
/// The kernel's signals, real-time ones included.
const SIGNALS: std::ops::RangeInclusive<libc::c_int> = 1..=64;

/// What [`clone_process`] returned, and where.
pub(crate) enum Cloned {
    /// In the process that called.
    Parent { pid: Pid, pidfd: OwnedFd },
    /// In the new process.
    Child,
}

/// Makes a copy of this process, in new namespaces of the kinds in `flags` (`CLONE_NEW…`), as a child of this
/// process's own parent, and in the control group that is open as `cgroup`.
///
/// Only for a process with a single thread: the caller says so with `single_threaded`.
pub(crate) fn clone_process(
    flags: u64,
    cgroup: Option<BorrowedFd<'_>>,
    _single_threaded: SingleThreaded,
) -> io::Result<Cloned> {
    let mut pidfd: RawFd = -1;
    // SAFETY: all fields are integers, for which zero means "nothing".
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags | libc::CLONE_PARENT as u64 | libc::CLONE_PIDFD as u64;
    args.pidfd = (&raw mut pidfd) as u64;
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: `args` is a valid `clone_args` and outlives the call; `pidfd` may be written. Without CLONE_VM the
    // child has its own copy of memory and stack. This process has one thread (`SingleThreaded`), so that no
    // lock is held in the copy by a thread that is not there.
    let answer = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) };
    match i32::try_from(answer) {
        Ok(0) => Ok(Cloned::Child),
        Ok(pid) if pid > 0 => {
            let pid = Pid::from_raw(pid).ok_or_else(|| io::Error::other("clone3 returned no process"))?;
            // SAFETY: the kernel has just opened this descriptor for us, and nobody else knows it.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Cloned::Parent { pid, pidfd })
        }
        _ => Err(io::Error::last_os_error()),
    }
}

/// Proof that this process has one thread.
#[derive(Clone, Copy)]
pub(crate) struct SingleThreaded(());

impl SingleThreaded {
    /// Looks at the process.
    pub(crate) fn check() -> io::Result<Self> {
        match std::fs::read_dir("/proc/self/task")?.count() {
            1 => Ok(Self(())),
            threads => Err(io::Error::other(format!("the helper has {threads} threads instead of one"))),
        }
    }
}

/// Moves this thread into new namespaces of these kinds.
pub(crate) fn unshare(kinds: rustix::thread::UnshareFlags) -> io::Result<()> {
    // SAFETY: only callers in a process with one thread, or in a thread that ends right afterwards, and only with kinds
    // of namespaces: no memory and no descriptors come apart.
    Ok(unsafe { rustix::thread::unshare_unsafe(kinds) }?)
}

/// Sets a resource limit by its number.
pub(crate) fn set_limit(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    // SAFETY: `limit` outlives the call, which only reads it.
    check(unsafe { libc::prlimit64(0, resource as _, &raw const limit, std::ptr::null_mut()) })
}

/// Switches the loopback device of this network namespace on.
pub(crate) fn loopback_up() -> io::Result<()> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: a request of zeros has an empty name, which is then filled in.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(*b"lo") {
        *to = from as libc::c_char;
    }
    // SAFETY: both calls read and write a request of the size they expect, which outlives them; the flags are
    // what the first of them has left in the union.
    unsafe {
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS as _, &raw mut request))?;
        request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short;
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request))
    }
}

/// Unlocks the other end of a terminal, and tells its number.
pub(crate) fn terminal_number(main: BorrowedFd<'_>) -> io::Result<u32> {
    let (unlocked, mut number): (libc::c_int, libc::c_uint) = (0, 0);
    // SAFETY: the first call reads an integer, the second one writes one.
    unsafe {
        check(libc::ioctl(main.as_raw_fd(), libc::TIOCSPTLCK as _, &raw const unlocked))?;
        check(libc::ioctl(main.as_raw_fd(), libc::TIOCGPTN as _, &raw mut number))?;
    }
    Ok(number)
}

/// Tells a terminal its size.
pub(crate) fn resize_terminal(main: BorrowedFd<'_>, rows: u16, cols: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the call reads a `winsize`.
    check(unsafe { libc::ioctl(main.as_raw_fd(), libc::TIOCSWINSZ as _, &raw const size) })
}

/// Ends the process at once, running nothing on the way.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: takes no pointers and does not return.
    unsafe { libc::_exit(code) }
}

/// Becomes another program; returns only if that fails.
pub(crate) fn execve(path: &CStr, args: &[CString], env: &[CString]) -> io::Error {
    let pointers = |texts: &[CString]| -> Vec<*const libc::c_char> {
        texts.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (args, env) = (pointers(args), pointers(env));
    // SAFETY: `path` and every text end in a zero byte, both arrays end in a null pointer, and all of them live
    // until the call returns.
    unsafe { libc::execve(path.as_ptr(), args.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// Puts `from` in the place of descriptor `to`, open across `execve`.
pub(crate) fn put_at(from: BorrowedFd<'_>, to: RawFd) -> io::Result<()> {
    if from.as_raw_fd() == to {
        // SAFETY: takes no pointers; `from` is open.
        return check(unsafe { libc::fcntl(to, libc::F_SETFD, 0) });
    }
    // SAFETY: takes no pointers. Whatever was open as `to` is closed; callers pass 0, 1, 2, or the number of a
    // descriptor they own and give up.
    check(unsafe { libc::dup2(from.as_raw_fd(), to) })
}

/// Closes every descriptor from `first` on. Owners of such descriptors must not be dropped any more.
pub(crate) fn close_from(first: RawFd) -> io::Result<()> {
    // SAFETY: takes no pointers; only for the new process, which keeps nothing of its parent's values and ends
    // without dropping them.
    check_long(unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) })
}

/// Marks every descriptor from `first` on to be closed by `execve`.
pub(crate) fn close_on_exec_from(first: RawFd) -> io::Result<()> {
    const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;
    // SAFETY: takes no pointers and closes nothing.
    check_long(unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, CLOSE_RANGE_CLOEXEC) })
}

/// Sets every signal to its default and blocks none: what a program may expect to start with.
pub(crate) fn reset_signals() {
    for signal in SIGNALS {
        // SAFETY: zeros are SIG_DFL without flags, in more memory than the kernel's structure has; the call fails
        // for SIGKILL and SIGSTOP, which is as it should be. The C library's own call leaves two signals out.
        unsafe {
            let action = [0u64; 8];
            let none = std::ptr::null_mut::<u64>();
            libc::syscall(libc::SYS_rt_sigaction, signal, &raw const action, none, size_of::<u64>());
        }
    }
    // SAFETY: the set is initialised before it is read.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// Installs a system call filter, as instructions packed in the kernel's layout.
pub(crate) fn install_filter(program: &[u64]) -> io::Result<()> {
    let filter: Vec<libc::sock_filter> = program.iter().copied().map(unpack).collect();
    let length = u16::try_from(filter.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let program = libc::sock_fprog { len: length, filter: filter.as_ptr().cast_mut() };
    // SAFETY: `program` describes the vector, which outlives the call; the kernel only reads.
    check_long(unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program)
    })
}

/// An instruction as one number, for the way to the new process.
pub(crate) fn pack(code: u16, jt: u8, jf: u8, k: u32) -> u64 {
    u64::from(code) << 48 | u64::from(jt) << 40 | u64::from(jf) << 32 | u64::from(k)
}

fn unpack(packed: u64) -> libc::sock_filter {
    let [c1, c0, jt, jf, k3, k2, k1, k0] = packed.to_be_bytes();
    libc::sock_filter { code: u16::from_be_bytes([c1, c0]), jt, jf, k: u32::from_be_bytes([k3, k2, k1, k0]) }
}

/// Gives the process a session keyring of its own.
pub(crate) fn join_session_keyring(name: &CStr) -> io::Result<()> {
    // SAFETY: `name` ends in a zero byte.
    check_long(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) })
}

/// Sets and clears attributes (`MOUNT_ATTR_…`), and sets propagation (`MS_…`), of an open mount, and of those below it.
pub(crate) fn mount_setattr(
    mount: BorrowedFd<'_>,
    recursive: bool,
    set: u64,
    clear: u64,
    propagation: u64,
) -> io::Result<()> {
    const AT_RECURSIVE: libc::c_int = 0x8000;
    let attributes = libc::mount_attr { attr_set: set, attr_clr: clear, propagation, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | if recursive { AT_RECURSIVE } else { 0 };
    // SAFETY: the path ends in a zero byte, `attributes` outlives the call and has the size that is told.
    check_long(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    })
}

/// The `bpf` call with an attribute block of the command's own form.
pub(crate) fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<RawFd> {
    // SAFETY: `attributes` is memory of the told size; the pointers in it are the caller's, who keeps what they
    // point to until the call returns.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, size_of::<T>()) };
    check_long(answer)?;
    RawFd::try_from(answer).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
}

/// Takes ownership of a descriptor that a system call has just returned.
pub(crate) fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: callers pass what `bpf` opened for them, known to nobody else.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// The control socket that the process that cloned this one left at `fd`.
pub(crate) fn inherited(fd: RawFd) -> OwnedFd {
    // SAFETY: by agreement between the helper and what starts it, this number is open and belongs to nobody else.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Registers a descriptor with the async runtime that this is called in.
pub(crate) fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` names the same open descriptor until it is dropped, and the value takes it over.
    let watched = unsafe { AsyncFd::register_with_interest(fd, interest) };
    watched.map_err(|error| error.into_parts().1)
}

fn check(answer: libc::c_int) -> io::Result<()> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn check_long(answer: libc::c_long) -> io::Result<()> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_survive_packing() {
        let got = unpack(pack(0x8015, 0xfe, 3, 0xdead_beef));
        assert_eq!((got.code, got.jt, got.jf, got.k), (0x8015, 0xfe, 3, 0xdead_beef));
    }
}
