use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use kiln_digest::Digest;
use kiln_rootdir::Root;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;

use crate::error::{Error, Result};
use crate::fsutil::content::{self, Pending};
use crate::fsutil::message::Message;
use crate::fsutil::plan::{self, Planned};
use crate::fsutil::stat::Stat;
use crate::fsutil::walk::MapStat;

/// Stats that wait to be compared. The peer is not read any further while there are more.
const STATS_QUEUED: usize = 256;
/// Pieces of content that wait to be written, up to a message each. The peer is not read while there are more.
const DATA_QUEUED: usize = 16;

/// When an entry that is there already counts as the listed one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Differ {
    /// When kind, size, modification time, mode, owner, device and link target agree.
    #[default]
    Metadata,
    /// Never: everything is asked for again.
    None,
}

/// How much a peer may send.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Limits {
    /// Entries of the listing.
    pub entries: u64,
    /// Bytes of content, of all files together.
    pub bytes: u64,
    /// Bytes of the extended attributes of one entry.
    pub xattr_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { entries: 1 << 24, bytes: 1 << 44, xattr_bytes: 1 << 20 }
    }
}

/// How much has come so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Entries listed.
    pub entries: u64,
    /// Bytes of content received.
    pub bytes: u64,
}

/// What a finished transfer did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Entries listed.
    pub entries: u64,
    /// Files whose content was asked for.
    pub requested: u64,
    /// Bytes of content received.
    pub bytes: u64,
}

/// What happened to an entry of the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// It was not there.
    Add,
    /// It was there and differed, or was taken to differ.
    Modify,
    /// It was there and is not listed; with everything below it.
    Delete,
}

/// One change of the destination, told once it is on disk.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Change {
    /// What happened.
    pub kind: ChangeKind,
    /// Where.
    pub path: String,
    /// The entry as it was sent, before `map`; none for a deletion.
    pub stat: Option<Stat>,
    /// sha256 of the seed and the content; none for deletions and hard links, which have their target's.
    pub digest: Option<Digest>,
}

/// Called with changes, from several threads. Changes of different entries come in no order.
pub type OnChange = Arc<dyn Fn(Change) + Send + Sync>;
/// Called now and then with what has come so far.
pub type OnProgress = Arc<dyn Fn(Progress) + Send + Sync>;
/// Gives the bytes to be hashed before an entry's content.
pub type Seed = Arc<dyn Fn(&Stat) -> Vec<u8> + Send + Sync>;

/// How [`receive`] writes a tree.
#[derive(Clone, Default)]
#[non_exhaustive]
pub struct ReceiveOptions {
    /// When an entry counts as changed.
    pub differ: Differ,
    /// Keep what is not listed, and compare nothing.
    pub merge: bool,
    /// Applied to each stat before it is compared; what it leaves out is taken as not listed.
    pub map: Option<MapStat>,
    /// Write the listing to `.fsutil-metadata`, and only entries that match these patterns (and their
    /// directories) to disk.
    pub metadata_only: Option<Vec<String>>,
    /// Told how far the transfer is.
    pub progress: Option<OnProgress>,
    /// Told what changes.
    pub changes: Option<OnChange>,
    /// Hashed before the content of an entry.
    pub seed: Option<Seed>,
    /// How much the peer may send.
    pub limits: Limits,
}

impl fmt::Debug for ReceiveOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReceiveOptions")
            .field("differ", &self.differ)
            .field("merge", &self.merge)
            .field("metadata_only", &self.metadata_only)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

impl ReceiveOptions {
    pub(crate) fn hasher(&self, stat: &Stat) -> kiln_digest::Hasher {
        let mut hasher = kiln_digest::Hasher::new();
        if let Some(seed) = &self.seed {
            hasher.update(&seed(stat));
        }
        hasher
    }

    pub(crate) fn changed(&self, kind: ChangeKind, path: &str, stat: Option<&Stat>, digest: Option<Digest>) {
        if let Some(changes) = &self.changes {
            changes(Change { kind, path: path.to_owned(), stat: stat.cloned(), digest });
        }
    }
}

/// Makes `destination` the tree that the peer lists, asking only for files that differ.
///
/// # Errors
/// [`Error::Peer`] if the peer failed, [`Error::Protocol`] or [`Error::Limit`] if it misbehaved, else what the
/// disk answered. The destination is then somewhere between before and after, each file being whole.
///
/// # Cancel safety
/// Dropping the future stops the transfer; a blocking part ends after the entry it is at.
pub async fn receive<S>(
    destination: Arc<Root>,
    options: ReceiveOptions,
    incoming: S,
    outgoing: mpsc::Sender<Message>,
) -> Result<Stats>
where
    S: Stream<Item = Result<Message>> + Unpin + Send,
{
    let mut tasks = JoinSet::new();
    let outcome = exchange(destination, Arc::new(options), incoming, &outgoing, &mut tasks).await;
    // After a failure the blocking parts see the end of their channels. Nothing is written once this returns.
    tasks.abort_all();
    while tasks.join_next().await.is_some() {}
    if let Err(error) = &outcome
        && !matches!(error, Error::Peer { .. } | Error::Call { .. })
    {
        // Fails if the peer is gone, and then there is nobody to tell.
        let _told = outgoing.send(Message::Error(error.chain())).await;
    }
    outcome
}

