use std::collections::VecDeque;
use std::io::Read;
use std::ops::ControlFlow;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::error::{Error, Result};
use crate::fsutil::message::Message;
use crate::fsutil::tree::Tree;

/// How many files are sent at once, interleaved.
const CONCURRENT_FILES: usize = 4;
/// Bytes of content in a packet. The reference sends 32 KiB; receivers take whatever fits a gRPC message.
const CHUNK: u64 = 128 * 1024;

/// Sends `tree`: lists it, answers requests, and returns once the peer has confirmed.
///
/// A file that cannot be read fails the transfer on both sides; the reference's receiver would get an empty file.
///
/// # Errors
/// What the disk, the patterns or the peer brought. The peer was told, if it still listened.
///
/// # Cancel safety
/// Dropping the future stops the transfer; blocking parts end at their next packet.
pub async fn send<S>(tree: Arc<dyn Tree>, incoming: S, outgoing: mpsc::Sender<Message>) -> Result<()>
where
    S: Stream<Item = Result<Message>> + Unpin + Send,
{
    let outcome = exchange(tree, incoming, &outgoing).await;
    if let Err(error) = &outcome
        && !matches!(error, Error::Peer { .. } | Error::Call { .. })
    {
        // Fails if the peer is gone, and then there is nobody to tell.
        let _told = outgoing.send(Message::Error(error.chain())).await;
    }
    outcome
}

async fn exchange<S>(tree: Arc<dyn Tree>, mut incoming: S, outgoing: &mpsc::Sender<Message>) -> Result<()>
where
    S: Stream<Item = Result<Message>> + Unpin + Send,
{
    let shared = Shared::new(tree);
    // Dropping the guard (also when this future is dropped) lets the blocking tasks end.
    let _guard = shared.closing();
    let mut tasks = JoinSet::new();
    {
        let (shared, outgoing) = (shared.0.clone(), outgoing.clone());
        tasks.spawn_blocking(move || list(&shared, &outgoing));
    }
    let mut workers = 0;
    loop {
        tokio::select! {
            biased;
            Some(ended) = tasks.join_next() => ended.map_err(Error::task)??,
            message = incoming.next() => match message {
                Some(Ok(Message::Request(id))) => {
                    shared.request(id)?;
                    if workers < CONCURRENT_FILES {
                        workers += 1;
                        let (shared, outgoing) = (shared.0.clone(), outgoing.clone());
                        tasks.spawn_blocking(move || serve(&shared, &outgoing));
                    }
                }
                Some(Ok(Message::Fin)) => {
                    outgoing.send(Message::Fin).await.map_err(|_| Error::Interrupted)?;
                    return Ok(());
                }
                Some(Ok(Message::Error(text))) => return Err(Error::Peer { role: "receiver", text }),
                Some(Ok(other)) => return Err(Error::protocol(format!("unexpected packet: {}", other.name()))),
                Some(Err(error)) => return Err(error),
                None => return Err(Error::Interrupted),
            },
        }
    }
}

/// What the listing, the file workers and the packet loop have in common.
struct Shared(Arc<Inner>);

struct Inner {
    tree: Arc<dyn Tree>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// By number in the listing: the path, while it can be asked for.
    listed: Vec<Option<String>>,
    requested: VecDeque<(u32, String)>,
    closed: bool,
}

struct Closing(Arc<Inner>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.changed.notify_all();
    }
}

impl Shared {
    fn new(tree: Arc<dyn Tree>) -> Self {
        Self(Arc::new(Inner { tree, state: Mutex::default(), changed: Condvar::new() }))
    }

    fn closing(&self) -> Closing {
        Closing(self.0.clone())
    }

    fn request(&self, id: u32) -> Result<()> {
        let mut state = self.0.lock();
        let entry = usize::try_from(id).ok().and_then(|index| state.listed.get_mut(index));
        let path =
            entry.and_then(Option::take).ok_or_else(|| Error::protocol(format!("invalid file id {id}")))?;
        state.requested.push_back((id, path));
        drop(state);
        self.0.changed.notify_one();
        Ok(())
    }
}

impl Inner {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self) -> Option<(u32, String)> {
        let mut state = self.lock();
        loop {
            if state.closed {
                return None;
            }
            if let Some(found) = state.requested.pop_front() {
                return Some(found);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn list(shared: &Inner, outgoing: &mpsc::Sender<Message>) -> Result<()> {
    shared.tree.list(&mut |stat| {
        let path = stat.has_content().then(|| stat.path.clone());
        {
            let mut state = shared.lock();
            if state.closed {
                return Ok(ControlFlow::Break(()));
            }
            // Before the stat goes out: it may be asked for at once.
            state.listed.push(path);
        }
        match outgoing.blocking_send(Message::Stat(Some(Box::new(stat)))) {
            Ok(()) => Ok(ControlFlow::Continue(())),
            Err(_) => Ok(ControlFlow::Break(())),
        }
    })?;
    // Fails only if nobody listens any more, which the packet loop sees for itself.
    let _ended = outgoing.blocking_send(Message::Stat(None));
    Ok(())
}

fn serve(shared: &Inner, outgoing: &mpsc::Sender<Message>) -> Result<()> {
    while let Some((id, path)) = shared.next() {
        let mut content = shared.tree.open(&path)?;
        // One byte more than a small file has, so that its end is seen with the first read.
        let chunk_size = content.size.saturating_add(1).min(CHUNK);
        loop {
            let chunk = read_chunk(&mut content.reader, chunk_size)
                .map_err(|source| Error::Read { path: path.clone(), source })?;
            let last = (chunk.len() as u64) < chunk_size;
            if !chunk.is_empty() && outgoing.blocking_send(Message::Data(id, chunk)).is_err() {
                return Ok(());
            }
            if last {
                break;
            }
        }
        if outgoing.blocking_send(Message::Data(id, Bytes::new())).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// Reads `size` bytes, fewer only at the end.
fn read_chunk(reader: &mut dyn Read, size: u64) -> std::io::Result<Bytes> {
    let mut buffer = Vec::with_capacity(usize::try_from(size).unwrap_or_default());
    reader.take(size).read_to_end(&mut buffer)?;
    Ok(Bytes::from(buffer))
}
