//! PAX records: `<length> <key>=<value>\n`.

use std::collections::BTreeMap;

use crate::tar::TarError;
use crate::tar::header::{Header, Time};

pub(super) type Records = BTreeMap<Vec<u8>, Vec<u8>>;

pub(super) const PATH: &[u8] = b"path";
pub(super) const LINK_PATH: &[u8] = b"linkpath";
pub(super) const SIZE: &[u8] = b"size";
pub(super) const UID: &[u8] = b"uid";
pub(super) const GID: &[u8] = b"gid";
pub(super) const USER_NAME: &[u8] = b"uname";
pub(super) const GROUP_NAME: &[u8] = b"gname";
pub(super) const MTIME: &[u8] = b"mtime";
pub(super) const ATIME: &[u8] = b"atime";
pub(super) const CTIME: &[u8] = b"ctime";
pub(super) const SPARSE_PREFIX: &[u8] = b"GNU.sparse.";
pub(super) const SPARSE_MAP: &[u8] = b"GNU.sparse.map";
const SPARSE_OFFSET: &[u8] = b"GNU.sparse.offset";
const SPARSE_BYTES: &[u8] = b"GNU.sparse.numbytes";

const BAD: TarError = TarError::Header("bad PAX record");

/// Whether a record repeats a field of the header.
pub(super) fn is_basic(key: &[u8]) -> bool {
    [PATH, LINK_PATH, SIZE, UID, GID, USER_NAME, GROUP_NAME, MTIME, ATIME, CTIME].contains(&key)
}

pub(super) fn is_valid(key: &[u8], value: &[u8]) -> bool {
    if key.is_empty() || key.contains(&b'=') {
        return false;
    }
    if [PATH, LINK_PATH, USER_NAME, GROUP_NAME].contains(&key) {
        !value.contains(&0)
    } else {
        !key.contains(&0)
    }
}

pub(super) fn format(records: &Records) -> Vec<u8> {
    let mut out = Vec::new();
    for (key, value) in records {
        // The length counts its own digits.
        let rest = key.len() + value.len() + 3;
        let mut length = rest + decimal_digits(rest);
        if decimal_digits(length) != decimal_digits(rest) {
            length = rest + decimal_digits(length);
        }
        out.extend_from_slice(length.to_string().as_bytes());
        out.push(b' ');
        out.extend_from_slice(key);
        out.push(b'=');
        out.extend_from_slice(value);
        out.push(b'\n');
    }
    out
}

fn decimal_digits(number: usize) -> usize {
    number.checked_ilog10().map_or(1, |log| log as usize + 1)
}

pub(super) fn parse(mut data: &[u8]) -> Result<Records, TarError> {
    let mut records = Records::new();
    let mut sparse: Vec<Vec<u8>> = Vec::new();
    while !data.is_empty() {
        let space = data.iter().position(|byte| *byte == b' ').ok_or(BAD)?;
        let (digits, _) = data.split_at(space);
        let length = parse_decimal(digits).ok_or(BAD)?;
        let length = usize::try_from(length).map_err(|_| BAD)?;
        if length < 5 || length > data.len() || length <= space + 1 {
            return Err(BAD);
        }
        let (record, rest) = data.split_at(length);
        data = rest;
        let record = record.get(space + 1..).and_then(|record| record.strip_suffix(b"\n")).ok_or(BAD)?;
        let equals = record.iter().position(|byte| *byte == b'=').ok_or(BAD)?;
        let (key, value) = record.split_at(equals);
        let value = value.get(1..).unwrap_or_default();
        if !is_valid(key, value) {
            return Err(BAD);
        }
        if key == SPARSE_OFFSET || key == SPARSE_BYTES {
            // Form 0.0 repeats these two in turn; they become the single list of form 0.1.
            let expected = if sparse.len().is_multiple_of(2) { SPARSE_OFFSET } else { SPARSE_BYTES };
            if key != expected || value.contains(&b',') {
                return Err(BAD);
            }
            sparse.push(value.to_vec());
        } else {
            records.insert(key.to_vec(), value.to_vec());
        }
    }
    if !sparse.is_empty() {
        records.insert(SPARSE_MAP.to_vec(), sparse.join(&b','));
    }
    Ok(records)
}

/// Takes over the records that stand for fields of the header; empty ones leave the field as it is.
pub(super) fn merge(header: &mut Header, records: Records) -> Result<(), TarError> {
    for (key, value) in &records {
        if value.is_empty() {
            continue;
        }
        let number = || parse_decimal(value).ok_or(BAD);
        match key.as_slice() {
            PATH => header.name.clone_from(value),
            LINK_PATH => header.link_name.clone_from(value),
            USER_NAME => header.user_name.clone_from(value),
            GROUP_NAME => header.group_name.clone_from(value),
            UID => header.uid = number()?,
            GID => header.gid = number()?,
            SIZE => header.size = number()?,
            MTIME => header.mtime = Some(parse_time(value)?),
            ATIME => header.atime = Some(parse_time(value)?),
            CTIME => header.ctime = Some(parse_time(value)?),
            _ => {}
        }
    }
    header.pax = records;
    Ok(())
}

pub(super) fn parse_decimal(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

pub(super) fn parse_time(text: &[u8]) -> Result<Time, TarError> {
    const BAD_TIME: TarError = TarError::Header("bad time in PAX record");
    let dot = text.iter().position(|byte| *byte == b'.');
    let (whole, fraction) = match dot {
        Some(dot) => (text.get(..dot).unwrap_or_default(), text.get(dot + 1..).unwrap_or_default()),
        None => (text, &[][..]),
    };
    let seconds = parse_decimal(whole).ok_or(BAD_TIME)?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return Err(BAD_TIME);
    }
    let mut nanoseconds = 0u32;
    for place in 0..9 {
        let digit = fraction.get(place).map_or(0, |byte| byte - b'0');
        nanoseconds = nanoseconds * 10 + u32::from(digit);
    }
    if whole.starts_with(b"-") && nanoseconds > 0 {
        let seconds = seconds.checked_sub(1).ok_or(BAD_TIME)?;
        return Ok(Time { seconds, nanoseconds: 1_000_000_000 - nanoseconds });
    }
    Ok(Time { seconds, nanoseconds })
}

pub(super) fn format_time(time: Time) -> Vec<u8> {
    if time.nanoseconds == 0 {
        return time.seconds.to_string().into_bytes();
    }
    let text = if time.seconds < 0 {
        let whole = (time.seconds + 1).unsigned_abs();
        format!("-{whole}.{:09}", 1_000_000_000 - time.nanoseconds)
    } else {
        format!("{}.{:09}", time.seconds, time.nanoseconds)
    };
    text.trim_end_matches('0').as_bytes().to_vec()
}