async fn exchange<S>(
    destination: Arc<Root>,
    options: Arc<ReceiveOptions>,
    mut incoming: S,
    outgoing: &mpsc::Sender<Message>,
    tasks: &mut JoinSet<Result<Option<Planned>>>,
) -> Result<Stats>
where
    S: Stream<Item = Result<Message>> + Unpin + Send,
{
    let mut stats = Stats::default();
    let pending = Arc::new(Pending::default());
    let complete = Arc::new(Notify::new());

    // Requests pass through a queue without bound (of four bytes for each file listed): a peer may take no more
    // of them until its data is read, and reading that must not wait for it in turn.
    let (request, mut requested) = mpsc::unbounded_channel::<u32>();
    let to_peer = outgoing.clone();
    tasks.spawn(async move {
        while let Some(id) = requested.recv().await {
            if to_peer.send(Message::Request(id)).await.is_err() {
                break;
            }
        }
        Ok(None)
    });
    let (stat_tx, stat_rx) = mpsc::channel::<Stat>(STATS_QUEUED);
    let mut stat_tx = Some(stat_tx);
    tasks.spawn_blocking({
        let (destination, options, pending) = (destination.clone(), options.clone(), pending.clone());
        move || plan::run(destination, options, stat_rx, pending, request).map(Some)
    });
    let (data_tx, data_rx) = mpsc::channel::<(u32, Bytes)>(DATA_QUEUED);
    tasks.spawn_blocking({
        let (destination, options) = (destination.clone(), options.clone());
        let (pending, complete) = (pending.clone(), complete.clone());
        move || content::run(&destination, &options, data_rx, &pending, &complete).map(|()| None)
    });

    let mut planned = None;
    loop {
        if let Some(found) = &planned
            && pending.is_empty()
        {
            let found: &Planned = found;
            stats.requested = found.requested;
            break;
        }
        tokio::select! {
            biased;
            Some(ended) = tasks.join_next() => {
                if let Some(found) = ended.map_err(Error::task)?? {
                    planned = Some(found);
                }
            }
            () = complete.notified() => {}
            message = incoming.next() => match message {
                Some(Ok(Message::Stat(Some(stat)))) => {
                    let stats_queue =
                        stat_tx.as_ref().ok_or_else(|| Error::protocol("entry after the end of the listing"))?;
                    stats.entries += 1;
                    check_stat(&stat, stats.entries, &options.limits)?;
                    // Fails if the planner did, and the next turn says how.
                    let _queued = stats_queue.send(*stat).await;
                }
                Some(Ok(Message::Stat(None))) => stat_tx = None,
                Some(Ok(Message::Data(id, data))) => {
                    stats.bytes += data.len() as u64;
                    if stats.bytes > options.limits.bytes {
                        return Err(Error::Limit { what: "bytes", limit: options.limits.bytes });
                    }
                    // As above.
                    let _queued = data_tx.send((id, data)).await;
                    if let Some(progress) = &options.progress {
                        progress(Progress { entries: stats.entries, bytes: stats.bytes });
                    }
                }
                Some(Ok(Message::Error(text))) => return Err(Error::Peer { role: "sender", text }),
                Some(Ok(other)) => return Err(Error::protocol(format!("unexpected packet: {}", other.name()))),
                Some(Err(error)) => return Err(error),
                None => return Err(Error::Interrupted),
            },
        }
    }
    drop(data_tx);
    if let Some(planned) = planned {
        tokio::task::spawn_blocking(move || planned.finish(&destination, &options))
            .await
            .map_err(Error::task)??;
    }
    outgoing.send(Message::Fin).await.map_err(|_| Error::Interrupted)?;
    loop {
        match incoming.next().await {
            Some(Ok(Message::Fin)) | None => return Ok(stats),
            Some(Ok(Message::Error(text))) => return Err(Error::Peer { role: "sender", text }),
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(error),
        }
    }
}

fn check_stat(stat: &Stat, entries: u64, limits: &Limits) -> Result<()> {
    if entries > limits.entries {
        return Err(Error::Limit { what: "entries", limit: limits.entries });
    }
    let xattr_bytes: usize = stat.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
    if xattr_bytes as u64 > limits.xattr_bytes {
        return Err(Error::Limit { what: "bytes of extended attributes", limit: limits.xattr_bytes });
    }
    Ok(())
}
