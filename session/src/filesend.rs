//! Results of a build, sent to the client.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _};
use http::uri::PathAndQuery;
use kiln_api::filesync::BytesMessage;
use kiln_api::fsutil::Packet;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{AsciiMetadataKey, MetadataMap};
use tonic::{Code, Request};
use tonic_prost::ProstCodec;

use crate::error::{Error, Result};
use crate::filesync::{PACKETS_QUEUED, finish, messages};
use crate::fsutil::{self, Tree};
use crate::headers;
use crate::sessions::Session;
use crate::wire::{MAX_MESSAGE, message_to_wire};

pub(crate) const DIFF_COPY: &str = "/moby.filesync.v1.FileSend/DiffCopy";
pub(crate) const EXPORTER_ID: &str = "buildkit-attachable-exporter-id";
pub(crate) const EXPORTER_METADATA: &str = "exporter-md-";
pub(crate) const MULTI_PLATFORM: &str = "buildkit-exporter-multi-platform";
/// Bytes of a file in one message. Clients take up to 4 MiB.
const CHUNK: usize = 1 << 20;
/// Messages of a file on their way out. The writer waits while there are more.
const CHUNKS_QUEUED: usize = 4;

/// What became of something that was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// The client took it.
    Taken,
    /// The client has it already and wants nothing.
    Skipped,
}

/// Sends a tree to the directory that the client wants the results of an exporter in.
///
/// `all_platforms` says that this one transfer is all there is of the result.
///
/// # Errors
/// [`Error::Unsupported`] if the client takes nothing, else as [`fsutil::send`].
///
/// # Cancel safety
/// As [`fsutil::send`].
pub async fn send_dir(
    session: &Session,
    exporter: usize,
    tree: Arc<dyn Tree>,
    all_platforms: bool,
) -> Result<Sent> {
    session.require(DIFF_COPY)?;
    let (outgoing, packets) = mpsc::channel(PACKETS_QUEUED);
    let mut call = Request::new(ReceiverStream::new(packets).map(message_to_wire));
    set_exporter(call.metadata_mut(), exporter)?;
    if all_platforms {
        call.metadata_mut().insert(MULTI_PLATFORM, headers::parse("1")?);
    }
    let channel = session.channel();
    // The client answers only once it has packets, so the answer is waited for while they are sent.
    let answer = async move {
        let mut grpc = tonic::client::Grpc::new(channel).max_decoding_message_size(MAX_MESSAGE);
        grpc.ready().await.map_err(unreachable_client)?;
        let codec = ProstCodec::<Packet, Packet>::default();
        let response = grpc.streaming(call, PathAndQuery::from_static(DIFF_COPY), codec).await?;
        Ok::<_, Error>(messages(response.into_inner()))
    };
    let mut incoming = answer.into_stream().try_flatten().boxed();
    let outcome = fsutil::send(tree, &mut incoming, outgoing).await;
    sent(finish(&mut incoming, outcome).await)
}

fn sent(outcome: Result<()>) -> Result<Sent> {
    match outcome {
        Ok(()) => Ok(Sent::Taken),
        Err(Error::Call { status }) if status.code() == Code::AlreadyExists => Ok(Sent::Skipped),
        Err(error) => Err(error),
    }
}

fn set_exporter(metadata: &mut MetadataMap, exporter: usize) -> Result<()> {
    metadata.insert(EXPORTER_ID, headers::parse(&exporter.to_string())?);
    Ok(())
}

fn unreachable_client(error: hyper::Error) -> Error {
    tonic::Status::unavailable(error.to_string()).into()
}

/// Starts sending a file to where the client wants the result of an exporter. `metadata` is shown to the client.
///
/// # Errors
/// [`Error::Unsupported`] if the client takes nothing, [`Error::Protocol`] for metadata that cannot be sent.
pub fn file_sink(
    session: &Session,
    exporter: usize,
    metadata: &BTreeMap<String, String>,
) -> Result<FileSink> {
    session.require(DIFF_COPY)?;
    let (chunks, queue) = mpsc::channel::<Bytes>(CHUNKS_QUEUED);
    let mut call = Request::new(ReceiverStream::new(queue).map(|data| BytesMessage { data }));
    set_exporter(call.metadata_mut(), exporter)?;
    for (key, value) in metadata {
        let name = format!("{EXPORTER_METADATA}{}", key.to_ascii_lowercase());
        let name = AsciiMetadataKey::from_bytes(name.as_bytes())
            .map_err(|_| Error::protocol(format!("invalid metadata key {key:?}")))?;
        call.metadata_mut().insert(name, headers::parse(value)?);
    }
    let channel = session.channel();
    let answer = async move {
        let mut grpc = tonic::client::Grpc::new(channel).max_decoding_message_size(MAX_MESSAGE);
        grpc.ready().await.map_err(unreachable_client)?;
        let codec = ProstCodec::<BytesMessage, BytesMessage>::default();
        let response = grpc.streaming(call, PathAndQuery::from_static(DIFF_COPY), codec).await?;
        let mut answers = response.into_inner();
        while answers.message().await?.is_some() {}
        Ok(())
    };
    Ok(FileSink { chunks: Some(chunks), answer: Some(Box::pin(answer)), outcome: None })
}

