//! The digest of one entry: its metadata, then the bytes of a file.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

use kiln_digest::{Digest, Hasher};
use kiln_rootdir::{Kind, Metadata, Root};

use crate::Result;

/// What kind of entry a header describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// Metadata of an entry as far as it counts for its digest. Times do not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContentHeader {
    /// What it is.
    pub kind: EntryKind,
    /// Permission bits with set-uid, set-gid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Owning group.
    pub gid: u32,
    /// Bytes of a regular file.
    pub size: u64,
    /// Target of a symbolic link.
    pub link: Vec<u8>,
    /// Major and minor number of a device.
    pub device: (u64, u64),
    /// Extended attributes, in any order.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl ContentHeader {
    /// A hasher that has taken the header. For a regular file, feed it the file's bytes; its digest is the entry's.
    pub fn hasher(&self) -> Hasher {
        let mut hasher = Hasher::new();
        hasher.update(&self.bytes());
        hasher
    }

    /// What is hashed before the bytes of a file.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut field = |name: &str, value: &[u8]| {
            bytes.extend_from_slice(name.as_bytes());
            bytes.extend_from_slice(value);
        };
        let regular = matches!(self.kind, EntryKind::File | EntryKind::Socket);
        let link = self.kind == EntryKind::Symlink;
        let mode = if link { 0o777 } else { self.mode & 0o7777 };
        let device = if matches!(self.kind, EntryKind::CharDevice | EntryKind::BlockDevice) {
            self.device
        } else {
            (0, 0)
        };
        field("name", b"");
        field("mode", mode.to_string().as_bytes());
        field("uid", self.uid.to_string().as_bytes());
        field("gid", self.gid.to_string().as_bytes());
        field("size", if regular { self.size } else { 0 }.to_string().as_bytes());
        field("typeflag", self.type_flag());
        field("linkname", if link { &self.link } else { b"" });
        field("uname", b"");
        field("gname", b"");
        field("devmajor", device.0.to_string().as_bytes());
        field("devminor", device.1.to_string().as_bytes());
        let mut xattrs: Vec<_> = self.xattrs.iter().filter(|(name, _)| counts(name)).collect();
        xattrs.sort();
        for (name, value) in xattrs {
            bytes.extend_from_slice(name);
            bytes.extend_from_slice(value);
        }
        bytes
    }

    fn type_flag(&self) -> &'static [u8] {
        match self.kind {
            EntryKind::File | EntryKind::Socket => b"0",
            EntryKind::Symlink => b"2",
            EntryKind::CharDevice => b"3",
            EntryKind::BlockDevice => b"4",
            EntryKind::Dir => b"5",
            EntryKind::Fifo => b"6",
        }
    }

    /// The digest of an entry without bytes of its own: anything but a regular file with content.
    pub fn digest(&self) -> Digest {
        self.hasher().finish()
    }

    /// Reads the header of an entry. The numbers of devices on a walked tree are zero in the reference.
    pub(super) fn read(root: &Root, path: &OsStr, metadata: &Metadata, real_devices: bool) -> Result<Self> {
        let kind = match metadata.kind {
            Kind::File | Kind::Unknown => EntryKind::File,
            Kind::Dir => EntryKind::Dir,
            Kind::Symlink => EntryKind::Symlink,
            Kind::CharDevice => EntryKind::CharDevice,
            Kind::BlockDevice => EntryKind::BlockDevice,
            Kind::Fifo => EntryKind::Fifo,
            Kind::Socket => EntryKind::Socket,
        };
        let link = match kind {
            EntryKind::Symlink => {
                root.read_link(path).map_err(super::tree::io)?.into_os_string().as_bytes().to_vec()
            }
            _ => Vec::new(),
        };
        let mut xattrs = Vec::new();
        for name in root.list_xattrs(path).map_err(super::tree::io)? {
            if counts(name.as_bytes())
                && let Some(value) = root.get_xattr(path, &name).map_err(super::tree::io)?
            {
                xattrs.push((name.as_bytes().to_vec(), value));
            }
        }
        let device = if real_devices { (metadata.rdev.0.into(), metadata.rdev.1.into()) } else { (0, 0) };
        Ok(Self {
            kind,
            mode: metadata.mode,
            uid: metadata.uid,
            gid: metadata.gid,
            size: metadata.size,
            link,
            device,
            xattrs,
        })
    }
}

/// Attributes of the machine that the tree lies on do not count. Those of overlayfs show where one layer is seen
/// through a bind mount.
fn counts(xattr: &[u8]) -> bool {
    if xattr.starts_with(b"security.") {
        return xattr == b"security.capability";
    }
    !xattr.starts_with(b"system.")
        && !xattr.starts_with(b"trusted.overlay.")
        && !xattr.starts_with(b"user.overlay.")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(kind: EntryKind, mode: u32) -> ContentHeader {
        ContentHeader {
            kind,
            mode,
            uid: 0,
            gid: 0,
            size: 0,
            link: Vec::new(),
            device: (0, 0),
            xattrs: Vec::new(),
        }
    }

    fn check(header: &ContentHeader, content: &str, want: &str) {
        let mut hasher = header.hasher();
        hasher.update(content.as_bytes());
        assert_eq!(hasher.finish().hex(), want);
    }

    #[test]
    fn headers_are_those_of_the_reference() {
        let file = ContentHeader { uid: 1, gid: 2, size: 4, ..header(EntryKind::File, 0o644) };
        check(&file, "data", "361186de53fb6206f6f1fcff589b597967bdb453b52852bb1caf4b316df10b22");
        let empty = header(EntryKind::File, 0o600);
        check(&empty, "", "2bac37a1b15ce2475f45da359bd47f5dad0aea6b4ecdff8b774ee093757e1a28");
        let dir = header(EntryKind::Dir, 0o755);
        check(&dir, "", "1a2805521573cb10d73bcd51d16bfa84c8f461d68599740e35484b90b2ab1bab");
        let link = ContentHeader { link: b"bar".to_vec(), ..header(EntryKind::Symlink, 0o700) };
        check(&link, "", "724afbd90bc3842430dd1a704131fe58a99eaec8a0667f055f23655763f29d2c");
        let device = ContentHeader { device: (1, 3), ..header(EntryKind::CharDevice, 0o600) };
        check(&device, "", "85bd76951360c88286c3180c022599ad52bc3dfbbd2779d887da8490374495cf");
        check(
            &header(EntryKind::Fifo, 0o600),
            "",
            "df86591a50f2862155e76a1d53cdad72c7f3f6c13413e4dbfb6410e347bd9ff9",
        );
    }
}
