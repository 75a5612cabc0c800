//! Deciding, entry by entry, what a listing changes.

use std::collections::HashSet;
use std::io::Write as _;
use std::sync::Arc;

use kiln_patterns::{MatchState, Patterns};
use kiln_rootdir::{Kind, Root, Time};
use prost::Message as _;
use tokio::sync::mpsc;

use crate::error::{Error, Result};
use crate::fsutil::compare::{Existing, differs};
use crate::fsutil::content::{Pending, Wanted};
use crate::fsutil::disk;
use crate::fsutil::order::{Order, compare_paths};
use crate::fsutil::receiver::{ChangeKind, Differ, ReceiveOptions};
use crate::fsutil::stat::Stat;
use crate::wire;

/// Where a metadata-only transfer keeps the listing.
const METADATA_FILE: &str = ".fsutil-metadata";

/// What is left to do once all contents are written.
#[derive(Debug, Default)]
pub(crate) struct Planned {
    pub(crate) requested: u64,
    directories: Vec<(String, u32, Time)>,
    links: Vec<(ChangeKind, Stat, Stat)>,
    metadata: Option<Vec<u8>>,
}

impl Planned {
    /// Makes hard links, writes the metadata file and sets the times of directories. Blocks.
    pub(crate) fn finish(self, root: &Root, options: &ReceiveOptions) -> Result<()> {
        for (kind, sent, stat) in self.links {
            disk::hard_link(root, &stat)?;
            options.changed(kind, &sent.path, Some(&sent), None);
        }
        if let Some(metadata) = self.metadata {
            let mut incoming = disk::Incoming::create(root, METADATA_FILE, kiln_digest::Hasher::new())?;
            incoming.write(METADATA_FILE, &metadata)?;
            let found = root.stat(".", true)?;
            let (uid, gid) = found.map_or((0, 0), |found| (found.uid, found.gid));
            let stat = Stat {
                path: METADATA_FILE.to_owned(),
                mode: crate::fsutil::stat::GoMode::new(Kind::File, 0o600),
                uid,
                gid,
                ..Stat::default()
            };
            incoming.place(root, &stat)?;
        }
        // Innermost first: setting a directory's mode may end our rights to what is below it.
        for (path, mode, time) in self.directories.into_iter().rev() {
            disk::finish_directory(root, &path, mode, time)?;
        }
        Ok(())
    }
}

/// Takes a listing until the channel ends. Blocks.
pub(crate) fn run(
    root: Arc<Root>,
    options: Arc<ReceiveOptions>,
    mut stats: mpsc::Receiver<Stat>,
    pending: Arc<Pending>,
    request: mpsc::UnboundedSender<u32>,
) -> Result<Planned> {
    let existing = if options.merge { None } else { Some(Existing::new(root.try_clone()?)?) };
    let excepted = match &options.metadata_only {
        Some(patterns) => Some(Excepted {
            patterns: Patterns::new(patterns).map_err(|source| Error::Pattern {
                list: "metadata exception ",
                patterns: format!("[{}]", patterns.join(" ")),
                source,
            })?,
            open: Vec::new(),
        }),
        None => None,
    };
    let metadata = excepted.is_some().then(Vec::new);
    let mut planner = Planner {
        root,
        options,
        pending,
        request,
        existing,
        excepted,
        order: Order::new(),
        files: HashSet::new(),
        next_id: 0,
        planned: Planned { metadata, ..Planned::default() },
    };
    while let Some(stat) = stats.blocking_recv() {
        planner.entry(stat)?;
    }
    planner.delete_before(None)?;
    Ok(planner.planned)
}

struct Planner {
    root: Arc<Root>,
    options: Arc<ReceiveOptions>,
    pending: Arc<Pending>,
    request: mpsc::UnboundedSender<u32>,
    existing: Option<Existing>,
    excepted: Option<Excepted>,
    order: Order,
    /// Paths of files that a hard link may name.
    files: HashSet<String>,
    next_id: u32,
    planned: Planned,
}

impl Planner {
    fn entry(&mut self, sent: Stat) -> Result<()> {
        let id = self.next_id;
        self.next_id = id.checked_add(1).ok_or_else(|| Error::protocol("too many entries"))?;
        let kind = match sent.mode.kind() {
            Some(Kind::Socket | Kind::Unknown) | None => {
                return Err(Error::protocol(format!("invalid mode {:o} of {:?}", sent.mode.0, sent.path)));
            }
            Some(kind) => kind,
        };
        self.order.accept(&sent.path, kind == Kind::Dir)?;
        if sent.is_hard_link() && !self.files.contains(&sent.linkname) {
            let (path, target) = (&sent.path, &sent.linkname);
            return Err(Error::protocol(format!("invalid link {path} to unknown path: {target:?}")));
        }
        if sent.has_content() {
            self.files.insert(sent.path.clone());
        }
        let mut stat = sent.clone();
        if let Some(map) = &self.options.map
            && !map(&mut stat)
        {
            return Ok(());
        }
        if let Some(metadata) = &mut self.planned.metadata {
            if sent.path == METADATA_FILE {
                return Ok(());
            }
            append_metadata(metadata, &stat, &self.options)?;
        }
        match &mut self.excepted {
            None => self.apply(id, kind, sent, stat),
            Some(excepted) => {
                for (id, kind, sent, stat) in excepted.release(id, kind, sent, stat) {
                    self.apply(id, kind, sent, stat)?;
                }
                Ok(())
            }
        }
    }

