//! Tar headers as Go's `archive/tar` reads and writes them.
//!
//! Layers are named by the digest of their tar, so how a header is encoded (which format, which PAX records, what is
//! padded how) is part of the contract with every engine that made or will check the same layer. The rules follow
//! golang/go: src/archive/tar (`Header.allowedFormats`, `Writer.WriteHeader`, `Reader.Next`).

mod block;
mod header;
mod pax;
mod reader;
mod sparse;
mod writer;

pub use self::header::{EntryType, Formats, Header, Time};
pub use self::reader::Reader;
pub use self::writer::{Writer, clean_name};

/// The key prefix of PAX records that hold extended attributes.
pub const PAX_XATTR: &str = "SCHILY.xattr.";

/// Why a tar stream or a header is no good.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TarError {
    /// The stream broke off or the writer refused.
    #[error("tar stream failed")]
    Io(#[from] std::io::Error),
    /// The stream does not follow the format.
    #[error("invalid tar header: {0}")]
    Header(&'static str),
    /// A header cannot be written in any format.
    #[error("tar header cannot be encoded: {0}")]
    Unencodable(&'static str),
}

#[cfg(test)]
mod tests;
