//! The last steps of a new process, in the container already: limits, user, capabilities, filter, program.

use std::ffi::CString;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::process::Signal;
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::child::{Failed, Outcome, failed, text};
use crate::plan::{Capabilities, ProcessPlan};
use crate::rootfs;
use crate::sys;
use crate::wire::{self, Answer};

/// The largest `/etc/passwd` that is read.
const MAX_PASSWD: u64 = 10 * 1024 * 1024;
/// One more than the highest capability there can be.
const CAPABILITY_BITS: u32 = 64;

/// Becomes the step's program. Does not return, but with an error.
pub(crate) fn run(
    plan: &ProcessPlan,
    keyring: Option<&str>,
    stdio: [OwnedFd; 3],
    socket: &OwnedFd,
) -> Outcome<()> {
    for (resource, soft, hard) in &plan.rlimits {
        sys::set_limit(*resource, *soft, *hard)
            .map_err(failed(format!("cannot set resource limit {resource} to {soft}:{hard}")))?;
    }
    if let Some(adjustment) = plan.oom_score_adj {
        std::fs::write("/proc/self/oom_score_adj", adjustment.to_string())
            .map_err(failed("cannot set oom_score_adj"))?;
    }
    if let Some(keyring) = keyring {
        own_keyring(keyring)?;
    }
    rustix::process::setsid().map_err(failed("cannot make a session"))?;
    streams(plan, keyring.is_some(), stdio, socket)?;
    labels(plan)?;
    if plan.no_new_privileges {
        rustix::thread::set_no_new_privs(true).map_err(failed("cannot set no_new_privs"))?;
    }
    let env = environment(plan)?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    sys::reset_signals();
    // A working directory that root may not enter can still be one for the user.
    let entered = rustix::process::chdir(&plan.cwd).is_ok();
    let filter = || match &plan.filter {
        Some(filter) => sys::install_filter(filter).map_err(failed("cannot install the system call filter")),
        None => Ok(()),
    };
    // Without no_new_privs this takes a capability that is about to go.
    if !plan.no_new_privileges {
        filter()?;
    }
    become_user(plan)?;
    if !entered {
        let what = format!("chdir to cwd ({:?}) set in config.json failed", plan.cwd);
        rustix::process::chdir(&plan.cwd).map_err(failed(what))?;
    }
    inside()?;
    let program = find_program(plan, &env)?;
    let args = texts(plan.args.iter().map(String::as_str))?;
    let env = texts(env.iter().map(String::as_str))?;
    let path = text_of(&program.to_string_lossy())?;
    // The changes of user and capabilities have cleared it.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(failed("cannot tie the process to the daemon"))?;
    if plan.no_new_privileges {
        filter()?;
    }
    let error = sys::execve(&path, &args, &env);
    Err(Failed(format!("exec {}: {}", program.display(), text(&error))))
}

/// Keys of the daemon are not for the container. A kernel without keyrings has none to hide.
fn own_keyring(name: &str) -> Outcome<()> {
    match sys::join_session_keyring(&text_of(name)?) {
        Err(error) if error.raw_os_error() != Some(libc::ENOSYS) => {
            Err(failed("cannot make a session keyring")(error))
        }
        _ => Ok(()),
    }
}

/// Puts standard input, output and error in their places, as the user's own.
fn streams(plan: &ProcessPlan, first: bool, stdio: [OwnedFd; 3], socket: &OwnedFd) -> Outcome<()> {
    if plan.terminal {
        drop(stdio);
        return terminal(plan, first, socket);
    }
    for (fd, to) in stdio.into_iter().zip(0..) {
        let what = "cannot set up the standard streams";
        let stat = rustix::fs::fstat(&fd).map_err(failed(what))?;
        let is_null = FileType::from_raw_mode(stat.st_mode).is_char_device()
            && stat.st_rdev == rustix::fs::makedev(1, 3);
        if is_null {
            // The container's own null device instead of one of the host's.
            let flags = OFlags::RDWR | OFlags::CLOEXEC;
            let own = rustix::fs::open("/dev/null", flags, Mode::empty()).map_err(failed(what))?;
            sys::put_at(own.as_fd(), to).map_err(failed(what))?;
            continue;
        }
        if stat.st_uid != plan.uid {
            match rustix::fs::fchown(&fd, Some(Uid::from_raw(plan.uid)), Some(Gid::from_raw(stat.st_gid))) {
                // Then it cannot be opened again by path, and works all the same.
                Ok(()) | Err(Errno::PERM | Errno::INVAL | Errno::ROFS) => {}
                Err(error) => return Err(failed(what)(error)),
            }
        }
        sys::put_at(fd.as_fd(), to).map_err(failed(what))?;
    }
    Ok(())
}

