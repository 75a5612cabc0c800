//! Directories of the client, received by the daemon.

use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use kiln_api::filesync::file_sync_client::FileSyncClient;
use kiln_api::fsutil::Packet;
use kiln_rootdir::Root;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status};

use crate::error::{Error, Result};
use crate::fsutil::{self, Message, ReceiveOptions, Stats};
use crate::headers;
use crate::sessions::Session;
use crate::wire::{MAX_MESSAGE, message_from_wire, message_to_wire};

pub(crate) const DIFF_COPY: &str = "/moby.filesync.v1.FileSync/DiffCopy";
pub(crate) const DIR_NAME: &str = "dir-name";
pub(crate) const INCLUDE: &str = "include-patterns";
pub(crate) const EXCLUDE: &str = "exclude-patterns";
pub(crate) const FOLLOW: &str = "followpaths";
/// Packets on their way out. Whoever makes them waits while there are more.
pub(crate) const PACKETS_QUEUED: usize = 32;
/// How long a peer is given to take notice of our failure.
const FAREWELL: Duration = Duration::from_secs(1);

/// Which of the client's directories to receive, and what of it.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct DirRequest {
    /// The name that the client gave the directory.
    pub name: String,
    /// Patterns of what to receive; everything if there is none.
    pub include: Vec<String>,
    /// Patterns of what to leave out.
    pub exclude: Vec<String>,
    /// Paths to receive together with the links they lead through.
    pub follow_paths: Vec<String>,
}

impl DirRequest {
    /// Asks for all of a directory.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }
}

/// Makes `destination` the directory that the client of `session` has under this name.
///
/// # Errors
/// [`Error::NoLocalSources`] if the client offers none; [`Error::Call`] with code `NotFound` if it does not offer
/// this one; else as [`fsutil::receive`].
///
/// # Cancel safety
/// As [`fsutil::receive`].
pub async fn receive(
    session: &Session,
    request: &DirRequest,
    destination: Arc<Root>,
    options: ReceiveOptions,
) -> Result<Stats> {
    session.require(DIFF_COPY).map_err(|error| match error {
        Error::Unsupported { .. } => Error::NoLocalSources,
        error => error,
    })?;
    let (outgoing, packets) = mpsc::channel(PACKETS_QUEUED);
    let mut call = Request::new(ReceiverStream::new(packets).map(message_to_wire));
    let metadata = call.metadata_mut();
    headers::append(metadata, DIR_NAME, std::slice::from_ref(&request.name))?;
    headers::append(metadata, INCLUDE, &request.include)?;
    headers::append(metadata, EXCLUDE, &request.exclude)?;
    headers::append(metadata, FOLLOW, &request.follow_paths)?;
    let mut client = FileSyncClient::new(session.channel()).max_decoding_message_size(MAX_MESSAGE);
    let mut incoming = messages(client.diff_copy(call).await?.into_inner());
    let outcome = fsutil::receive(destination, options, &mut incoming, outgoing).await;
    finish(&mut incoming, outcome).await
}

/// Reads the rest of a stream, so that a call ends as its peer wants it to, and not by being cut off.
pub(crate) async fn finish<S, T>(incoming: &mut S, outcome: Result<T>) -> Result<T>
where
    S: Stream<Item = Result<Message>> + Unpin,
{
    let drain = async {
        while let Some(item) = incoming.next().await {
            // A message here is out of place, an error final.
            item?;
        }
        Ok(())
    };
    match outcome {
        Ok(value) => drain.await.map(|()| value),
        Err(error) => {
            if !matches!(error, Error::Call { .. }) {
                // What the peer still says changes nothing.
                let _rest = tokio::time::timeout(FAREWELL, drain).await;
            }
            Err(error)
        }
    }
}

pub(crate) fn messages<S>(packets: S) -> impl Stream<Item = Result<Message>> + Send + Unpin
where
    S: Stream<Item = std::result::Result<Packet, Status>> + Send + Unpin,
{
    packets.map(|packet| message_from_wire(packet?))
}
