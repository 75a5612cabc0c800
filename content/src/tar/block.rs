//! The 512 byte header block: where its fields are and how numbers stand in them.

use std::ops::Range;

use crate::tar::TarError;

pub(super) const BLOCK: usize = 512;
pub(super) const NAME_LEN: usize = 100;
pub(super) const PREFIX_LEN: usize = 155;

/// A field of a header block.
#[derive(Clone, Copy)]
pub(super) struct Field(usize, usize);

impl Field {
    pub(super) const NAME: Self = Self(0, 100);
    pub(super) const MODE: Self = Self(100, 8);
    pub(super) const UID: Self = Self(108, 8);
    pub(super) const GID: Self = Self(116, 8);
    pub(super) const SIZE: Self = Self(124, 12);
    pub(super) const MTIME: Self = Self(136, 12);
    pub(super) const CHECKSUM: Self = Self(148, 8);
    pub(super) const KIND: Self = Self(156, 1);
    pub(super) const LINK_NAME: Self = Self(157, 100);
    pub(super) const MAGIC: Self = Self(257, 6);
    pub(super) const VERSION: Self = Self(263, 2);
    pub(super) const USER_NAME: Self = Self(265, 32);
    pub(super) const GROUP_NAME: Self = Self(297, 32);
    pub(super) const DEV_MAJOR: Self = Self(329, 8);
    pub(super) const DEV_MINOR: Self = Self(337, 8);
    pub(super) const PREFIX: Self = Self(345, 155);
    pub(super) const STAR_PREFIX: Self = Self(345, 131);
    pub(super) const STAR_ATIME: Self = Self(476, 12);
    pub(super) const STAR_CTIME: Self = Self(488, 12);
    pub(super) const STAR_TRAILER: Self = Self(508, 4);
    pub(super) const GNU_ATIME: Self = Self(345, 12);
    pub(super) const GNU_CTIME: Self = Self(357, 12);
    pub(super) const GNU_SPARSE: Self = Self(386, 97);
    pub(super) const GNU_REAL_SIZE: Self = Self(483, 12);

    pub(super) const fn len(self) -> usize {
        self.1
    }

    fn range(self) -> Range<usize> {
        self.0..self.0 + self.1
    }
}

#[derive(Clone)]
pub(super) struct Block(pub(super) [u8; BLOCK]);

impl Block {
    pub(super) fn zero() -> Self {
        Self([0; BLOCK])
    }

    pub(super) fn is_zero(&self) -> bool {
        self.0.iter().all(|byte| *byte == 0)
    }

    pub(super) fn get(&self, field: Field) -> &[u8] {
        self.0.get(field.range()).unwrap_or_default()
    }

    pub(super) fn number(&self, field: Field) -> Result<i64, TarError> {
        parse_number(self.get(field))
    }

    pub(super) fn text(&self, field: Field) -> Vec<u8> {
        until_nul(self.get(field)).to_vec()
    }

    pub(super) fn set(&mut self, field: Field, value: &[u8]) {
        for (to, from) in self.0.get_mut(field.range()).unwrap_or_default().iter_mut().zip(value) {
            *to = *from;
        }
    }

    /// Writes a name, cut to the field. A cut that would end in `/` ends before it, so that no reader takes a file
    /// for a directory.
    pub(super) fn set_text(&mut self, field: Field, text: &[u8]) {
        self.set(field, text);
        if text.len() > field.len() && self.get(field).last() == Some(&b'/') {
            let cut = text.get(..field.len() - 1).unwrap_or_default();
            let kept = cut.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
            if let Some(byte) = self.0.get_mut(field.range()).and_then(|bytes| bytes.get_mut(kept)) {
                *byte = 0;
            }
        }
    }

    /// Writes an octal number, or zero when it does not fit.
    pub(super) fn set_octal(&mut self, field: Field, number: i64) {
        let number = if fits_octal(field.len(), number) { number } else { 0 };
        let text = format!("{number:0width$o}\0", width = field.len() - 1);
        self.set(field, text.as_bytes());
    }