/// Makes a terminal of the container, sends its other end to the daemon, and makes it the controlling one. That of
/// the first process is the console too.
fn terminal(plan: &ProcessPlan, first: bool, socket: &OwnedFd) -> Outcome<()> {
    let what = "cannot make a terminal";
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let main = rustix::fs::open("/dev/pts/ptmx", flags, Mode::empty()).map_err(failed(what))?;
    let number = sys::terminal_number(main.as_fd()).map_err(failed(what))?;
    let path = format!("/dev/pts/{number}");
    let own = rustix::fs::open(&path, flags, Mode::empty()).map_err(failed(what))?;
    if first {
        rootfs::bind_file(Path::new(&path), Path::new("/dev/console"))?;
    }
    let _ = rustix::fs::fchown(&own, Some(Uid::from_raw(plan.uid)), None);
    wire::send(socket, &Answer::Terminal, &[main.as_fd()]).map_err(failed(what))?;
    rustix::process::ioctl_tiocsctty(&own).map_err(failed(what))?;
    for to in 0..=2 {
        sys::put_at(own.as_fd(), to).map_err(failed(what))?;
    }
    Ok(())
}

/// What security modules make of the program.
fn labels(plan: &ProcessPlan) -> Outcome<()> {
    if let Some(profile) = plan.apparmor_profile.as_deref().filter(|profile| !profile.is_empty()) {
        let own = Path::new("/proc/self/attr/apparmor/exec");
        let file = if own.exists() { own } else { Path::new("/proc/self/attr/exec") };
        std::fs::write(file, format!("exec {profile}"))
            .map_err(failed(format!("cannot use the AppArmor profile {profile}")))?;
    }
    if let Some(label) = plan.selinux_label.as_deref().filter(|label| !label.is_empty()) {
        std::fs::write("/proc/self/attr/exec", label)
            .map_err(failed(format!("cannot use the SELinux label {label}")))?;
    }
    Ok(())
}

/// Takes the user's ids and leaves all capabilities but those that are asked for.
fn become_user(plan: &ProcessPlan) -> Outcome<()> {
    let what = "cannot become the user";
    let sets = plan.capabilities;
    for bit in 0..CAPABILITY_BITS {
        if sets.bounding & 1 << bit != 0 {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << bit)) {
            Ok(()) => {}
            // Past the kernel's last one.
            Err(Errno::INVAL) => break,
            Err(error) => return Err(failed("cannot take capabilities away")(error)),
        }
    }
    rustix::thread::set_keep_capabilities(true).map_err(failed(what))?;
    let groups: Vec<Gid> = plan.groups.iter().copied().map(Gid::from_raw).collect();
    match rustix::thread::set_thread_groups(&groups) {
        // In a namespace with one id there is no other group to give up or to take.
        Err(Errno::PERM) if groups_are_fixed() => {}
        set => set.map_err(failed(what))?,
    }
    let (uid, gid) = (Uid::from_raw(plan.uid), Gid::from_raw(plan.gid));
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(failed(what))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(failed(what))?;
    rustix::thread::set_keep_capabilities(false).map_err(failed(what))?;
    set_capabilities(sets).map_err(failed("cannot set capabilities"))
}

/// Whether the user namespace was made by an ordinary user, who may not leave groups that deny him something.
fn groups_are_fixed() -> bool {
    std::fs::read_to_string("/proc/self/setgroups").is_ok_and(|answer| answer.trim() == "deny")
}

fn set_capabilities(sets: Capabilities) -> rustix::io::Result<()> {
    let set = CapabilitySet::from_bits_retain;
    rustix::thread::set_capabilities(
        None,
        CapabilitySets {
            effective: set(sets.effective),
            permitted: set(sets.permitted),
            inheritable: set(sets.inheritable),
        },
    )?;
    rustix::thread::clear_ambient_capability_set()?;
    for bit in (0..CAPABILITY_BITS).filter(|bit| sets.ambient & 1 << bit != 0) {
        rustix::thread::configure_capability_in_ambient_set(set(1 << bit), true)?;
    }
    Ok(())
}

