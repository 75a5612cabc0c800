use bytes::{Bytes, BytesMut};
use kiln_executor::Output;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;

/// How much is read at a time: the default size of a pipe.
const CHUNK: usize = 64 * 1024;

/// Hands on what a pipe gives until its end. Without a receiver it is thrown away, so that the process goes on.
pub(crate) async fn pump(
    mut pipe: impl AsyncRead + Unpin,
    output: mpsc::Sender<Output>,
    wrap: fn(Bytes) -> Output,
) {
    let mut buffer = BytesMut::new();
    loop {
        // Small chunks leave the buffer where it is, so that a line at a time does not cost 64 KiB each.
        if buffer.capacity() < CHUNK / 8 {
            buffer.reserve(CHUNK);
        }
        match pipe.read_buf(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {
                let _ = output.send(wrap(buffer.split().freeze())).await;
            }
        }
    }
}

/// Feeds a process until the input ends or the process stops reading.
pub(crate) async fn feed(mut input: impl AsyncRead + Unpin, mut pipe: impl AsyncWrite + Unpin) {
    let _ = tokio::io::copy(&mut input, &mut pipe).await;
    let _ = pipe.shutdown().await;
}
