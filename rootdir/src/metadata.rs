use rustix::fs::{FileType, Stat};

/// What kind of file an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A unix socket.
    Socket,
    /// Something this crate has no name for.
    Unknown,
}

impl Kind {
    pub(crate) fn from_type(kind: FileType) -> Self {
        match kind {
            FileType::RegularFile => Self::File,
            FileType::Directory => Self::Dir,
            FileType::Symlink => Self::Symlink,
            FileType::Fifo => Self::Fifo,
            FileType::CharacterDevice => Self::CharDevice,
            FileType::BlockDevice => Self::BlockDevice,
            FileType::Socket => Self::Socket,
            FileType::Unknown => Self::Unknown,
        }
    }

    pub(crate) fn to_type(self) -> FileType {
        match self {
            Self::File => FileType::RegularFile,
            Self::Dir => FileType::Directory,
            Self::Symlink => FileType::Symlink,
            Self::Fifo => FileType::Fifo,
            Self::CharDevice => FileType::CharacterDevice,
            Self::BlockDevice => FileType::BlockDevice,
            Self::Socket => FileType::Socket,
            Self::Unknown => FileType::Unknown,
        }
    }
}

/// A point in time as a file keeps it, in UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Time {
    /// Seconds since 1970; negative before.
    pub seconds: i64,
    /// Nanoseconds past `seconds`, below 1 000 000 000.
    pub nanoseconds: u32,
}

impl Time {
    pub(crate) fn to_timespec(self) -> rustix::fs::Timespec {
        rustix::fs::Timespec { tv_sec: self.seconds, tv_nsec: i64::from(self.nanoseconds) }
    }
}

/// What the kernel says about a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// Its kind.
    pub kind: Kind,
    /// Permission bits with set-uid, set-gid and sticky: the low 12 bits of the mode.
    pub mode: u32,
    /// The owner.
    pub uid: u32,
    /// The owning group.
    pub gid: u32,
    /// Bytes of content; of a symbolic link, of its target.
    pub size: u64,
    /// 512-byte blocks allocated.
    pub blocks: u64,
    /// When it was last read.
    pub atime: Time,
    /// When its content last changed.
    pub mtime: Time,
    /// When anything of it last changed.
    pub ctime: Time,
    /// Major and minor number of a device; zeros otherwise.
    pub rdev: (u32, u32),
    /// How many names it has.
    pub nlink: u64,
    /// Inode number.
    pub ino: u64,
    /// The device it lies on.
    pub dev: u64,
}

impl Metadata {
    /// Whether it is a regular file.
    pub fn is_file(&self) -> bool {
        self.kind == Kind::File
    }

    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.kind == Kind::Dir
    }

    /// Whether it is a symbolic link.
    pub fn is_symlink(&self) -> bool {
        self.kind == Kind::Symlink
    }

    /// Whether it is a device, by character or by block.
    pub fn is_device(&self) -> bool {
        matches!(self.kind, Kind::CharDevice | Kind::BlockDevice)
    }
}

#[expect(clippy::unnecessary_cast, reason = "the widths of these fields differ between architectures")]
impl From<&Stat> for Metadata {
    fn from(stat: &Stat) -> Self {
        let kind = Kind::from_type(FileType::from_raw_mode(stat.st_mode));
        let is_device = matches!(kind, Kind::CharDevice | Kind::BlockDevice);
        let time = |seconds: i64, nanoseconds: u64| Time {
            seconds,
            nanoseconds: u32::try_from(nanoseconds).unwrap_or_default(),
        };
        Self {
            kind,
            mode: stat.st_mode as u32 & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            size: u64::try_from(stat.st_size).unwrap_or_default(),
            blocks: u64::try_from(stat.st_blocks).unwrap_or_default(),
            atime: time(stat.st_atime as i64, stat.st_atime_nsec as u64),
            mtime: time(stat.st_mtime as i64, stat.st_mtime_nsec as u64),
            ctime: time(stat.st_ctime as i64, stat.st_ctime_nsec as u64),
            rdev: if is_device {
                (rustix::fs::major(stat.st_rdev as u64), rustix::fs::minor(stat.st_rdev as u64))
            } else {
                (0, 0)
            },
            nlink: stat.st_nlink as u64,
            ino: stat.st_ino as u64,
            dev: stat.st_dev as u64,
        }
    }
}
