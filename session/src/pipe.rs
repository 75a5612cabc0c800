//! A stream of byte messages, used as a byte pipe.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt as _};
use tokio::io::{AsyncBufRead as _, AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio_util::io::StreamReader;
use tokio_util::sync::PollSender;
use tonic::Status;

/// Bytes in one message. Peers of the reference read up to as many at once.
const CHUNK: usize = 32 * 1024;
/// Messages on their way out. The writer waits while there are more.
const QUEUED: usize = 32;

/// Both directions of a stream of byte messages. Dropped, or shut down, it ends its direction.
pub struct Pipe {
    read: StreamReader<BoxStream<'static, io::Result<Bytes>>, Bytes>,
    write: PollSender<Bytes>,
}

impl Pipe {
    /// Reads from `incoming`; what is written comes out of the returned receiver.
    pub fn new<S>(incoming: S) -> (Self, mpsc::Receiver<Bytes>)
    where
        S: Stream<Item = Result<Bytes, Status>> + Send + 'static,
    {
        let (sender, receiver) = mpsc::channel(QUEUED);
        let incoming = incoming.map(|item| item.map_err(io::Error::other)).boxed();
        (Self { read: StreamReader::new(incoming), write: PollSender::new(sender) }, receiver)
    }
}

impl std::fmt::Debug for Pipe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pipe").finish_non_exhaustive()
    }
}

impl AsyncRead for Pipe {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let ready = std::task::ready!(Pin::new(&mut self.read).poll_fill_buf(cx))?;
        let count = ready.len().min(buffer.remaining());
        buffer.put_slice(ready.get(..count).unwrap_or_default());
        Pin::new(&mut self.read).consume(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let closed = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        std::task::ready!(self.write.poll_reserve(cx)).map_err(closed)?;
        let chunk = data.get(..data.len().min(CHUNK)).unwrap_or_default();
        self.write
            .send_item(Bytes::copy_from_slice(chunk))
            .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Poll::Ready(Ok(chunk.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.write.close();
        Poll::Ready(Ok(()))
    }
}
