//! One entry's metadata.

use std::collections::BTreeMap;

/// A point in time; the nanoseconds count upwards also before 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Time {
    /// Seconds since 1970.
    pub seconds: i64,
    /// Nanoseconds after that second, below 10⁹.
    pub nanoseconds: u32,
}

impl Time {
    /// Makes a whole second.
    pub const fn from_seconds(seconds: i64) -> Self {
        Self { seconds, nanoseconds: 0 }
    }
}

/// What kind of entry a header describes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct EntryType(pub u8);

impl EntryType {
    /// Regular file.
    pub const FILE: Self = Self(b'0');
    /// Further name of an earlier entry.
    pub const HARD_LINK: Self = Self(b'1');
    /// Symbolic link.
    pub const SYMLINK: Self = Self(b'2');
    /// Character device.
    pub const CHAR: Self = Self(b'3');
    /// Block device.
    pub const BLOCK: Self = Self(b'4');
    /// Directory.
    pub const DIR: Self = Self(b'5');
    /// Named pipe.
    pub const FIFO: Self = Self(b'6');
    /// PAX records for the next entry.
    pub(super) const PAX: Self = Self(b'x');
    /// PAX records for all following entries.
    pub const GLOBAL: Self = Self(b'g');
    /// The name of the next entry.
    pub(super) const GNU_LONG_NAME: Self = Self(b'L');
    /// The link target of the next entry.
    pub(super) const GNU_LONG_LINK: Self = Self(b'K');
    /// File with holes in the old GNU form.
    pub const GNU_SPARSE: Self = Self(b'S');

    /// Whether the entry has no data whatever its size field says.
    pub fn is_header_only(self) -> bool {
        matches!(self, Self::HARD_LINK | Self::SYMLINK | Self::CHAR | Self::BLOCK | Self::DIR | Self::FIFO)
    }
}

/// A set of tar formats; none means "not known" when reading and "any" when writing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Formats(u8);

impl Formats {
    /// No format.
    pub const NONE: Self = Self(0);
    /// POSIX 1988.
    pub const USTAR: Self = Self(1);
    /// POSIX 2001.
    pub const PAX: Self = Self(2);
    /// GNU.
    pub const GNU: Self = Self(4);
    pub(super) const ALL: Self = Self(7);

    /// Whether the sets share a format.
    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    pub(super) fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    pub(super) fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(super) fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

/// One entry's metadata. Names are bytes, as on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Path; that of a directory ends in `/`.
    pub name: Vec<u8>,
    /// Target of a link.
    pub link_name: Vec<u8>,
    /// Kind of entry.
    pub kind: EntryType,
    /// Bytes of data.
    pub size: i64,
    /// Permission, set-id and sticky bits.
    pub mode: i64,
    /// Owner.
    pub uid: i64,
    /// Group.
    pub gid: i64,
    /// Name of the owner.
    pub user_name: Vec<u8>,
    /// Name of the group.
    pub group_name: Vec<u8>,
    /// Modification time.
    pub mtime: Option<Time>,
    /// Access time.
    pub atime: Option<Time>,
    /// Change time.
    pub ctime: Option<Time>,
    /// Major number of a device.
    pub dev_major: i64,
    /// Minor number of a device.
    pub dev_minor: i64,
    /// PAX records, those of the fields above included when read.
    pub pax: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Formats wanted when writing, found when reading.
    pub format: Formats,
}

impl Header {
    /// Iterates over the extended attributes among the PAX records.
    pub fn xattrs(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.pax.iter().filter_map(|(key, value)| {
            key.strip_prefix(super::PAX_XATTR.as_bytes())
                .filter(|name| !name.is_empty())
                .map(|name| (name, value.as_slice()))
        })
    }
}
