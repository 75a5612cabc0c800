//! Files with holes: the GNU forms of their maps.

use std::collections::VecDeque;
use std::io::{self, Read};

use crate::tar::TarError;
use crate::tar::block::{BLOCK, Block, Field, parse_number};
use crate::tar::header::Header;
use crate::tar::pax;
use crate::tar::reader::read_block;
use crate::tar::writer::SPECIAL_MAX;

const BAD: TarError = TarError::Header("bad sparse map");
const ENTRY: usize = 24;

/// A part of the file that has data.
#[derive(Clone, Copy, Debug)]
pub(super) struct Region {
    offset: u64,
    length: u64,
}

/// Puts the data of a stream between the holes.
#[derive(Debug)]
pub(super) struct Sparse {
    regions: VecDeque<Region>,
    position: u64,
    size: u64,
}

impl Sparse {
    pub(super) fn new(regions: Vec<Region>, size: i64) -> Result<Self, TarError> {
        let size = u64::try_from(size).map_err(|_| BAD)?;
        let mut end = 0;
        for region in &regions {
            let next = region.offset.checked_add(region.length).ok_or(BAD)?;
            if region.offset < end || next > size {
                return Err(BAD);
            }
            end = next;
        }
        Ok(Self { regions: regions.into(), position: 0, size })
    }

    pub(super) fn read(&mut self, data: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
        while self.regions.front().is_some_and(|region| region.offset + region.length <= self.position) {
            self.regions.pop_front();
        }
        let (until, is_data) = match self.regions.front() {
            Some(region) if region.offset <= self.position => (region.offset + region.length, true),
            Some(region) => (region.offset, false),
            None => (self.size, false),
        };
        let wanted = usize::try_from(until - self.position).unwrap_or(usize::MAX).min(buffer.len());
        let buffer = buffer.get_mut(..wanted).unwrap_or_default();
        let count = if is_data {
            let count = data.read(buffer)?;
            if count == 0 && wanted > 0 {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "sparse file has too little data"));
            }
            count
        } else {
            buffer.fill(0);
            wanted
        };
        self.position += count as u64;
        Ok(count)
    }
}

/// Reads the map of the old GNU form: four entries in the header, more in blocks behind it.
pub(super) fn old_gnu(input: &mut impl Read, header: &Block) -> Result<Vec<Region>, TarError> {
    let mut regions = Vec::new();
    let mut table = header.get(Field::GNU_SPARSE).to_vec();
    let mut total = table.len();
    loop {
        let (entries, rest) = table.split_at(table.len() / ENTRY * ENTRY);
        for entry in entries.chunks_exact(ENTRY) {
            let (offset, length) = entry.split_at(ENTRY / 2);
            if offset.first() == Some(&0) {
                break;
            }
            let number = |bytes| u64::try_from(parse_number(bytes)?).map_err(|_| BAD);
            regions.push(Region { offset: number(offset)?, length: number(length)? });
        }
        if rest.first().is_none_or(|more| *more == 0) {
            return Ok(regions);
        }
        total += BLOCK;
        if total > SPECIAL_MAX {
            return Err(BAD);
        }
        table = read_block(input)?.ok_or(BAD)?.0.to_vec();
    }
}

/// Reads the map of the PAX forms; `None` for a file without holes. `data` is the entry's, where form 1.0 has its map.
pub(super) fn from_records(
    header: &mut Header,
    data: &mut impl Read,
) -> Result<Option<Vec<Region>>, TarError> {
    let get = |name: &str| header.pax.get(&[pax::SPARSE_PREFIX, name.as_bytes()].concat()).map(Vec::as_slice);
    let in_data = match (get("major"), get("minor")) {
        (Some(b"0"), Some(b"0" | b"1")) => false,
        (Some(b"1"), Some(b"0")) => true,
        (None, None) if get("map").is_some_and(|map| !map.is_empty()) => false,
        _ => return Ok(None),
    };
    let size = get("size").or(get("realsize")).map(|size| pax::parse_decimal(size).ok_or(BAD)).transpose()?;
    let numbers = if in_data {
        numbers_in_data(data)?
    } else {
        let count = get("numblocks").and_then(pax::parse_decimal).ok_or(BAD)?;
        let map = get("map").unwrap_or_default();
        let numbers: Vec<u64> = map
            .split(|byte| *byte == b',')
            .filter(|_| !map.is_empty())
            .map(parse_unsigned)
            .collect::<Result<_, _>>()?;
        if i64::try_from(numbers.len() / 2).ok() != Some(count) {
            return Err(BAD);
        }
        numbers
    };
    if let Some(name) = get("name").filter(|name| !name.is_empty()).map(<[u8]>::to_vec) {
        header.name = name;
    }
    if let Some(size) = size {
        header.size = size;
    }
    let (pairs, rest) = numbers.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(BAD);
    }
    Ok(Some(pairs.iter().map(|[offset, length]| Region { offset: *offset, length: *length }).collect()))
}

/// Reads lines of decimal numbers, the first being the count of pairs, up to the end of a block.
fn numbers_in_data(data: &mut impl Read) -> Result<Vec<u64>, TarError> {
    let mut text = Vec::new();
    let mut numbers = Vec::new();
    let mut wanted = None;
    loop {
        text.extend_from_slice(&read_block(data)?.ok_or(BAD)?.0);
        while let Some(newline) = text.iter().position(|byte| *byte == b'\n') {
            let number = parse_unsigned(text.get(..newline).unwrap_or_default())?;
            text.drain(..=newline);
            match wanted {
                None => {
                    let count =
                        usize::try_from(number).ok().filter(|count| *count <= SPECIAL_MAX).ok_or(BAD)?;
                    wanted = Some(count * 2);
                }
                Some(_) => numbers.push(number),
            }
            if wanted == Some(numbers.len()) {
                return Ok(numbers);
            }
        }
        if text.len() > 64 {
            return Err(BAD);
        }
    }
}

fn parse_unsigned(text: &[u8]) -> Result<u64, TarError> {
    pax::parse_decimal(text).and_then(|number| u64::try_from(number).ok()).ok_or(BAD)
}