    fn apply(&mut self, id: u32, kind: Kind, sent: Stat, stat: Stat) -> Result<()> {
        let is_dir = kind == Kind::Dir;
        self.delete_before(Some(&stat.path))?;
        let before = match &mut self.existing {
            Some(existing) => match existing.current() {
                Some(found) if found.path == stat.path => {
                    let found = found.clone();
                    existing.advance(is_dir)?;
                    Some(found)
                }
                _ => None,
            },
            None => {
                let found = self.root.stat(&stat.path, false)?;
                found.map(|found| Stat::from_metadata(stat.path.clone(), &found))
            }
        };
        if is_dir {
            self.planned.directories.push((stat.path.clone(), stat.mode.posix(), stat.time()));
        }
        if let Some(before) = &before {
            if !self.options.merge && self.options.differ == Differ::Metadata && !differs(&stat, before) {
                return Ok(());
            }
            if before.mode.is_dir() != is_dir {
                self.root.remove_all(&stat.path)?;
            }
        }
        let change = if before.is_some() { ChangeKind::Modify } else { ChangeKind::Add };
        match kind {
            Kind::File if stat.is_hard_link() => self.planned.links.push((change, sent, stat)),
            Kind::File => {
                self.planned.requested += 1;
                self.pending.insert(id, Wanted::new(change, sent, stat));
                // Fails only if the transfer is over.
                let _sent = self.request.send(id);
            }
            _ => {
                if is_dir {
                    let exists = before.is_some_and(|before| before.mode.is_dir());
                    disk::directory(&self.root, &stat, exists)?;
                } else {
                    disk::special(&self.root, &stat, kind)?;
                }
                let digest = self.options.hasher(&sent).finish();
                self.options.changed(change, &sent.path, Some(&sent), Some(digest));
            }
        }
        Ok(())
    }

    /// Deletes what lies in the destination and would have been listed before `path`; with none, all that is left.
    fn delete_before(&mut self, path: Option<&str>) -> Result<()> {
        let Some(existing) = &mut self.existing else { return Ok(()) };
        while let Some(found) = existing.current() {
            if path.is_some_and(|path| compare_paths(&found.path, path).is_ge()) {
                break;
            }
            self.root.remove_all(&found.path)?;
            self.options.changed(ChangeKind::Delete, &found.path, None, None);
            existing.advance(false)?;
        }
        Ok(())
    }
}

type Entry = (u32, Kind, Stat, Stat);

/// Which entries of a metadata-only transfer are written all the same.
struct Excepted {
    patterns: Patterns,
    /// The directories that the last entry lies in, with what the patterns said, and those not written yet.
    open: Vec<(String, MatchState, Option<Entry>)>,
}

impl Excepted {
    /// The entries to write now: the given one, if it is excepted, after its directories.
    fn release(&mut self, id: u32, kind: Kind, sent: Stat, stat: Stat) -> Vec<Entry> {
        while let Some((dir, _, _)) = self.open.last() {
            if stat.path.strip_prefix(dir.as_str()).is_some_and(|rest| rest.starts_with('/')) {
                break;
            }
            self.open.pop();
        }
        let above = self.open.last().map(|(_, state, _)| state);
        let (matched, state) = self.patterns.matches_with_parents(&stat.path, above);
        let path = stat.path.clone();
        let mut entry = Some((id, kind, sent, stat));
        let mut released = Vec::new();
        if matched {
            released.extend(self.open.iter_mut().filter_map(|(_, _, waiting)| waiting.take()));
            released.extend(entry.take());
        }
        if kind == Kind::Dir {
            self.open.push((path, state, entry));
        }
        released
    }
}

/// Appends a little endian length and a `Stat` message.
fn append_metadata(metadata: &mut Vec<u8>, stat: &Stat, options: &ReceiveOptions) -> Result<()> {
    let message = wire::stat_to_wire(stat.clone());
    let length = u32::try_from(message.encoded_len()).map_err(|_| Error::protocol("entry is too long"))?;
    if (metadata.len() as u64).saturating_add(u64::from(length)) > MAX_METADATA.min(options.limits.bytes) {
        return Err(Error::Limit { what: "bytes of metadata", limit: MAX_METADATA });
    }
    // Writing to memory does not fail.
    let _written = metadata.write_all(&length.to_le_bytes());
    metadata.extend_from_slice(&message.encode_to_vec());
    Ok(())
}

/// How long the listing of a metadata-only transfer may be; it is held in memory.
const MAX_METADATA: u64 = 1 << 30;
