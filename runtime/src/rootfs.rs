//! The filesystem of a container: its mounts, its devices, and the way in.
//!
//! Every mount is made without a place first, given its attributes, and then put on a handle of its mount point,
//! which is looked up so that no link in the root filesystem leads out of it.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use kiln_rootdir::{Kind, Root};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount_change,
    move_mount, open_tree, unmount,
};
use rustix::thread::UnshareFlags;

use crate::child::{Failed, Outcome, failed, text};
use crate::mount_plan::{MountKind, MountPlan};
use crate::plan::{Node, Plan};
use crate::sys;

const READ_ONLY: u64 = 1;

/// Makes the container's filesystem and moves in. Afterwards nothing of the host's can be reached by path.
pub(crate) fn enter(plan: &Plan) -> Outcome<()> {
    rustix::process::umask(Mode::empty());
    if plan.user_namespace {
        become_root()?;
    }
    if let Some(path) = &plan.join_network {
        let what = "cannot enter the network namespace";
        let namespace = std::fs::File::open(path).map_err(failed(what))?;
        let kind = Some(rustix::thread::LinkNameSpaceType::Network);
        rustix::thread::move_into_link_name_space(namespace.as_fd(), kind).map_err(failed(what))?;
    }
    if plan.new_network {
        loopback_up()?;
    }
    unshare(UnshareFlags::NEWNS)?;
    if plan.new_cgroup {
        unshare(UnshareFlags::NEWCGROUP)?;
    }
    // Nothing that is mounted here may show outside.
    let downstream = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    mount_change("/", downstream).map_err(failed("cannot detach the mounts of the host"))?;
    let what = format!("cannot mount the root filesystem `{}`", plan.root.display());
    let tree = clone_path(&plan.root, true).map_err(failed(&what))?;
    sys::mount_setattr(tree.as_fd(), true, 0, 0, libc::MS_PRIVATE).map_err(failed(&what))?;
    let onto = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(&tree, "", CWD, &plan.root, onto).map_err(failed(&what))?;
    drop(tree);

    let place = Place { root: Root::open(&plan.root).map_err(|e| Failed(format!("{what}: {e}")))?, plan };
    for mount in &plan.mounts {
        place
            .mount(mount)
            .map_err(|Failed(why)| Failed(format!("cannot mount `{}`: {why}", mount.dest.display())))?;
    }
    let null = place.devices()?;
    place.pivot()?;
    finish(plan, null)
}

/// A new process in a user namespace is still the user outside, who is nobody inside and cannot own a file.
fn become_root() -> Outcome<()> {
    let what = "cannot become root of the user namespace";
    let (uid, gid) = (rustix::fs::Uid::ROOT, rustix::fs::Gid::ROOT);
    rustix::thread::set_thread_groups(&[]).map_err(failed(what))?;
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(failed(what))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(failed(what))
}

fn unshare(kind: UnshareFlags) -> Outcome<()> {
    sys::unshare(kind).map_err(failed("cannot make a namespace"))
}

struct Place<'a> {
    root: Root,
    plan: &'a Plan,
}

