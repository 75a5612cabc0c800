//! What marks deletions in an upper directory.

use std::io;
use std::path::Path;

use kiln_rootdir::{Kind, Metadata, Root};

use crate::error::{Error, Result};

/// A directory that hides everything below it; the second is for mounts made in a user namespace.
const OPAQUE: [&str; 2] = ["trusted.overlay.opaque", "user.overlay.opaque"];
/// A directory that was renamed and gets its lower content from elsewhere.
const REDIRECT: &str = "trusted.overlay.redirect";

pub(super) fn is_whiteout(metadata: &Metadata) -> bool {
    metadata.kind == Kind::CharDevice && metadata.rdev == (0, 0)
}

pub(super) fn is_opaque(root: &Root, path: &Path) -> Result<bool> {
    for name in OPAQUE {
        if root.get_xattr(path, name).map_err(at("read attribute of", path))?.as_deref() == Some(b"y") {
            return Ok(true);
        }
    }
    Ok(false)
}

pub(super) fn is_redirect(root: &Root, path: &Path) -> Result<bool> {
    let value = root.get_xattr(path, REDIRECT).map_err(at("read attribute of", path))?;
    Ok(value.is_some_and(|value| !value.is_empty()))
}

pub(super) fn make_whiteout(root: &Root, path: &Path) -> kiln_rootdir::Result<()> {
    root.mknod(path, Kind::CharDevice, 0, (0, 0))
}

pub(super) fn make_opaque(root: &Root, path: &Path) -> kiln_rootdir::Result<()> {
    let [trusted, user] = OPAQUE;
    match root.set_xattr(path, trusted, b"y") {
        // Only the initial user namespace may set trusted attributes.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => root.set_xattr(path, user, b"y"),
        result => result,
    }
}

/// Makes our error of one of `kiln-rootdir`.
pub(super) fn at(action: &'static str, path: &Path) -> impl FnOnce(kiln_rootdir::Error) -> Error {
    move |error| Error::Io { action, path: path.to_owned(), source: error.into() }
}
