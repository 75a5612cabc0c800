use std::os::fd::OwnedFd;

use kiln_executor::{Output, ProcessIo};
use kiln_runtime::watch;
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, Interest};
use tokio::process::Child;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::output::{feed, pump};

/// How much of a terminal is read or written at a time.
const CHUNK: usize = 8 * 1024;

/// The streams of a process, being handed on.
pub(crate) struct Pumps {
    outputs: JoinSet<()>,
    /// Ends with this value: nobody reads any more.
    input: JoinSet<()>,
    signals: Option<mpsc::Receiver<i32>>,
}

impl Pumps {
    /// Those of a child that is connected by pipes.
    pub(crate) fn of_child(child: &mut Child, io: ProcessIo) -> Self {
        Self::start(child.stdin.take(), child.stdout.take(), child.stderr.take(), io)
    }

    /// Those of a process at the other end of pipes.
    pub(crate) fn start(
        stdin: Option<impl AsyncWrite + Unpin + Send + 'static>,
        stdout: Option<impl AsyncRead + Unpin + Send + 'static>,
        stderr: Option<impl AsyncRead + Unpin + Send + 'static>,
        io: ProcessIo,
    ) -> Self {
        let (mut outputs, mut input) = (JoinSet::new(), JoinSet::new());
        if let Some(stdout) = stdout {
            outputs.spawn(pump(stdout, io.output.clone(), Output::Stdout));
        }
        if let Some(stderr) = stderr {
            outputs.spawn(pump(stderr, io.output, Output::Stderr));
        }
        if let (Some(source), Some(stdin)) = (io.stdin, stdin) {
            input.spawn(feed(source, stdin));
        }
        Self { outputs, input, signals: io.signals }
    }

    /// Those of a process with a terminal, which is yet to come.
    pub(crate) fn without_streams(signals: Option<mpsc::Receiver<i32>>) -> Self {
        Self { outputs: JoinSet::new(), input: JoinSet::new(), signals }
    }

    /// Goes on with the outer end of a terminal.
    pub(crate) fn add_terminal(&mut self, main: [OwnedFd; 2], io: TerminalIo) -> std::io::Result<()> {
        let [reading, writing] = main;
        rustix::io::ioctl_fionbio(&reading, true)?;
        let reading = watch(reading, Interest::READABLE)?;
        self.outputs.spawn(read_terminal(reading, io.output));
        if let Some(mut source) = io.stdin {
            let writing = watch(writing, Interest::WRITABLE)?;
            self.input.spawn(async move {
                let mut buffer = vec![0; CHUNK];
                while let Ok(count @ 1..) = source.read(&mut buffer).await {
                    let mut rest = buffer.get(..count).unwrap_or_default();
                    while !rest.is_empty() {
                        let write = |fd: &OwnedFd| Ok(rustix::io::write(fd, rest)?);
                        let Ok(written) = writing.async_io(Interest::WRITABLE, write).await else { return };
                        rest = rest.get(written..).unwrap_or_default();
                    }
                }
            });
        }
        Ok(())
    }

    /// The next signal to hand on; `None` is no signal and may come again and again.
    pub(crate) async fn signal(&mut self) -> Option<i32> {
        match &mut self.signals {
            Some(signals) => match signals.recv().await {
                Some(signal) => Some(signal),
                None => {
                    self.signals = None;
                    std::future::pending().await
                }
            },
            None => std::future::pending().await,
        }
    }

    pub(crate) async fn finish(&mut self) {
        while self.outputs.join_next().await.is_some() {}
    }
}

/// What the user's side of a terminal is connected to.
pub(crate) struct TerminalIo {
    pub(crate) stdin: Option<std::pin::Pin<Box<dyn AsyncRead + Send>>>,
    pub(crate) output: mpsc::Sender<Output>,
}

async fn read_terminal(main: AsyncFd<OwnedFd>, output: mpsc::Sender<Output>) {
    let mut buffer = vec![0; CHUNK];
    loop {
        let read = |fd: &OwnedFd| match rustix::io::read(fd, &mut buffer) {
            // Nobody has the other end open any more.
            Err(Errno::IO) => Ok(0),
            read => Ok(read?),
        };
        match main.async_io(Interest::READABLE, read).await {
            Ok(0) | Err(_) => return,
            Ok(count) => {
                let bytes = bytes::Bytes::copy_from_slice(buffer.get(..count).unwrap_or_default());
                let _ = output.send(Output::Stdout(bytes)).await;
            }
        }
    }
}