impl Place<'_> {
    fn mount(&self, mount: &MountPlan) -> Outcome<()> {
        let dest = self.root.resolve(&mount.dest, true).map_err(rooted)?;
        if dest == Path::new("/") {
            return Err(Failed("the root filesystem is there already".to_owned()));
        }
        let tree = match &mount.kind {
            MountKind::Bind { recursive } => {
                let source = mount.source.display();
                let tree = clone_path(&mount.source, *recursive)
                    .map_err(failed(format!("cannot use `{source}`")))?;
                self.refuse_in_proc(&dest, Some(&tree))?;
                if is_dir(&tree)? {
                    self.make_dir(&dest)?
                } else {
                    self.make_file(&dest)?
                }
                tree
            }
            MountKind::New { filesystem, parameters } => {
                self.refuse_in_proc(&dest, None)?;
                // Links could lead the kernel's own files to where the masks do not hold.
                if matches!(filesystem.as_str(), "proc" | "sysfs") && dest != mount.dest {
                    return Err(Failed(format!("{filesystem} must be mounted on an ordinary directory")));
                }
                self.make_dir(&dest)?;
                let source = mount.source.to_string_lossy();
                return self.attach(mount, &dest, new_filesystem(filesystem, &source, parameters, mount)?);
            }
            MountKind::ControlGroups => {
                self.make_dir(&dest)?;
                return self.control_groups(mount, &dest);
            }
        };
        let attributes = mount.attributes;
        if attributes.set | attributes.clear != 0 {
            let (set, clear) = (attributes.set, attributes.clear);
            sys::mount_setattr(tree.as_fd(), false, set, clear, 0)
                .map_err(failed("cannot set attributes"))?;
        }
        self.attach(mount, &dest, tree)
    }

    /// Puts a mount in its place, which is there.
    fn attach(&self, mount: &MountPlan, dest: &Path, tree: OwnedFd) -> Outcome<()> {
        let (set, clear) = (mount.recursive.set, mount.recursive.clear);
        if set | clear != 0 {
            sys::mount_setattr(tree.as_fd(), true, set, clear, 0).map_err(failed("cannot set attributes"))?;
        }
        if let Some(propagation) = mount.propagation {
            sys::mount_setattr(tree.as_fd(), propagation.recursive, 0, 0, propagation.kind)
                .map_err(failed("cannot set propagation"))?;
        }
        let point = self.root.open_path(dest, true).map_err(rooted)?;
        attach_at(&tree, &point).map_err(failed("cannot put it there"))
    }

    /// What the kernel shows of processes is not to be covered, but for a few files that only inform.
    fn refuse_in_proc(&self, dest: &Path, source: Option<&OwnedFd>) -> Outcome<()> {
        const INFORMING: [&str; 10] = [
            "cpuinfo",
            "diskstats",
            "meminfo",
            "stat",
            "swaps",
            "uptime",
            "loadavg",
            "slabinfo",
            "net/dev",
            "sys/kernel/ns_last_pid",
        ];
        let Ok(below) = dest.strip_prefix("/proc") else { return Ok(()) };
        if below.as_os_str().is_empty() {
            let Some(source) = source else { return Ok(()) };
            let kind = rustix::fs::fstatfs(source).map_err(failed("cannot look at it"))?;
            if u64::try_from(kind.f_type).ok() == u64::try_from(rustix::fs::PROC_SUPER_MAGIC).ok() {
                return Ok(());
            }
        } else if INFORMING.iter().any(|file| Path::new(file) == below) {
            return Ok(());
        }
        Err(Failed(format!("`{}` cannot be mounted because it is inside /proc", dest.display())))
    }

    fn make_dir(&self, dest: &Path) -> Outcome<()> {
        self.root.mkdir_all(dest, 0o755).map(drop).map_err(rooted)
    }

    fn make_file(&self, dest: &Path) -> Outcome<()> {
        if self.root.stat(dest, true).map_err(rooted)?.is_some() {
            return Ok(());
        }
        if let Some(parent) = dest.parent() {
            self.make_dir(parent)?;
        }
        self.root.mknod(dest, Kind::File, 0o755, (0, 0)).map_err(rooted)
    }

    /// Version 2 is a filesystem as seen from the container's own group; the hierarchies of version 1 are its
    /// groups of the host's mounts, side by side.
    fn control_groups(&self, mount: &MountPlan, dest: &Path) -> Outcome<()> {
        if self.plan.cgroup_v1.is_empty() {
            if !self.plan.new_cgroup {
                return Err(Failed("control groups need a namespace of their own to be mounted".to_owned()));
            }
            return self.attach(mount, dest, new_filesystem("cgroup2", "cgroup", &[], mount)?);
        }
        let mode = [("mode".to_owned(), Some("755".to_owned()))];
        let all = new_filesystem_with("tmpfs", "tmpfs", &mode, mount.attributes.set & !READ_ONLY)?;
        let list = Root::from_fd(all.try_clone().map_err(failed("cannot go on"))?);
        let mut groups = Vec::new();
        for (name, path) in &self.plan.cgroup_v1 {
            let what = || format!("cannot use the control group `{}`", path.display());
            let tree = clone_path(path, false).map_err(failed(what()))?;
            let (set, clear) = (mount.attributes.set, mount.attributes.clear);
            sys::mount_setattr(tree.as_fd(), false, set, clear, libc::MS_PRIVATE).map_err(failed(what()))?;
            list.mkdir(name, 0o755).map_err(rooted)?;
            for part in name.split(',').filter(|part| *part != name) {
                list.symlink(name, part).map_err(rooted)?;
            }
            groups.push((name, tree));
        }
        self.attach(mount, dest, all)?;
        let placed = Root::open_dir(&self.root, dest).map_err(rooted)?;
        for (name, tree) in groups {
            let point = placed.open_path(name, false).map_err(rooted)?;
            attach_at(&tree, &point).map_err(failed("cannot put a control group there"))?;
        }
        if mount.attributes.set & READ_ONLY != 0 {
            let top = placed.as_fd();
            sys::mount_setattr(top, false, READ_ONLY, 0, 0).map_err(failed("cannot set attributes"))?;
        }
        Ok(())
    }

    /// Fills `/dev`, if it is the container's own, and makes the devices that are asked for. Returns a handle on
    /// the null device, for masks.
    fn devices(&self) -> Outcome<OwnedFd> {
        let own = self.plan.mounts.iter().any(|mount| {
            mount.dest == Path::new("/dev")
                && matches!(&mount.kind, MountKind::New { filesystem, .. } if filesystem == "tmpfs")
        });
        let mut null = None;
        if own {
            for (name, major, minor) in DEVICES {
                self.device(&Node::usual(name, major, minor))?;
            }
            null = Some(self.root.open_path("/dev/null", false).map_err(rooted)?);
            for (name, target) in LINKS {
                self.root.symlink(target, Path::new("/dev").join(name)).map_err(rooted)?;
            }
            if self.root.stat("/proc/kcore", false).map_err(rooted)?.is_some() {
                self.root.symlink("/proc/kcore", "/dev/core").map_err(rooted)?;
            }
        }
        for node in &self.plan.devices {
            self.device(node)?;
        }
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        match null {
            Some(null) => Ok(null),
            None => rustix::fs::open("/dev/null", flags, Mode::empty()).map_err(failed("no null device")),
        }
    }

    fn device(&self, node: &Node) -> Outcome<()> {
        let path = &node.path;
        let what = |why: Failed| Failed(format!("cannot make device `{}`: {}", path.display(), why.0));
        if let Some(parent) = path.parent() {
            self.make_dir(parent).map_err(what)?;
        }
        if self.plan.bind_devices {
            // Nodes cannot be made there; the host's own serve.
            let tree = clone_path(path, false).map_err(failed("the host has none")).map_err(what)?;
            self.make_file(path).map_err(what)?;
            let point = self.root.open_path(path, false).map_err(rooted).map_err(what)?;
            return attach_at(&tree, &point).map_err(failed("cannot put it there")).map_err(what);
        }
        let kind = if node.block { Kind::BlockDevice } else { Kind::CharDevice };
        let made = self.root.mknod(path, kind, node.mode, (node.major, node.minor));
        made.map_err(rooted).map_err(what)?;
        self.root.chown(path, node.uid, node.gid).map_err(rooted).map_err(what)
    }

    /// Makes the root filesystem the root, and leaves the old one behind.
    fn pivot(self) -> Outcome<()> {
        let what = "cannot make the root filesystem the root";
        rustix::process::fchdir(&self.root).map_err(failed(what))?;
        // The old root comes to lie on the new one, and is taken off.
        rustix::process::pivot_root(".", ".").map_err(failed(what))?;
        unmount(".", UnmountFlags::DETACH).map_err(failed(what))?;
        rustix::process::chdir("/").map_err(failed(what))
    }
}

