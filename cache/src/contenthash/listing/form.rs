//! A listing as bytes: paths in order, each with what it shares with the one before left out.

use std::collections::BTreeMap;

use kiln_rootdir::{Kind, Metadata};

use crate::memos::{Reader, Writer};

/// Leads every listing; one of another form is not read.
const FORM: u64 = 1;
const HAS_MARK: u64 = 1 << 3;
const HAS_SUM: u64 = 1 << 4;
const OPEN: u64 = 1 << 5;

/// What is known of a selection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::contenthash) struct Listing {
    /// By path.
    pub(super) entries: BTreeMap<String, Listed>,
    /// A sum over what is neither listed nor below anything listed.
    pub(super) rest: u64,
}

/// One entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::contenthash) struct Listed {
    /// What it is, as a number.
    pub(super) kind: u64,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) size: u64,
    /// Stands for its checksum; none if that was too dear.
    pub(super) mark: Option<u64>,
    /// Of a directory: stands for everything below, if that is known.
    pub(super) sum: Option<u64>,
    /// Of a directory: what is below is listed too.
    pub(super) open: bool,
}

impl Listed {
    pub(super) fn new(found: Option<&Metadata>, mark: Option<u64>) -> Self {
        let Some(found) = found else { return Self { mark, ..Self::default() } };
        let kind = match found.kind {
            Kind::File | Kind::Unknown => 0,
            Kind::Dir => 1,
            Kind::Symlink => 2,
            Kind::CharDevice => 3,
            Kind::BlockDevice => 4,
            Kind::Fifo => 5,
            Kind::Socket => 6,
        };
        Self {
            kind,
            mode: found.mode & 0o7777,
            uid: found.uid,
            gid: found.gid,
            size: if kind == 0 { found.size } else { 0 },
            mark,
            sum: None,
            open: false,
        }
    }
}

impl Listing {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.number(FORM);
        out.raw(&self.rest.to_le_bytes());
        out.number(self.entries.len() as u64);
        let mut before: &[u8] = &[];
        for (path, entry) in &self.entries {
            let shared = before.iter().zip(path.as_bytes()).take_while(|(a, b)| a == b).count();
            out.number(shared as u64);
            out.bytes(path.as_bytes().get(shared..).unwrap_or_default());
            before = path.as_bytes();
            let flag = |is: bool, bit: u64| if is { bit } else { 0 };
            let flags = flag(entry.mark.is_some(), HAS_MARK)
                | flag(entry.sum.is_some(), HAS_SUM)
                | flag(entry.open, OPEN);
            out.number(entry.kind | flags);
            for number in [u64::from(entry.mode), entry.uid.into(), entry.gid.into(), entry.size] {
                out.number(number);
            }
            for mark in [entry.mark, entry.sum].into_iter().flatten() {
                out.raw(&mark.to_le_bytes());
            }
        }
        out.finish()
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut from = Reader(bytes);
        if from.number()? != FORM {
            return None;
        }
        let mark = |from: &mut Reader<'_>| Some(u64::from_le_bytes(*from.raw(8)?.first_chunk()?));
        let mut listing = Self { rest: mark(&mut from)?, ..Self::default() };
        let mut before: Vec<u8> = Vec::new();
        for _ in 0..from.count()? {
            let shared = usize::try_from(from.number()?).ok()?;
            let mut path = before.get(..shared)?.to_vec();
            path.extend_from_slice(from.bytes()?);
            let flags = from.number()?;
            let small = |from: &mut Reader<'_>| from.number().and_then(|number| u32::try_from(number).ok());
            let entry = Listed {
                kind: flags & 7,
                mode: small(&mut from)?,
                uid: small(&mut from)?,
                gid: small(&mut from)?,
                size: from.number()?,
                mark: if flags & HAS_MARK > 0 { Some(mark(&mut from)?) } else { None },
                sum: if flags & HAS_SUM > 0 { Some(mark(&mut from)?) } else { None },
                open: flags & OPEN > 0,
            };
            listing.entries.insert(String::from_utf8(path.clone()).ok()?, entry);
            before = path;
        }
        from.is_empty().then_some(listing)
    }
}
