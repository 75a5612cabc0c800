//! Mounting overlayfs: through the mount API (fsopen and its kin, `lowerdir+` of Linux 6.8), else by `mount(2)`.

use std::borrow::Cow;
use std::ffi::{CString, OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags};

use crate::error::{Error, Result};
use crate::mount::open_path;

/// `fsconfig` takes strings of up to 255 bytes; longer paths go by handle.
const MAX_FSCONFIG_STRING: usize = 255;
/// `mount(2)` copies one page of options, its last byte a zero. Pages are never smaller than this.
const MAX_CLASSIC_OPTIONS: usize = 4095;

type Upper<'a> = Option<(&'a PathBuf, &'a PathBuf)>;

/// Mounts an overlay at `target`.
pub(crate) fn attach(lowers: &[PathBuf], upper: Upper<'_>, target: &Path) -> Result<()> {
    if let Some((_, work)) = upper {
        match std::fs::create_dir(work) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(Error::io("make directory", work, error));
            }
            _ => forget_volatile(work)?,
        }
    }
    match create(lowers, upper, target)? {
        Some(mount) => rustix::mount::move_mount(
            &mount,
            "",
            rustix::fs::CWD,
            target,
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
        )
        .map_err(|errno| failed(lowers, target, String::new(), errno)),
        None => classic(lowers, upper, target),
    }
}

/// A read-only overlay that is attached nowhere; `None` if this kernel cannot make one.
pub(crate) fn detached(lowers: &[PathBuf], target: &Path) -> Result<Option<OwnedFd>> {
    create(lowers, None, target)
}

/// Makes the overlay through the mount API; `None` where there is none, or none that takes layers one by one.
fn create(lowers: &[PathBuf], upper: Upper<'_>, target: &Path) -> Result<Option<OwnedFd>> {
    let context = match rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC) {
        Ok(context) => context,
        // A filter may answer PERM for calls that it does not know.
        Err(Errno::NOSYS | Errno::PERM) => return Ok(None),
        Err(errno) => return Err(failed(lowers, target, String::new(), errno)),
    };
    let fails = |errno| failed(lowers, target, read_log(&context), errno);
    let set = |key: &str, value: &OsStr| rustix::mount::fsconfig_set_string(&context, key, value);
    set("source", OsStr::new("overlay")).map_err(fails)?;
    // Handles must stay open until the overlay is made.
    let mut handles = Vec::new();
    for (index, lower) in lowers.iter().rev().enumerate() {
        let name = name_of(lower, &mut handles).map_err(|errno| Error::io("open", lower, errno))?;
        match set("lowerdir+", &name) {
            Err(Errno::INVAL) if index == 0 => return Ok(None),
            outcome => outcome.map_err(|errno| {
                let what = format!("layer `{}`", lower.display());
                Error::Mount {
                    what,
                    target: target.into(),
                    kernel_log: read_log(&context),
                    source: errno.into(),
                }
            })?,
        }
    }
    if let Some((upper, work)) = upper {
        for (key, path) in [("upperdir", upper), ("workdir", work)] {
            let name = name_of(path, &mut handles).map_err(|errno| Error::io("open", path, errno))?;
            set(key, &name).map_err(fails)?;
        }
    }
    for option in options(upper.is_some()) {
        match option.split_once('=') {
            Some((key, value)) => set(key, OsStr::new(value)).map_err(fails)?,
            None => rustix::mount::fsconfig_set_flag(&context, *option).map_err(fails)?,
        }
    }
    rustix::mount::fsconfig_create(&context).map_err(fails)?;
    let attributes = match upper {
        Some(_) => MountAttrFlags::empty(),
        None => MountAttrFlags::MOUNT_ATTR_RDONLY,
    };
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map(Some).map_err(fails)
}

fn classic(lowers: &[PathBuf], upper: Upper<'_>, target: &Path) -> Result<()> {
    let mut handles = Vec::new();
    let mut data = classic_options(lowers, upper, None)?;
    if data.len() > MAX_CLASSIC_OPTIONS {
        // By handle each takes no more than some twenty bytes.
        data = classic_options(lowers, upper, Some(&mut handles))?;
    }
    if data.len() > MAX_CLASSIC_OPTIONS {
        return Err(Error::OptionsTooLong {
            layers: lowers.len(),
            bytes: data.len(),
            limit: MAX_CLASSIC_OPTIONS,
        });
    }
    let data = CString::new(data.into_vec())
        .map_err(|_| failed(lowers, target, "zero byte in a path".into(), Errno::INVAL))?;
    let flags = if upper.is_some() { MountFlags::empty() } else { MountFlags::RDONLY };
    rustix::mount::mount("overlay", target, "overlay", flags, data.as_c_str())
        .map_err(|errno| failed(lowers, target, String::new(), errno))
}

