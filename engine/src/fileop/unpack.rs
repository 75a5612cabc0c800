use kiln_rootdir::Root;

use super::{Owner, Result};

/// Extracts the file `path` of `src` into `dest_path` of `dest`, if it is an archive; `false` if it is none.
pub(super) fn unpack(
    _src: &Root,
    _path: &str,
    _dest: &Root,
    _dest_path: &str,
    _owner: Option<Owner>,
) -> Result<bool> {
    Ok(false)
}
