//! Kinds of compression and their names.

use std::fmt;
use std::str::FromStr;

use crate::error::Error;
use crate::media_type;

/// How a blob's bytes are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Compression {
    /// Not at all.
    Uncompressed,
    /// gzip.
    Gzip,
    /// zstd.
    Zstd,
}

impl Compression {
    /// How many leading bytes [`Compression::detect`] looks at.
    pub const MAGIC_BYTES: usize = 4;

    /// Tells the compression of a stream from its first bytes.
    pub fn detect(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, 0x08, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            // A skippable frame may come first.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::Uncompressed,
        }
    }

    /// Tells the compression of a layer from its media type; `None` when it is no layer type.
    pub fn of_media_type(media_type: &str) -> Option<Self> {
        if !media_type::is_layer(media_type) {
            return None;
        }
        // The foreign types contain further dots, so only the end decides.
        Some(match media_type.rsplit(['+', '.']).next() {
            Some("gzip") => Self::Gzip,
            Some("zstd") => Self::Zstd,
            _ => Self::Uncompressed,
        })
    }

    /// Returns the media type of a layer, OCI or Docker.
    pub fn layer_media_type(self, oci: bool) -> &'static str {
        match (self, oci) {
            (Self::Uncompressed, true) => media_type::OCI_LAYER,
            (Self::Gzip, true) => media_type::OCI_LAYER_GZIP,
            (Self::Zstd, true) => media_type::OCI_LAYER_ZSTD,
            (Self::Uncompressed, false) => media_type::DOCKER_LAYER,
            (Self::Gzip, false) => media_type::DOCKER_LAYER_GZIP,
            (Self::Zstd, false) => media_type::DOCKER_LAYER_ZSTD,
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Uncompressed => "uncompressed",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        })
    }
}

impl FromStr for Compression {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "uncompressed" => Ok(Self::Uncompressed),
            "gzip" => Ok(Self::Gzip),
            "zstd" => Ok(Self::Zstd),
            other => Err(Error::UnknownCompression(other.to_owned())),
        }
    }
}