    /// Writes an octal number, or a binary one when it does not fit.
    pub(super) fn set_number(&mut self, field: Field, number: i64) {
        if fits_octal(field.len(), number) || !fits_binary(field.len(), number) {
            return self.set_octal(field, number);
        }
        let mut rest = number;
        let bytes = self.0.get_mut(field.range()).unwrap_or_default();
        for byte in bytes.iter_mut().rev() {
            *byte = (rest & 0xff) as u8;
            rest >>= 8;
        }
        if let Some(first) = bytes.first_mut() {
            *first |= 0x80;
        }
    }

    pub(super) fn set_checksum(&mut self) {
        let (unsigned, _) = self.checksums();
        let text = format!("{unsigned:06o}\0 ");
        self.set(Field::CHECKSUM, text.as_bytes());
    }

    pub(super) fn checksum_matches(&self) -> bool {
        let Ok(stored) = parse_octal(self.get(Field::CHECKSUM)) else { return false };
        let (unsigned, signed) = self.checksums();
        stored == unsigned || stored == signed
    }

    /// Sums of all bytes, unsigned and (as old writers had it) signed; the checksum itself counts as spaces.
    fn checksums(&self) -> (i64, i64) {
        let range = Field::CHECKSUM.range();
        let mut sums = (0, 0);
        for (index, byte) in self.0.iter().enumerate() {
            let byte = if range.contains(&index) { b' ' } else { *byte };
            sums.0 += i64::from(byte);
            sums.1 += i64::from(byte.cast_signed());
        }
        sums
    }
}

pub(super) fn padding(size: u64) -> usize {
    usize::try_from(size.wrapping_neg() % BLOCK as u64).unwrap_or_default()
}

pub(super) fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

pub(super) fn is_ascii(text: &[u8]) -> bool {
    text.iter().all(|byte| matches!(byte, 1..0x80))
}

pub(super) fn fits_octal(len: usize, number: i64) -> bool {
    let bits = (len - 1) * 3;
    number >= 0 && (bits >= 63 || number < 1 << bits)
}

pub(super) fn fits_binary(len: usize, number: i64) -> bool {
    let bits = (len - 1) * 8;
    bits >= 63 || (number >= -(1 << bits) && number < 1 << bits)
}

pub(super) fn parse_number(bytes: &[u8]) -> Result<i64, TarError> {
    const OVERFLOW: TarError = TarError::Header("number too large");
    let Some(first) = bytes.first().filter(|first| **first & 0x80 != 0) else { return parse_octal(bytes) };
    let invert = if first & 0x40 != 0 { 0xff } else { 0 };
    let mut value = 0u64;
    for (index, byte) in bytes.iter().enumerate() {
        let mut byte = byte ^ invert;
        if index == 0 {
            byte &= 0x7f;
        }
        if value >> 56 > 0 {
            return Err(OVERFLOW);
        }
        value = value << 8 | u64::from(byte);
    }
    let value = i64::try_from(value).map_err(|_| OVERFLOW)?;
    Ok(if invert == 0 { value } else { !value })
}

pub(super) fn parse_octal(bytes: &[u8]) -> Result<i64, TarError> {
    const BAD: TarError = TarError::Header("number is not octal");
    let is_padding = |byte: &u8| matches!(byte, b' ' | 0);
    let Some(start) = bytes.iter().position(|byte| !is_padding(byte)) else { return Ok(0) };
    let end = bytes.iter().rposition(|byte| !is_padding(byte)).map_or(start, |last| last + 1);
    let digits = until_nul(bytes.get(start..end).unwrap_or_default());
    if !digits.iter().all(u8::is_ascii_digit) {
        return Err(BAD);
    }
    let text = std::str::from_utf8(digits).map_err(|_| BAD)?;
    // Twelve digits at most stand in a field, so the sign bit stays clear.
    u64::from_str_radix(text, 8).map(u64::cast_signed).map_err(|_| BAD)
}