impl Node {
    fn usual(name: &str, major: u32, minor: u32) -> Self {
        let path = Path::new("/dev").join(name);
        Self { path, block: false, major, minor, mode: 0o666, uid: 0, gid: 0 }
    }
}

/// What every container has.
const DEVICES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
const LINKS: [(&str, &str); 5] = [
    ("ptmx", "pts/ptmx"),
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

/// What is done from inside: names, settings, masks.
fn finish(plan: &Plan, null: OwnedFd) -> Outcome<()> {
    if !plan.hostname.is_empty() {
        rustix::system::sethostname(plan.hostname.as_bytes()).map_err(failed("cannot set the host name"))?;
    }
    for (name, value) in &plan.sysctl {
        let path = Path::new("/proc/sys").join(name.replace('.', "/"));
        std::fs::write(&path, value).map_err(failed(format!("cannot set sysctl {name}")))?;
    }
    if plan.read_only_root {
        let root = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .map_err(failed("cannot open the root"))?;
        sys::mount_setattr(root.as_fd(), false, READ_ONLY, 0, 0)
            .map_err(failed("cannot make the root filesystem read-only"))?;
    }
    for path in &plan.read_only {
        let what = format!("cannot make `{}` read-only", path.display());
        let Some(point) = find(path).map_err(failed(&what))? else { continue };
        let tree = clone_fd(&point, true).map_err(failed(&what))?;
        sys::mount_setattr(tree.as_fd(), true, READ_ONLY, 0, 0).map_err(failed(&what))?;
        attach_at(&tree, &point).map_err(failed(&what))?;
    }
    let stat = rustix::fs::fstat(&null).map_err(failed("cannot look at the null device"))?;
    if !FileType::from_raw_mode(stat.st_mode).is_char_device() || stat.st_rdev != rustix::fs::makedev(1, 3) {
        return Err(Failed("what is to mask files is not the null device".to_owned()));
    }
    let mut empty: Option<OwnedFd> = None;
    for path in &plan.masked {
        let what = format!("cannot mask `{}`", path.display());
        let Some(point) = find(path).map_err(failed(&what))? else { continue };
        let mask = match (is_dir(&point)?, &empty) {
            (false, _) => clone_fd(&null, false).map_err(failed(&what))?,
            // Copies can only be made of what has a place already.
            (true, Some(empty)) => clone_fd(empty, false).map_err(failed(&what))?,
            (true, None) => {
                let first = new_filesystem_with("tmpfs", "tmpfs", &[("ro".to_owned(), None)], READ_ONLY)?;
                attach_at(&first, &point).map_err(failed(&what))?;
                empty = Some(first);
                continue;
            }
        };
        attach_at(&mask, &point).map_err(failed(&what))?;
    }
    Ok(())
}

fn find(path: &Path) -> rustix::io::Result<Option<OwnedFd>> {
    use rustix::io::Errno;
    match rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(error) => Err(error),
    }
}

