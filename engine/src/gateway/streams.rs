//! The standard streams of a frontend: a connection, and what it says on the side.

use std::collections::VecDeque;

use kiln_executor::{Output, ProcessIo};
use tokio::io::{AsyncWriteExt as _, DuplexStream, WriteHalf};
use tokio::sync::mpsc;

/// Bytes on their way between the process and the server, each way.
const BUFFER: usize = 64 * 1024;
/// Chunks of output on their way; a full channel makes the process wait.
const CHUNKS: usize = 16;
/// Bytes of standard error that are kept for an error's text.
const LAST_WORDS: usize = 1024;
/// Bytes of standard error that one run may write to the daemon's log.
const MAX_LOGGED: usize = 64 * 1024;

/// The near end of a frontend's output.
pub(super) struct Streams {
    image: String,
    chunks: mpsc::Receiver<Output>,
    connection: Option<WriteHalf<DuplexStream>>,
    last: VecDeque<u8>,
    logged: usize,
}

impl Streams {
    /// Streams for a process of `image`, what to start it with, and the server's end of the connection.
    pub(super) fn new(image: &str) -> (Self, ProcessIo, DuplexStream) {
        let (server, process) = tokio::io::duplex(BUFFER);
        let (stdin, connection) = tokio::io::split(process);
        let (output, chunks) = mpsc::channel(CHUNKS);
        let mut io = ProcessIo::new(output);
        io.stdin = Some(Box::pin(stdin));
        let (image, connection) = (image.to_owned(), Some(connection));
        (Self { image, chunks, connection, last: VecDeque::new(), logged: 0 }, io, server)
    }

    /// Hands on what the process writes until it has ended.
    pub(super) async fn pump(&mut self) {
        while let Some(chunk) = self.chunks.recv().await {
            match chunk {
                Output::Stdout(data) => {
                    // A server that has gone reads no more; the process is not held up by that.
                    if let Some(connection) = &mut self.connection
                        && connection.write_all(&data).await.is_err()
                    {
                        self.connection = None;
                    }
                }
                Output::Stderr(data) => self.hear(&data),
            }
        }
        if let Some(mut connection) = self.connection.take() {
            let _gone = connection.shutdown().await;
        }
    }

    /// The end of what the process wrote on standard error, without what could steer a terminal.
    pub(super) fn last_words(&self) -> String {
        let bytes: Vec<u8> = self.last.iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        let text: String = text.chars().map(|c| if c == '\n' || !c.is_control() { c } else { ' ' }).collect();
        text.trim().to_owned()
    }

    fn hear(&mut self, data: &[u8]) {
        let kept = data.get(data.len().saturating_sub(LAST_WORDS)..).unwrap_or_default();
        self.last.extend(kept);
        let excess = self.last.len().saturating_sub(LAST_WORDS);
        self.last.drain(..excess);
        if self.logged < MAX_LOGGED {
            self.logged += data.len();
            let shown = data.get(..data.len().min(MAX_LOGGED)).unwrap_or_default();
            tracing::info!(image = self.image, output = %String::from_utf8_lossy(shown).escape_debug(), "frontend");
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[tokio::test]
    async fn output_goes_to_the_server_and_errors_are_remembered() {
        let (mut streams, io, mut server) = Streams::new("x");
        let write = async {
            for n in 0..100 {
                io.output
                    .send(Output::Stderr(Bytes::from(format!("{n:04} {}\n", "e".repeat(100)))))
                    .await
                    .unwrap();
            }
            io.output.send(Output::Stdout(Bytes::from_static(b"out"))).await.unwrap();
            io.output.send(Output::Stderr(Bytes::from_static(b"\x1b[31mlast\n"))).await.unwrap();
            drop(io);
        };
        let mut read = Vec::new();
        let (_, (), got) = tokio::join!(streams.pump(), write, server.read_to_end(&mut read));
        got.unwrap();
        assert_eq!(read, b"out");
        let words = streams.last_words();
        assert!(words.ends_with("\n [31mlast") && words.len() <= LAST_WORDS, "{words:?}");
    }

    #[tokio::test]
    async fn a_server_that_has_gone_does_not_hold_up_the_process() {
        let (mut streams, io, server) = Streams::new("x");
        drop(server);
        let write = async {
            for _ in 0..100 {
                io.output.send(Output::Stdout(Bytes::from(vec![0; 4096]))).await.unwrap();
            }
            drop(io);
        };
        tokio::join!(streams.pump(), write);
    }
}
