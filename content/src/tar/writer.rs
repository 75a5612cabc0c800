//! Writing entries.

use std::io::{self, Write};

use crate::tar::TarError;
use crate::tar::block::{
    BLOCK, Block, Field, NAME_LEN, PREFIX_LEN, fits_binary, fits_octal, is_ascii, padding,
};
use crate::tar::header::{EntryType, Formats, Header, Time};
use crate::tar::pax::{self, Records};

/// The longest block of PAX records that readers take.
pub(super) const SPECIAL_MAX: usize = 1 << 20;

/// Writes a tar: for each entry a header, then (through [`Write`]) exactly as many bytes as it announces; then
/// [`Writer::finish`].
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    left: u64,
    padding: usize,
}

impl<W: Write> Writer<W> {
    /// Starts a tar.
    pub fn new(out: W) -> Self {
        Self { out, left: 0, padding: 0 }
    }

    /// Writes an entry's header, in the oldest format that holds it among those it asks for.
    ///
    /// # Errors
    /// [`TarError::Unencodable`] when no format holds it or the previous entry's data is incomplete.
    pub fn header(&mut self, header: &Header) -> Result<(), TarError> {
        self.pad()?;
        let mut rounded;
        let mut header = header;
        if header.format == Formats::NONE {
            // Without a wish for a format, times are cut down to what the oldest can hold.
            rounded = header.clone();
            rounded.mtime = header.mtime.map(round);
            rounded.atime = None;
            rounded.ctime = None;
            header = &rounded;
        }
        let (formats, records) = encodings(header)?;
        if formats.has(Formats::USTAR) {
            self.ustar(header)
        } else if formats.has(Formats::PAX) {
            self.pax(header, &records)
        } else {
            self.gnu(header)
        }
    }