fn new_filesystem(
    filesystem: &str,
    source: &str,
    parameters: &[(String, Option<String>)],
    mount: &MountPlan,
) -> Outcome<OwnedFd> {
    let read_only = mount.attributes.set & READ_ONLY != 0;
    if read_only && filesystem != "tmpfs" {
        let mut parameters = parameters.to_vec();
        parameters.push(("ro".to_owned(), None));
        return new_filesystem_with(filesystem, source, &parameters, mount.attributes.set);
    }
    new_filesystem_with(filesystem, source, parameters, mount.attributes.set)
}

fn new_filesystem_with(
    filesystem: &str,
    source: &str,
    parameters: &[(String, Option<String>)],
    attributes: u64,
) -> Outcome<OwnedFd> {
    let what = format!("cannot make a filesystem of type {filesystem}");
    let context = fsopen(filesystem, FsOpenFlags::FSOPEN_CLOEXEC).map_err(failed(&what))?;
    fsconfig_set_string(&context, "source", source).map_err(failed(&what))?;
    for (name, value) in parameters {
        let set = match value {
            Some(value) => fsconfig_set_string(&context, name.as_str(), value.as_str()),
            None => fsconfig_set_flag(&context, name.as_str()),
        };
        set.map_err(failed(format!("{what}: parameter {name}")))?;
    }
    fsconfig_create(&context).map_err(failed(&what))?;
    let attributes = u32::try_from(attributes).map_err(|_| Failed(what.clone()))?;
    let attributes = MountAttrFlags::from_bits_retain(attributes);
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(failed(&what))
}

/// Shows one file of the container's at another place in it.
pub(crate) fn bind_file(from: &Path, to: &Path) -> Outcome<()> {
    let what = format!("cannot make `{}`", to.display());
    let tree = clone_path(from, false).map_err(failed(&what))?;
    let flags = OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::open(to, flags, Mode::from_raw_mode(0o666)).map_err(failed(&what))?;
    let point = rustix::fs::open(to, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
    attach_at(&tree, &point.map_err(failed(&what))?).map_err(failed(&what))
}

/// A copy of the mount at a path of the host's.
fn clone_path(path: &Path, recursive: bool) -> rustix::io::Result<OwnedFd> {
    open_tree(CWD, path, clone_flags(recursive))
}

fn clone_fd(of: &impl AsFd, recursive: bool) -> rustix::io::Result<OwnedFd> {
    open_tree(of, "", clone_flags(recursive) | OpenTreeFlags::AT_EMPTY_PATH)
}

fn clone_flags(recursive: bool) -> OpenTreeFlags {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive { flags | OpenTreeFlags::AT_RECURSIVE } else { flags }
}

fn attach_at(tree: &OwnedFd, point: &OwnedFd) -> rustix::io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(tree, "", point, "", flags)
}

fn is_dir(of: &OwnedFd) -> Outcome<bool> {
    let stat = rustix::fs::fstat(of).map_err(failed("cannot look at it"))?;
    Ok(FileType::from_raw_mode(stat.st_mode).is_dir())
}

/// A new network namespace has its loopback device switched off.
fn loopback_up() -> Outcome<()> {
    sys::loopback_up().map_err(failed("cannot switch the loopback device on"))
}

fn rooted(error: kiln_rootdir::Error) -> Failed {
    let source: Option<&std::io::Error> =
        std::error::Error::source(&error).and_then(|source| source.downcast_ref());
    match source {
        Some(source) => Failed(format!("{error}: {}", text(source))),
        None => Failed(error.to_string()),
    }
}
