use std::collections::BTreeMap;

use kiln_rootdir::{Kind, Metadata, Time};

/// A file mode with the bits of Go's `os.FileMode`, as the protocol has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GoMode(pub u32);

impl GoMode {
    /// A directory.
    pub const DIR: u32 = 1 << 31;
    /// A symbolic link.
    pub const SYMLINK: u32 = 1 << 27;
    /// A device; a block device unless [`CHAR_DEVICE`](Self::CHAR_DEVICE) is set too.
    pub const DEVICE: u32 = 1 << 26;
    /// A named pipe.
    pub const FIFO: u32 = 1 << 25;
    /// A unix socket. Senders clear it.
    pub const SOCKET: u32 = 1 << 24;
    /// Set-uid.
    pub const SETUID: u32 = 1 << 23;
    /// Set-gid.
    pub const SETGID: u32 = 1 << 22;
    /// With [`DEVICE`](Self::DEVICE): a character device.
    pub const CHAR_DEVICE: u32 = 1 << 21;
    /// Sticky.
    pub const STICKY: u32 = 1 << 20;
    /// A file of unknown kind.
    pub const IRREGULAR: u32 = 1 << 19;
    const TYPE: u32 = Self::DIR
        | Self::SYMLINK
        | Self::DEVICE
        | Self::FIFO
        | Self::SOCKET
        | Self::CHAR_DEVICE
        | Self::IRREGULAR;

    /// Makes a mode of a kind and the low 12 bits of a POSIX mode.
    pub fn new(kind: Kind, posix: u32) -> Self {
        let mut bits = posix & 0o777;
        for (from, to) in [(0o4000, Self::SETUID), (0o2000, Self::SETGID), (0o1000, Self::STICKY)] {
            if posix & from != 0 {
                bits |= to;
            }
        }
        bits |= match kind {
            Kind::File => 0,
            Kind::Dir => Self::DIR,
            Kind::Symlink => Self::SYMLINK,
            Kind::Fifo => Self::FIFO,
            Kind::CharDevice => Self::DEVICE | Self::CHAR_DEVICE,
            Kind::BlockDevice => Self::DEVICE,
            Kind::Socket => Self::SOCKET,
            Kind::Unknown => Self::IRREGULAR,
        };
        Self(bits)
    }

    /// The kind of file; `None` if the type bits contradict each other.
    pub fn kind(self) -> Option<Kind> {
        match self.0 & Self::TYPE {
            0 => Some(Kind::File),
            Self::DIR => Some(Kind::Dir),
            Self::SYMLINK => Some(Kind::Symlink),
            Self::FIFO => Some(Kind::Fifo),
            Self::SOCKET => Some(Kind::Socket),
            Self::DEVICE => Some(Kind::BlockDevice),
            bits if bits == Self::DEVICE | Self::CHAR_DEVICE => Some(Kind::CharDevice),
            _ => None,
        }
    }

    /// The low 12 bits of the POSIX mode: permissions, set-id bits and sticky.
    pub fn posix(self) -> u32 {
        let mut bits = self.0 & 0o777;
        for (from, to) in [(Self::SETUID, 0o4000), (Self::SETGID, 0o2000), (Self::STICKY, 0o1000)] {
            if self.0 & from != 0 {
                bits |= to;
            }
        }
        bits
    }

    /// Whether it is a directory.
    pub fn is_dir(self) -> bool {
        self.kind() == Some(Kind::Dir)
    }

    /// Whether it is a regular file, the only kind with content.
    pub fn is_file(self) -> bool {
        self.kind() == Some(Kind::File)
    }
}

/// What the protocol says about one entry of a tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stat {
    /// Relative to the root, clean, with `/` between components.
    pub path: String,
    /// Kind and permissions.
    pub mode: GoMode,
    /// Owner.
    pub uid: u32,
    /// Owning group.
    pub gid: u32,
    /// Bytes of content, or of a link's target; 0 for directories.
    pub size: i64,
    /// Modification time in nanoseconds since 1970, UTC.
    pub mod_time: i64,
    /// Target of a symbolic link, or of a hard link the earlier path that carries the data.
    pub linkname: String,
    /// Major number of a device.
    pub dev_major: i64,
    /// Minor number of a device.
    pub dev_minor: i64,
    /// Extended attributes.
    pub xattrs: BTreeMap<String, Vec<u8>>,
}

impl Stat {
    /// Makes a stat of what the kernel says, without link target and extended attributes.
    pub fn from_metadata(path: String, metadata: &Metadata) -> Self {
        // A socket is sent as an ordinary file: the reference clears the bit.
        let kind = if metadata.kind == Kind::Socket { Kind::File } else { metadata.kind };
        Self {
            path,
            mode: GoMode::new(kind, metadata.mode),
            uid: metadata.uid,
            gid: metadata.gid,
            size: if metadata.is_dir() { 0 } else { i64::try_from(metadata.size).unwrap_or(i64::MAX) },
            mod_time: nanoseconds(metadata.mtime),
            linkname: String::new(),
            dev_major: i64::from(metadata.rdev.0),
            dev_minor: i64::from(metadata.rdev.1),
            xattrs: BTreeMap::new(),
        }
    }

    /// Whether it is a later name of a file whose data came with an earlier one.
    pub fn is_hard_link(&self) -> bool {
        self.mode.is_file() && !self.linkname.is_empty()
    }

    /// Whether the entry has content of its own that can be asked for.
    pub fn has_content(&self) -> bool {
        self.mode.is_file() && self.linkname.is_empty()
    }

    /// The modification time as a file keeps it.
    pub fn time(&self) -> Time {
        let nanoseconds = self.mod_time.rem_euclid(1_000_000_000);
        Time {
            seconds: self.mod_time.div_euclid(1_000_000_000),
            nanoseconds: u32::try_from(nanoseconds).unwrap_or_default(),
        }
    }
}

fn nanoseconds(time: Time) -> i64 {
    time.seconds.saturating_mul(1_000_000_000).saturating_add(i64::from(time.nanoseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(kind: Kind, posix: u32, want: u32) {
        let mode = GoMode::new(kind, posix);
        assert_eq!(mode.0, want);
        assert_eq!((mode.kind(), mode.posix()), (Some(kind), posix));
    }

    #[test]
    fn modes() {
        check(Kind::File, 0o644, 0o644);
        check(Kind::Dir, 0o755, 2_147_484_141);
        check(Kind::Symlink, 0o777, 134_218_239);
        check(Kind::Fifo, 0o600, 33_554_816);
        check(Kind::File, 0o2755, 4_194_797);
        check(Kind::File, 0o4755, 8_389_101);
        check(Kind::Dir, 0o1777, 2_148_532_735);
        check(Kind::CharDevice, 0o600, (1 << 26) | (1 << 21) | 0o600);
        check(Kind::BlockDevice, 0o600, (1 << 26) | 0o600);
        assert_eq!(GoMode(GoMode::DIR | GoMode::SYMLINK).kind(), None);
        assert_eq!(GoMode(GoMode::CHAR_DEVICE).kind(), None);
    }

    #[test]
    fn times_before_1970() {
        let stat = Stat { mod_time: -1, ..Stat::default() };
        assert_eq!(stat.time(), Time { seconds: -1, nanoseconds: 999_999_999 });
        assert_eq!(nanoseconds(stat.time()), -1);
    }
}