    /// Writes the two zero blocks of the end.
    ///
    /// # Errors
    /// Those of the inner writer; [`TarError::Unencodable`] when the last entry's data is incomplete.
    pub fn finish(mut self) -> Result<W, TarError> {
        self.pad()?;
        self.out.write_all(&[0; 2 * BLOCK])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn pad(&mut self) -> Result<(), TarError> {
        if self.left > 0 {
            return Err(TarError::Unencodable("data of the previous entry is incomplete"));
        }
        let zeros = [0; BLOCK];
        self.out.write_all(zeros.get(..self.padding).unwrap_or_default())?;
        self.padding = 0;
        Ok(())
    }

    fn ustar(&mut self, header: &Header) -> Result<(), TarError> {
        let split = split_name(&header.name);
        let (prefix, name) = split.unwrap_or((&[], &header.name));
        let mut block = common(header, name, &header.link_name, Block::set_octal);
        block.set_text(Field::PREFIX, prefix);
        self.raw(block, Formats::USTAR, header.size, header.kind)
    }

    fn pax(&mut self, header: &Header, records: &Records) -> Result<(), TarError> {
        let global = header.kind == EntryType::GLOBAL;
        if global || !records.is_empty() {
            let data = pax::format(records);
            if data.len() > SPECIAL_MAX {
                return Err(TarError::Unencodable("PAX records are too long"));
            }
            let (name, kind) = if global {
                let name =
                    if header.name.is_empty() { b"GlobalHead.0.0".to_vec() } else { header.name.clone() };
                (name, EntryType::GLOBAL)
            } else {
                (records_name(&header.name), EntryType::PAX)
            };
            self.special(&name, &data, kind, Formats::PAX)?;
            if global {
                return Ok(());
            }
        }
        let ascii =
            |text: &[u8]| -> Vec<u8> { text.iter().copied().filter(|byte| is_ascii(&[*byte])).collect() };
        let mut plain = header.clone();
        plain.user_name = ascii(&header.user_name);
        plain.group_name = ascii(&header.group_name);
        let block = common(&plain, &ascii(&header.name), &ascii(&header.link_name), Block::set_octal);
        self.raw(block, Formats::PAX, header.size, header.kind)
    }

    fn gnu(&mut self, header: &Header) -> Result<(), TarError> {
        let long = [(&header.name, EntryType::GNU_LONG_NAME), (&header.link_name, EntryType::GNU_LONG_LINK)];
        for (text, kind) in long {
            if text.len() > NAME_LEN {
                let mut data = text.clone();
                data.push(0);
                self.special(b"././@LongLink", &data, kind, Formats::GNU)?;
            }
        }
        let mut block = common(header, &header.name, &header.link_name, Block::set_number);
        if let Some(time) = header.atime {
            block.set_number(Field::GNU_ATIME, time.seconds);
        }
        if let Some(time) = header.ctime {
            block.set_number(Field::GNU_CTIME, time.seconds);
        }
        self.raw(block, Formats::GNU, header.size, header.kind)
    }

    /// Writes an entry that only says something about the next one.
    fn special(
        &mut self,
        name: &[u8],
        data: &[u8],
        kind: EntryType,
        format: Formats,
    ) -> Result<(), TarError> {
        let mut name: Vec<u8> =
            name.iter().copied().filter(|byte| is_ascii(&[*byte])).take(NAME_LEN).collect();
        while name.last() == Some(&b'/') {
            name.pop();
        }
        let mut block = Block::zero();
        block.set(Field::KIND, &[kind.0]);
        block.set_text(Field::NAME, &name);
        for field in [Field::MODE, Field::UID, Field::GID, Field::MTIME] {
            block.set_octal(field, 0);
        }
        let size = data.len() as i64;
        block.set_octal(Field::SIZE, size);
        self.raw(block, format, size, kind)?;
        self.write_all(data)?;
        self.pad()
    }

    fn raw(&mut self, mut block: Block, format: Formats, size: i64, kind: EntryType) -> Result<(), TarError> {
        if format == Formats::GNU {
            block.set(Field::MAGIC, b"ustar ");
            block.set(Field::VERSION, b" \0");
        } else {
            block.set(Field::MAGIC, b"ustar\0");
            block.set(Field::VERSION, b"00");
        }
        block.set_checksum();
        self.out.write_all(&block.0)?;
        self.left = if kind.is_header_only() { 0 } else { u64::try_from(size).unwrap_or_default() };
        self.padding = padding(self.left);
        Ok(())
    }
}

impl<W: Write> Write for Writer<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let allowed = usize::try_from(self.left).unwrap_or(usize::MAX).min(data.len());
        if allowed == 0 && !data.is_empty() {
            return Err(io::Error::other("more data than the tar header announced"));
        }
        let written = self.out.write(data.get(..allowed).unwrap_or_default())?;
        self.left -= written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// The fields that all formats share.
fn common(header: &Header, name: &[u8], link_name: &[u8], number: fn(&mut Block, Field, i64)) -> Block {
    let mut block = Block::zero();
    block.set(Field::KIND, &[header.kind.0]);
    block.set_text(Field::NAME, name);
    block.set_text(Field::LINK_NAME, link_name);
    block.set_text(Field::USER_NAME, &header.user_name);
    block.set_text(Field::GROUP_NAME, &header.group_name);
    number(&mut block, Field::MODE, header.mode);
    number(&mut block, Field::UID, header.uid);
    number(&mut block, Field::GID, header.gid);
    number(&mut block, Field::SIZE, header.size);
    number(&mut block, Field::MTIME, header.mtime.map_or(0, |time| time.seconds));
    number(&mut block, Field::DEV_MAJOR, header.dev_major);
    number(&mut block, Field::DEV_MINOR, header.dev_minor);
    block
}

/// Finds the formats that can hold `header`, and the PAX records it needs in that format.
fn encodings(header: &Header) -> Result<(Formats, Records), TarError> {
    let mut encoder = Encoder { header, formats: Formats::ALL, records: Records::new(), prefers_pax: false };
    encoder.text(&header.name, NAME_LEN, pax::PATH);
    encoder.text(&header.link_name, NAME_LEN, pax::LINK_PATH);
    encoder.text(&header.user_name, Field::USER_NAME.len(), pax::USER_NAME);
    encoder.text(&header.group_name, Field::GROUP_NAME.len(), pax::GROUP_NAME);
    encoder.number(header.mode, Field::MODE.len(), None);
    encoder.number(header.uid, Field::UID.len(), Some(pax::UID));
    encoder.number(header.gid, Field::GID.len(), Some(pax::GID));
    encoder.number(header.size, Field::SIZE.len(), Some(pax::SIZE));
    encoder.number(header.dev_major, Field::DEV_MAJOR.len(), None);
    encoder.number(header.dev_minor, Field::DEV_MINOR.len(), None);
    encoder.time(header.mtime, pax::MTIME);
    encoder.time(header.atime, pax::ATIME);
    encoder.time(header.ctime, pax::CTIME);
    encoder.finish()
}

struct Encoder<'a> {
    header: &'a Header,
    formats: Formats,
    records: Records,
    /// The older format would lose something without failing.
    prefers_pax: bool,
}