fn classic_options(
    lowers: &[PathBuf],
    upper: Upper<'_>,
    mut handles: Option<&mut Vec<OwnedFd>>,
) -> Result<OsString> {
    let mut name = |path: &Path| -> Result<OsString> {
        match &mut handles {
            None => Ok(escaped(path)),
            Some(handles) => by_handle(path, handles).map_err(|errno| Error::io("open", path, errno)),
        }
    };
    let mut data = OsString::from("lowerdir=");
    for (index, lower) in lowers.iter().rev().enumerate() {
        if index > 0 {
            data.push(":");
        }
        data.push(name(lower)?);
    }
    if let Some((upper, work)) = upper {
        data.push(",upperdir=");
        data.push(name(upper)?);
        data.push(",workdir=");
        data.push(name(work)?);
    }
    for option in options(upper.is_some()) {
        data.push(",");
        data.push(option);
    }
    Ok(data)
}

/// Everything that would make a difference directory more than a plain one is off. In a user namespace the
/// overlay's own attributes are in `user.`; that option turns `redirect_dir` and `metacopy` off by itself and
/// refuses to have them named. `volatile`: without it every unmount syncs the whole filesystem of the upper
/// directory; what survives a crash is decided elsewhere.
fn options(writable: bool) -> &'static [&'static str] {
    match (in_user_namespace(), writable) {
        (false, true) => &["index=off", "redirect_dir=off", "metacopy=off", "volatile"],
        (false, false) => &["index=off", "redirect_dir=off", "metacopy=off"],
        (true, true) => &["index=off", "userxattr", "volatile"],
        (true, false) => &["index=off", "userxattr"],
    }
}

/// Whether this process runs in a user namespace other than the machine's first.
pub(crate) fn in_user_namespace() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        std::fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| {
            let fields: Vec<&str> = map.split_whitespace().collect();
            fields != ["0", "0", "4294967295"]
        })
    })
}

/// The mark by which a volatile overlay refuses to be mounted a second time: data may be lost after a crash.
/// The boot that could have lost it is ruled out by the catalogue before anything is mounted.
fn forget_volatile(work: &Path) -> Result<()> {
    let inner = work.join("work");
    if !inner.join("incompat").exists() {
        return Ok(());
    }
    kiln_rootdir::Root::open(&inner)
        .and_then(|root| root.remove_all("incompat"))
        .map_err(|source| Error::root("reset the work directory", &inner, source))
}

fn name_of<'a>(path: &'a Path, handles: &mut Vec<OwnedFd>) -> rustix::io::Result<Cow<'a, OsStr>> {
    if path.as_os_str().len() <= MAX_FSCONFIG_STRING {
        return Ok(Cow::Borrowed(path.as_os_str()));
    }
    by_handle(path, handles).map(Cow::Owned)
}

fn by_handle(path: &Path, handles: &mut Vec<OwnedFd>) -> rustix::io::Result<OsString> {
    let handle = open_path(path)?;
    let name = OsString::from(format!("/proc/self/fd/{}", handle.as_raw_fd()));
    handles.push(handle);
    Ok(name)
}

/// In `lowerdir=a:b,…` these three bytes have a meaning.
fn escaped(path: &Path) -> OsString {
    let mut text = Vec::with_capacity(path.as_os_str().len());
    for byte in path.as_os_str().as_bytes() {
        if matches!(byte, b'\\' | b':' | b',') {
            text.push(b'\\');
        }
        text.push(*byte);
    }
    OsString::from_vec(text)
}

/// What the kernel noted while the overlay was configured; every read gives one line.
fn read_log(context: impl AsFd) -> String {
    let mut lines = Vec::new();
    let mut buffer = [0u8; 1024];
    while let Ok(length) = rustix::io::read(&context, &mut buffer) {
        if length == 0 || lines.len() == 8 {
            break;
        }
        lines.push(String::from_utf8_lossy(&buffer[..length]).trim().to_owned());
    }
    lines.join("; ")
}

fn failed(lowers: &[PathBuf], target: &Path, kernel_log: String, errno: Errno) -> Error {
    let what = format!("an overlay of {} layers", lowers.len());
    Error::Mount { what, target: target.to_owned(), kernel_log, source: errno.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classic_options_are_escaped_and_top_first() {
        let lowers = [PathBuf::from("/a:1"), PathBuf::from("/b,2")];
        let got = classic_options(&lowers, None, None).unwrap();
        let got = got.to_str().unwrap();
        assert!(got.starts_with("lowerdir=/b\\,2:/a\\:1,index=off"), "{got}");
    }

    #[test]
    fn the_classic_call_says_when_there_are_too_many_layers() {
        let dir = tempfile::tempdir().unwrap();
        let lowers = vec![dir.path().to_owned(); 400];
        let error = classic(&lowers, None, dir.path()).unwrap_err();
        assert!(matches!(error, Error::OptionsTooLong { layers: 400, .. }), "{error}");
    }
}
