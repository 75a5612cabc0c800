//! Writing the contents that were asked for.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use kiln_rootdir::Root;
use tokio::sync::{Notify, mpsc};

use crate::error::{Error, Result};
use crate::fsutil::disk::Incoming;
use crate::fsutil::receiver::{ChangeKind, ReceiveOptions};
use crate::fsutil::stat::Stat;

/// A file that was asked for.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) kind: ChangeKind,
    /// As it came from the peer.
    pub(crate) sent: Stat,
    /// As it is to be written.
    pub(crate) stat: Stat,
    incoming: Option<Incoming>,
}

impl Wanted {
    pub(crate) fn new(kind: ChangeKind, sent: Stat, stat: Stat) -> Self {
        Self { kind, sent, stat, incoming: None }
    }
}

/// Files that were asked for and are not complete, by number.
#[derive(Debug, Default)]
pub(crate) struct Pending(Mutex<HashMap<u32, Wanted>>);

impl Pending {
    pub(crate) fn insert(&self, id: u32, wanted: Wanted) {
        self.lock().insert(id, wanted);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Wanted>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes what comes until the channel ends. Blocks.
pub(crate) fn run(
    root: &Root,
    options: &ReceiveOptions,
    data: mpsc::Receiver<(u32, Bytes)>,
    pending: &Pending,
    complete: &Notify,
) -> Result<()> {
    let mut open = HashMap::new();
    let outcome = write_all(root, options, data, pending, complete, &mut open);
    for (_, wanted) in open {
        if let Some(incoming) = wanted.incoming {
            incoming.abandon(root);
        }
    }
    outcome
}

fn write_all(
    root: &Root,
    options: &ReceiveOptions,
    mut data: mpsc::Receiver<(u32, Bytes)>,
    pending: &Pending,
    complete: &Notify,
    open: &mut HashMap<u32, Wanted>,
) -> Result<()> {
    while let Some((id, piece)) = data.blocking_recv() {
        let wanted = match open.entry(id) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => {
                // A copy stays behind, so that the transfer does not look complete.
                let mut waiting = pending.lock();
                let found = waiting.get_mut(&id).filter(|found| !found.stat.path.is_empty());
                let found = found.ok_or_else(|| Error::protocol(format!("invalid file request {id}")))?;
                let placeholder = Wanted::new(found.kind, Stat::default(), Stat::default());
                entry.insert(std::mem::replace(found, placeholder))
            }
        };
        let incoming = match &mut wanted.incoming {
            Some(incoming) => incoming,
            none => none.insert(Incoming::create(root, &wanted.stat.path, options.hasher(&wanted.sent))?),
        };
        if !piece.is_empty() {
            incoming.write(&wanted.stat.path, &piece)?;
            continue;
        }
        incoming.place(root, &wanted.stat)?;
        if let Some(Wanted { kind, sent, incoming: Some(incoming), .. }) = open.remove(&id) {
            options.changed(kind, &sent.path, Some(&sent), Some(incoming.hasher.finish()));
        }
        let mut waiting = pending.lock();
        waiting.remove(&id);
        if waiting.is_empty() {
            complete.notify_one();
        }
    }
    Ok(())
}
