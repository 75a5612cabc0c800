//! What marks deletions in a difference directory.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use kiln_rootdir::{Kind, Metadata, Root};

/// Names of overlayfs' own attributes begin with these; the second is for mounts made in a user namespace.
const OVERLAY: [&str; 2] = ["trusted.overlay.", "user.overlay."];
/// A directory that hides everything below it.
const OPAQUE: [&str; 2] = ["trusted.overlay.opaque", "user.overlay.opaque"];

pub(crate) fn is_whiteout(metadata: &Metadata) -> bool {
    metadata.kind == Kind::CharDevice && metadata.rdev == (0, 0)
}

pub(crate) fn make_whiteout(root: &Root, path: &Path) -> kiln_rootdir::Result<()> {
    root.mknod(path, Kind::CharDevice, 0, (0, 0))
}

pub(crate) fn is_opaque(root: &Root, path: &Path) -> kiln_rootdir::Result<bool> {
    for name in OPAQUE {
        if root.get_xattr(path, name)?.as_deref() == Some(b"y") {
            return Ok(true);
        }
    }
    Ok(false)
}

pub(crate) fn make_opaque(root: &Root, path: &Path) -> kiln_rootdir::Result<()> {
    let [trusted, user] = OPAQUE;
    match root.set_xattr(path, trusted, b"y") {
        // Only the first user namespace may set trusted attributes.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => root.set_xattr(path, user, b"y"),
        outcome => outcome,
    }
}

/// The attributes of an entry, those of overlayfs left out.
pub(crate) fn attributes(root: &Root, path: &Path) -> kiln_rootdir::Result<BTreeMap<OsString, Vec<u8>>> {
    let own = |name: &OsStr| OVERLAY.iter().any(|prefix| name.as_bytes().starts_with(prefix.as_bytes()));
    let mut found = BTreeMap::new();
    for name in root.list_xattrs(path)? {
        if !own(&name)
            && let Some(value) = root.get_xattr(path, &name)?
        {
            found.insert(name, value);
        }
    }
    Ok(found)
}