/// A working directory that leads out of the container shows as one that cannot be reached.
fn inside() -> Outcome<()> {
    let cwd = rustix::process::getcwd(Vec::new()).map_err(failed("cannot name the working directory"))?;
    match cwd.as_bytes().starts_with(b"/") {
        true => Ok(()),
        false => Err(Failed("the working directory is outside of the container".to_owned())),
    }
}

/// The environment with the last value of each name, and a home directory.
fn environment(plan: &ProcessPlan) -> Outcome<Vec<String>> {
    let mut env: Vec<String> = Vec::with_capacity(plan.env.len() + 1);
    let mut places: std::collections::HashMap<&str, usize> = std::collections::HashMap::new();
    for variable in &plan.env {
        let name = match variable.split_once('=') {
            Some((name, _)) if !name.is_empty() => name,
            _ => return Err(Failed(format!("invalid environment variable: {variable:?}"))),
        };
        match places.get(name) {
            Some(place) => {
                if let Some(known) = env.get_mut(*place) {
                    known.clone_from(variable);
                }
            }
            None => {
                places.insert(name, env.len());
                env.push(variable.clone());
            }
        }
    }
    let home = |home: String| format!("HOME={home}");
    match places.get("HOME").and_then(|place| env.get_mut(*place)) {
        Some(known) if known == "HOME=" => *known = home(home_of(plan.uid)),
        Some(_) => {}
        None => env.push(home(home_of(plan.uid))),
    }
    Ok(env)
}

/// The home directory in the container's `/etc/passwd`.
fn home_of(uid: u32) -> String {
    let find = || -> Option<String> {
        // A pipe in its place would be waited for without end.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::open("/etc/passwd", flags, Mode::empty()).ok()?;
        if !FileType::from_raw_mode(rustix::fs::fstat(&file).ok()?.st_mode).is_file() {
            return None;
        }
        let mut content = Vec::new();
        std::fs::File::from(file).take(MAX_PASSWD).read_to_end(&mut content).ok()?;
        let content = String::from_utf8_lossy(&content);
        content.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            let is_it = fields.get(2)?.parse::<u32>() == Ok(uid);
            fields.get(5).filter(|_| is_it).map(|home| (*home).to_owned())
        })
    };
    find().filter(|home| !home.is_empty()).unwrap_or_else(|| "/".to_owned())
}

/// The program that the first argument names, by the container's own `PATH`.
fn find_program(plan: &ProcessPlan, env: &[String]) -> Outcome<PathBuf> {
    let name = plan.args.first().map(String::as_str).unwrap_or_default();
    if name.contains('/') {
        return match usable(Path::new(name)) {
            Ok(()) => Ok(PathBuf::from(name)),
            Err(Errno::NOENT | Errno::NOTDIR) => {
                Err(Failed(format!("exec: {name:?}: stat {name}: no such file or directory")))
            }
            Err(error) => Err(failed(format!("exec: {name:?}"))(error)),
        };
    }
    let path = env.iter().find_map(|variable| variable.strip_prefix("PATH=")).unwrap_or_default();
    let mut dirs = path.split(':').map(|dir| if dir.is_empty() { Path::new(".") } else { Path::new(dir) });
    let found = dirs.find_map(|dir| Some(dir.join(name)).filter(|path| usable(path).is_ok()));
    found
        .filter(|_| !name.is_empty())
        .ok_or_else(|| Failed(format!("exec: {name:?}: executable file not found in $PATH")))
}

fn usable(path: &Path) -> Result<(), Errno> {
    let stat = rustix::fs::stat(path)?;
    if FileType::from_raw_mode(stat.st_mode).is_dir() {
        return Err(Errno::ISDIR);
    }
    rustix::fs::accessat(rustix::fs::CWD, path, rustix::fs::Access::EXEC_OK, rustix::fs::AtFlags::EACCESS)
        // A filter may know the older call alone.
        .or_else(|error| {
            if error == Errno::NOSYS {
                rustix::fs::access(path, rustix::fs::Access::EXEC_OK)
            } else {
                Err(error)
            }
        })
}

fn texts<'a>(all: impl Iterator<Item = &'a str>) -> Outcome<Vec<CString>> {
    all.map(text_of).collect()
}

fn text_of(text: &str) -> Outcome<CString> {
    CString::new(text)
        .map_err(|error| failed("zero byte in the command or its environment")(io::Error::from(error)))
}