/// Sends what `write` writes, in a blocking thread, to where the client wants the result of an exporter.
///
/// # Errors
/// As [`file_sink`], what the client answered, else what `write` returned.
pub async fn send_file<T, F>(
    session: &Session,
    exporter: usize,
    metadata: &BTreeMap<String, String>,
    write: F,
) -> Result<(Sent, Option<T>)>
where
    F: FnOnce(&mut FileWriter) -> io::Result<T> + Send + 'static,
    T: Send + 'static,
{
    let mut sink = file_sink(session, exporter, metadata)?;
    let mut writer = sink.writer();
    let writing = tokio::task::spawn_blocking(move || {
        let written = write(&mut writer).and_then(|value| writer.flush().map(|()| value));
        (written, writer)
    });
    let mut finishing = std::pin::pin!(sink.finish());
    let mut writing = std::pin::pin!(writing);
    let (written, writer) = tokio::select! {
        biased;
        answered = &mut finishing => {
            // Before the end of the file: the client wants nothing, or fails.
            let sent = answered?;
            let (written, _) = writing.await.map_err(Error::task)?;
            return Ok((sent, written.ok()));
        }
        written = &mut writing => written.map_err(Error::task)?,
    };
    match written {
        Ok(value) => {
            drop(writer);
            finishing.await.map(|sent| (sent, Some(value)))
        }
        // The client has stopped listening, and says why.
        Err(source) if source.kind() == io::ErrorKind::BrokenPipe => match finishing.await? {
            Sent::Skipped => Ok((Sent::Skipped, None)),
            Sent::Taken => Err(Error::Write { path: "export".to_owned(), source }),
        },
        // The call is dropped before the writer, so that what is there does not look like a whole file.
        Err(source) => Err(Error::Write { path: "export".to_owned(), source }),
    }
}

/// The sending end of a file. Dropped before [`finish`](Self::finish), it cuts the transfer off.
pub struct FileSink {
    // Dropped first: a call that is cut off must not look like a whole file.
    answer: Option<BoxFuture<'static, Result<()>>>,
    chunks: Option<mpsc::Sender<Bytes>>,
    outcome: Option<Result<()>>,
}

impl std::fmt::Debug for FileSink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileSink").field("ended", &self.outcome.is_some()).finish_non_exhaustive()
    }
}

impl FileSink {
    /// Sends bytes. Once the client has answered nothing is sent any more, and [`finish`](Self::finish) tells why.
    pub async fn write(&mut self, mut data: Bytes) {
        while !data.is_empty() {
            let chunk = data.split_to(data.len().min(CHUNK));
            let (Some(chunks), Some(answer)) = (&self.chunks, &mut self.answer) else { return };
            tokio::select! {
                biased;
                outcome = answer => {
                    self.answer = None;
                    self.chunks = None;
                    self.outcome = Some(outcome);
                }
                queued = chunks.send(chunk) => {
                    if queued.is_err() {
                        self.chunks = None;
                    }
                }
            }
        }
    }

    /// Takes the sending end, for a blocking thread; what the sink itself is given after that goes nowhere.
    pub fn writer(&mut self) -> FileWriter {
        FileWriter { chunks: self.chunks.take(), buffer: BytesMut::new() }
    }

    /// Ends the file, once all writers are dropped, and waits for the client.
    ///
    /// # Errors
    /// What the client answered.
    pub async fn finish(mut self) -> Result<Sent> {
        self.chunks = None;
        let outcome = match (self.outcome.take(), self.answer.take()) {
            (Some(outcome), _) => outcome,
            (None, Some(answer)) => answer.await,
            (None, None) => Err(Error::Interrupted),
        };
        sent(outcome)
    }
}

/// Writes into a [`FileSink`] from a blocking thread. What is not flushed is lost.
#[derive(Debug)]
pub struct FileWriter {
    chunks: Option<mpsc::Sender<Bytes>>,
    buffer: BytesMut,
}

impl Write for FileWriter {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let taken = data.get(..data.len().min(CHUNK - self.buffer.len())).unwrap_or_default();
        self.buffer.extend_from_slice(taken);
        if self.buffer.len() == CHUNK {
            self.flush()?;
        }
        Ok(taken.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let chunk = self.buffer.split().freeze();
        if chunk.is_empty() {
            return Ok(());
        }
        let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
        self.chunks.as_ref().ok_or_else(gone)?.blocking_send(chunk).map_err(|_| gone())
    }
}
