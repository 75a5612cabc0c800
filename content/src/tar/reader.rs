//! Reading entries.

use std::io::{self, Read};

use crate::tar::TarError;
use crate::tar::block::{BLOCK, Block, Field, is_ascii, padding};
use crate::tar::header::{EntryType, Formats, Header, Time};
use crate::tar::pax::{self, Records};
use crate::tar::sparse::{self, Sparse};
use crate::tar::writer::SPECIAL_MAX;

/// How many headers in a row may only say something about the next entry.
const SPECIALS_MAX: usize = 64;

/// Reads a tar: [`Reader::next_entry`], then (through [`Read`]) the entry's data as far as it is wanted.
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    /// Bytes of the entry's data that the stream still holds.
    left: u64,
    padding: usize,
    /// Where the data goes, for a file with holes.
    sparse: Option<Sparse>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Magic {
    V7,
    Star,
    Posix,
    Gnu,
}

impl<R: Read> Reader<R> {
    /// Starts reading.
    pub fn new(input: R) -> Self {
        Self { input, left: 0, padding: 0, sparse: None }
    }

    /// Returns the inner reader, which stands behind the last block that was read.
    pub fn into_inner(self) -> R {
        self.input
    }

    /// Skips the rest of the current entry and reads the next one's header; `None` at the end of the tar.
    ///
    /// Global PAX records come as an entry of their own.
    ///
    /// # Errors
    /// [`TarError::Header`] for what is no tar; those of the inner reader.
    pub fn next_entry(&mut self) -> Result<Option<Header>, TarError> {
        let mut formats = Formats::ALL;
        let mut records: Option<Records> = None;
        let mut long_name = Vec::new();
        let mut long_link = Vec::new();
        for _ in 0..SPECIALS_MAX {
            self.skip_rest()?;
            let Some(block) = self.block()? else { return Ok(None) };
            let mut header = parse(&block)?;
            self.set_data(&header)?;
            formats = formats.and(header.format);
            match header.kind {
                EntryType::PAX | EntryType::GLOBAL => {
                    formats = formats.and(Formats::PAX);
                    let found = pax::parse(&self.special()?)?;
                    if header.kind == EntryType::GLOBAL {
                        return Ok(Some(Header {
                            name: header.name,
                            kind: header.kind,
                            pax: found,
                            format: formats,
                            ..Header::default()
                        }));
                    }
                    records = Some(found);
                }
                EntryType::GNU_LONG_NAME | EntryType::GNU_LONG_LINK => {
                    formats = formats.and(Formats::GNU);
                    let data = self.special()?;
                    let text = crate::tar::block::until_nul(&data).to_vec();
                    if header.kind == EntryType::GNU_LONG_NAME { long_name = text } else { long_link = text }
                }
                _ => {
                    pax::merge(&mut header, records.take().unwrap_or_default())?;
                    if !long_name.is_empty() {
                        header.name = long_name;
                    }
                    if !long_link.is_empty() {
                        header.link_name = long_link;
                    }
                    if header.kind.0 == 0 {
                        let is_dir = header.name.ends_with(b"/");
                        header.kind = if is_dir { EntryType::DIR } else { EntryType::FILE };
                    }
                    self.set_data(&header)?;
                    self.set_sparse(&mut header, &block)?;
                    if formats.has(Formats::USTAR) && formats.has(Formats::PAX) {
                        formats = formats.and(Formats::USTAR);
                    }
                    header.format = formats;
                    return Ok(Some(header));
                }
            }
        }
        Err(TarError::Header("too many extension headers"))
    }

    fn set_data(&mut self, header: &Header) -> Result<(), TarError> {
        let size = if header.kind.is_header_only() { 0 } else { header.size };
        self.left = u64::try_from(size).map_err(|_| TarError::Header("negative size"))?;
        self.padding = padding(self.left);
        self.sparse = None;
        Ok(())
    }

    fn set_sparse(&mut self, header: &mut Header, block: &Block) -> Result<(), TarError> {
        let regions = if header.kind == EntryType::GNU_SPARSE {
            if magic(block) != Some(Magic::Gnu) {
                return Err(TarError::Header("sparse file in another format than GNU"));
            }
            header.size = block.number(Field::GNU_REAL_SIZE)?;
            Some(sparse::old_gnu(&mut self.input, block)?)
        } else {
            let mut data = Data { input: &mut self.input, left: &mut self.left };
            sparse::from_records(header, &mut data)?
        };
        if let Some(regions) = regions {
            if header.kind.is_header_only() {
                return Err(TarError::Header("sparse entry without data"));
            }
            self.sparse = Some(Sparse::new(regions, header.size)?);
        }
        Ok(())
    }

    fn skip_rest(&mut self) -> Result<(), TarError> {
        let left = std::mem::take(&mut self.left);
        let skipped = io::copy(&mut self.input.by_ref().take(left), &mut io::sink())?;
        if skipped < left {
            return Err(truncated());
        }
        // Some writers end the stream without the last padding.
        let padding = std::mem::take(&mut self.padding) as u64;
        io::copy(&mut self.input.by_ref().take(padding), &mut io::sink())?;
        Ok(())
    }

