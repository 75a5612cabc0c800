//! A layer tar with its times brought down to an epoch.

use std::io::{self, BufReader, BufWriter, Read, Write};

use kiln_digest::HashingWriter;

use crate::error::{Error, Result};
use crate::layer::diff::DiffInfo;
use crate::tar::{Reader, TarError, Time, Writer};

const BUFFER: usize = 128 * 1024;

/// Copies the tar `from` to `out`; times after `epoch` (seconds since 1970) become `epoch`.
///
/// Reads `from` to its very end, beyond the end of the tar.
///
/// # Errors
/// [`Error::InvalidLayer`] when `from` is no tar; those of `out`.
pub fn rewrite_times(from: impl Read, out: impl Write, epoch: i64) -> Result<DiffInfo> {
    let mut reader = Reader::new(BufReader::with_capacity(BUFFER, from));
    let mut writer = Writer::new(BufWriter::with_capacity(BUFFER, HashingWriter::new(out)));
    let clamp = |time: &mut Option<Time>| {
        if let Some(time) = time.as_mut().filter(|time| **time > Time::from_seconds(epoch)) {
            *time = Time::from_seconds(epoch);
        }
    };
    while let Some(mut header) = reader.next_entry().map_err(invalid)? {
        clamp(&mut header.mtime);
        clamp(&mut header.atime);
        clamp(&mut header.ctime);
        writer.header(&header).map_err(invalid)?;
        io::copy(&mut reader, &mut writer).map_err(Error::stream("rewrite layer"))?;
    }
    io::copy(&mut reader.into_inner(), &mut io::sink()).map_err(Error::stream("rewrite layer"))?;
    let out = writer.finish().map_err(invalid)?;
    let out = out.into_inner().map_err(|error| Error::stream("rewrite layer")(error.into_error()))?;
    let (_, diff_id, size) = out.finish();
    Ok(DiffInfo { diff_id, size })
}

fn invalid(error: TarError) -> Error {
    match error {
        TarError::Io(error) => Error::stream("rewrite layer")(error),
        other => Error::InvalidLayer(other.to_string()),
    }
}