impl Encoder<'_> {
    fn not(&mut self, format: Formats) {
        self.formats = self.formats.without(format);
    }

    /// A record that came with the header and says the same stays.
    fn keep(&mut self, key: &[u8], value: &[u8]) {
        if self.header.pax.get(key).is_some_and(|kept| kept == value) {
            self.records.insert(key.to_vec(), value.to_vec());
        }
    }

    fn text(&mut self, text: &[u8], len: usize, key: &[u8]) {
        let too_long = text.len() > len;
        let gnu_can_be_long = key == pax::PATH || key == pax::LINK_PATH;
        if text.contains(&0) || (too_long && !gnu_can_be_long) {
            self.not(Formats::GNU);
        }
        if too_long || !is_ascii(text) {
            if key != pax::PATH || split_name(text).is_none() {
                self.not(Formats::USTAR);
            }
            self.records.insert(key.to_vec(), text.to_vec());
        }
        self.keep(key, text);
    }

    fn number(&mut self, number: i64, len: usize, key: Option<&[u8]>) {
        if !fits_binary(len, number) {
            self.not(Formats::GNU);
        }
        if !fits_octal(len, number) {
            self.not(Formats::USTAR);
            match key {
                Some(key) => {
                    self.records.insert(key.to_vec(), number.to_string().into_bytes());
                }
                None => self.not(Formats::PAX),
            }
        }
        if let Some(key) = key {
            self.keep(key, number.to_string().as_bytes());
        }
    }

    fn time(&mut self, time: Option<Time>, key: &[u8]) {
        let Some(time) = time else { return };
        let is_mtime = key == pax::MTIME;
        let fits = fits_octal(Field::MTIME.len(), time.seconds);
        if !is_mtime || !fits {
            self.not(Formats::USTAR);
        }
        let text = pax::format_time(time);
        if !is_mtime || !fits || time.nanoseconds != 0 {
            self.prefers_pax = true;
            self.records.insert(key.to_vec(), text.clone());
        }
        self.keep(key, &text);
    }

    fn finish(mut self) -> Result<(Formats, Records), TarError> {
        let header = self.header;
        match header.kind {
            EntryType::FILE
            | EntryType::CHAR
            | EntryType::BLOCK
            | EntryType::FIFO
            | EntryType::GNU_SPARSE
                if header.name.ends_with(b"/") =>
            {
                return Err(TarError::Unencodable("filename may not have trailing slash"));
            }
            EntryType::PAX | EntryType::GNU_LONG_NAME | EntryType::GNU_LONG_LINK => {
                return Err(TarError::Unencodable("type is made by the writer alone"));
            }
            EntryType::GLOBAL => self.formats = self.formats.and(Formats::PAX),
            _ => {}
        }
        if header.size < 0 && !header.kind.is_header_only() {
            return Err(TarError::Unencodable("negative size"));
        }
        if !header.pax.is_empty() {
            let global = header.kind == EntryType::GLOBAL;
            for (key, value) in &header.pax {
                let local = !pax::is_basic(key) && !key.starts_with(pax::SPARSE_PREFIX);
                if !self.records.contains_key(key) && (global || local) {
                    self.records.insert(key.clone(), value.clone());
                }
            }
            self.formats = self.formats.and(Formats::PAX);
        }
        if !self.records.iter().all(|(key, value)| pax::is_valid(key, value)) {
            return Err(TarError::Unencodable("invalid PAX record"));
        }
        if header.format != Formats::NONE {
            let mut wanted = header.format;
            if wanted.has(Formats::PAX) && !self.prefers_pax {
                wanted = wanted.or(Formats::USTAR);
            }
            self.formats = self.formats.and(wanted);
        }
        if self.formats == Formats::NONE {
            return Err(TarError::Unencodable("no format holds all fields"));
        }
        Ok((self.formats, self.records))
    }
}

/// Splits a long name into prefix and name of the USTAR format.
fn split_name(name: &[u8]) -> Option<(&[u8], &[u8])> {
    if name.len() <= NAME_LEN || !is_ascii(name) {
        return None;
    }
    let mut length = name.len();
    if length > PREFIX_LEN + 1 {
        length = PREFIX_LEN + 1;
    } else if name.ends_with(b"/") {
        length -= 1;
    }
    let slash = name.get(..length)?.iter().rposition(|byte| *byte == b'/')?;
    let (prefix, rest) = name.split_at(slash);
    let rest = rest.get(1..)?;
    let fits = slash > 0 && !rest.is_empty() && rest.len() <= NAME_LEN && prefix.len() <= PREFIX_LEN;
    fits.then_some((prefix, rest))
}

/// The name of the entry that holds the PAX records of `name`.
fn records_name(name: &[u8]) -> Vec<u8> {
    let slash = name.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    let (dir, file) = name.split_at(slash);
    clean_name(&[dir, b"PaxHeaders.0/", file].concat())
}

/// Removes empty, `.` and `..` components as Go's `path.Clean` does.
pub fn clean_name(path: &[u8]) -> Vec<u8> {
    let rooted = path.starts_with(b"/");
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => match parts.last() {
                Some(last) if *last != b".." => {
                    parts.pop();
                }
                _ if rooted => {}
                _ => parts.push(part),
            },
            _ => parts.push(part),
        }
    }
    let mut out = if rooted { b"/".to_vec() } else { Vec::new() };
    out.extend(parts.join(&b'/'));
    if out.is_empty() { b".".to_vec() } else { out }
}

fn round(time: Time) -> Time {
    let up = i64::from(time.nanoseconds >= 500_000_000);
    Time::from_seconds(time.seconds.saturating_add(up))
}