    /// Reads a header block; `None` at the end, which is marked by two zero blocks or is just there.
    fn block(&mut self) -> Result<Option<Block>, TarError> {
        let Some(block) = read_block(&mut self.input)? else { return Ok(None) };
        if !block.is_zero() {
            return Ok(Some(block));
        }
        match read_block(&mut self.input)? {
            None => Ok(None),
            Some(second) if second.is_zero() => Ok(None),
            Some(_) => Err(TarError::Header("zero block within the archive")),
        }
    }

    /// Reads the whole data of an extension header.
    fn special(&mut self) -> Result<Vec<u8>, TarError> {
        if self.left > SPECIAL_MAX as u64 {
            return Err(TarError::Header("extension header too long"));
        }
        let mut data = Vec::new();
        self.read_to_end(&mut data)?;
        Ok(data)
    }
}

impl<R: Read> Read for Reader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut data = Data { input: &mut self.input, left: &mut self.left };
        match &mut self.sparse {
            Some(sparse) => sparse.read(&mut data, buffer),
            None => data.read(buffer),
        }
    }
}

/// The data of one entry as the stream holds it; its early end is an error.
struct Data<'a, R> {
    input: &'a mut R,
    left: &'a mut u64,
}

impl<R: Read> Read for Data<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(*self.left).unwrap_or(usize::MAX).min(buffer.len());
        if wanted == 0 {
            return Ok(0);
        }
        let count = self.input.read(buffer.get_mut(..wanted).unwrap_or_default())?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        *self.left -= count as u64;
        Ok(count)
    }
}

fn truncated() -> TarError {
    TarError::Io(io::ErrorKind::UnexpectedEof.into())
}

/// Reads a block; `None` when the stream ends before it.
pub(super) fn read_block(input: &mut impl Read) -> Result<Option<Block>, TarError> {
    let mut block = Block::zero();
    let mut filled = 0;
    while let Some(rest) = block.0.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match input.read(rest) {
            Ok(0) if filled == 0 => return Ok(None),
            Ok(0) => return Err(truncated()),
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    debug_assert_eq!(filled, BLOCK);
    Ok(Some(block))
}

fn magic(block: &Block) -> Option<Magic> {
    if !block.checksum_matches() {
        return None;
    }
    Some(match (block.get(Field::MAGIC), block.get(Field::VERSION)) {
        (b"ustar\0", _) if block.get(Field::STAR_TRAILER) == b"tar\0" => Magic::Star,
        (b"ustar\0", _) => Magic::Posix,
        (b"ustar ", b" \0") => Magic::Gnu,
        _ => Magic::V7,
    })
}

fn parse(block: &Block) -> Result<Header, TarError> {
    let magic = magic(block).ok_or(TarError::Header("wrong checksum"))?;
    let mut header = Header {
        name: block.text(Field::NAME),
        link_name: block.text(Field::LINK_NAME),
        kind: EntryType(block.get(Field::KIND).first().copied().unwrap_or_default()),
        size: block.number(Field::SIZE)?,
        mode: block.number(Field::MODE)?,
        uid: block.number(Field::UID)?,
        gid: block.number(Field::GID)?,
        mtime: Some(Time::from_seconds(block.number(Field::MTIME)?)),
        ..Header::default()
    };
    if magic == Magic::V7 {
        return Ok(header);
    }
    header.user_name = block.text(Field::USER_NAME);
    header.group_name = block.text(Field::GROUP_NAME);
    header.dev_major = block.number(Field::DEV_MAJOR)?;
    header.dev_minor = block.number(Field::DEV_MINOR)?;
    let seconds = |field| block.number(field).map(|seconds| Some(Time::from_seconds(seconds)));
    let mut prefix = Vec::new();
    match magic {
        Magic::V7 => {}
        Magic::Posix => {
            prefix = block.text(Field::PREFIX);
            if is_strict(block) {
                header.format = Formats::USTAR.or(Formats::PAX);
            }
        }
        Magic::Star => {
            prefix = block.text(Field::STAR_PREFIX);
            header.atime = seconds(Field::STAR_ATIME)?;
            header.ctime = seconds(Field::STAR_CTIME)?;
        }
        Magic::Gnu => {
            let optional = |field| match block.get(field).first() {
                Some(0) | None => Ok(None),
                Some(_) => seconds(field),
            };
            match (optional(Field::GNU_ATIME), optional(Field::GNU_CTIME)) {
                (Ok(atime), Ok(ctime)) => {
                    header.atime = atime;
                    header.ctime = ctime;
                    header.format = Formats::GNU;
                }
                // Writers of Go before 1.8 put a prefix where these times are.
                _ => {
                    prefix = Some(block.text(Field::PREFIX)).filter(|text| is_ascii(text)).unwrap_or_default()
                }
            }
        }
    }
    if !prefix.is_empty() {
        prefix.push(b'/');
        prefix.append(&mut header.name);
        header.name = prefix;
    }
    Ok(header)
}

/// Whether a block keeps to what USTAR allows and not only to what readers take.
fn is_strict(block: &Block) -> bool {
    let numbers =
        [Field::SIZE, Field::MODE, Field::UID, Field::GID, Field::MTIME, Field::DEV_MAJOR, Field::DEV_MINOR];
    block.0.iter().all(u8::is_ascii) && numbers.iter().all(|field| block.get(*field).last() == Some(&0))
}
