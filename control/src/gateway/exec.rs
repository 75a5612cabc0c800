//! Processes in containers, over one stream of messages.
//!
//! The client starts each process with an init message. The process has started, writes, exits and is done, in this
//! order. What a process does ends it and not the stream; what the client does wrong ends the stream.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use kiln_api::errdetails::{self, Detail};
use kiln_api::gateway::exec_message::Input;
use kiln_api::gateway::{
    DoneMessage, ExecMessage, ExitMessage, FdMessage, InitMessage, ResizeMessage, SignalMessage,
    StartedMessage,
};
use kiln_api::{pb, rpc};
use kiln_engine::{BuildBridge, ContainerProcess, Error, Exit, Output, ProcessIo, ProcessPlace, WindowSize};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::io::StreamReader;
use tonic::{Code, Status};

use crate::errors;

/// Messages on their way to the client, and pieces of input on their way to a process. When one is full, whoever fills
/// it waits: a process for the client, or the client for a process.
const BUFFER: usize = 16;
/// Processes that may run on one stream at a time.
const MAX_PROCESSES: usize = 256;
/// The exit code of a process that never ran, or whose own is not known.
const UNKNOWN: u32 = 255;
const STDIN: u32 = 0;
const STDOUT: u32 = 1;
const STDERR: u32 = 2;

/// What the client gets.
pub(super) type Outgoing = mpsc::Sender<Result<ExecMessage, Status>>;
/// A piece of input.
type Piece = Result<Bytes, std::io::Error>;

/// Serves a stream until the client closes it and its processes have ended, or until the client has gone.
pub(super) async fn serve(
    bridge: BuildBridge,
    mut incoming: impl futures::Stream<Item = Result<ExecMessage, Status>> + Unpin,
    outgoing: Outgoing,
) {
    use futures::StreamExt as _;
    let mut stream =
        Stream { bridge, outgoing: outgoing.clone(), processes: HashMap::new(), running: JoinSet::new() };
    let ended = stream.bridge.clone();
    let mut is_open = true;
    while is_open || !stream.running.is_empty() {
        tokio::select! {
            () = outgoing.closed() => return,
            () = ended.ended() => {
                // A client that has not taken what came before has no use for this either.
                let _full = outgoing.try_send(Err(Status::cancelled("the build has ended")));
                return;
            }
            message = incoming.next(), if is_open => {
                let handled = match message {
                    None => {
                        // Nobody can write to them any more.
                        is_open = false;
                        stream.processes.clear();
                        Ok(())
                    }
                    Some(Ok(message)) => tokio::select! {
                        handled = stream.handle(message) => handled,
                        // A process may never take what it is sent.
                        () = outgoing.closed() => return,
                    },
                    Some(Err(status)) => Err(status),
                };
                if let Err(status) = handled {
                    let _gone = outgoing.send(Err(status)).await;
                    return;
                }
            }
            Some(ended) = stream.running.join_next() => {
                if let Ok(id) = ended {
                    stream.processes.remove(&id);
                }
            }
        }
    }
}

/// The processes of one stream. Dropped, they end.
struct Stream {
    bridge: BuildBridge,
    outgoing: Outgoing,
    processes: HashMap<String, Process>,
    running: JoinSet<String>,
}

/// What the client can tell a process.
struct Process {
    stdin: Option<mpsc::Sender<Piece>>,
    resize: mpsc::Sender<WindowSize>,
    signals: mpsc::Sender<i32>,
}

impl Stream {
    async fn handle(&mut self, message: ExecMessage) -> Result<(), Status> {
        let id = message.process_id;
        if id.is_empty() {
            return Err(Status::invalid_argument("ProcessID required"));
        }
        match message.input {
            Some(Input::Init(init)) => self.init(id, init),
            Some(Input::File(file)) => self.known(&id)?.write(file).await,
            Some(Input::Resize(size)) => self.known(&id)?.resize(size).await,
            Some(Input::Signal(signal)) => self.known(&id)?.signal(&signal).await,
            Some(Input::Started(_) | Input::Exit(_) | Input::Done(_)) | None => Ok(()),
        }
    }

    fn known(&mut self, id: &str) -> Result<&mut Process, Status> {
        self.processes
            .get_mut(id)
            .ok_or_else(|| Status::not_found(format!("IO for process {id:?} not found")))
    }

    fn init(&mut self, id: String, init: InitMessage) -> Result<(), Status> {
        if self.processes.contains_key(&id) {
            return Err(Status::already_exists(format!("Process {id} already exists")));
        }
        if self.processes.len() >= MAX_PROCESSES {
            let message = format!("a stream may have at most {MAX_PROCESSES} processes at a time");
            return Err(Status::resource_exhausted(message));
        }
        let container = self.bridge.container(&init.container_id).ok_or_else(|| {
            let id = init.container_id.as_str();
            Status::not_found(format!("container {id:?} previously released or not created"))
        })?;
        let security = pb::SecurityMode::try_from(init.security)
            .map_err(|_| Status::invalid_argument(format!("unknown security mode {}", init.security)))?;
        let mut process = ContainerProcess::default();
        process.meta = init.meta.unwrap_or_default();
        process.tty = init.tty;
        process.security = security;
        process.secret_env = init.secretenv;
        let fds: HashSet<u32> = init.fds.into_iter().collect();
        let ((resize, sizes), (signals, numbers)) = (mpsc::channel(BUFFER), mpsc::channel(BUFFER));
        let (output, chunks) = mpsc::channel(BUFFER);
        let mut io = ProcessIo::new(output);
        (io.resize, io.signals) = (Some(sizes), Some(numbers));
        let stdin = fds.contains(&STDIN).then(|| {
            let (stdin, pieces) = mpsc::channel::<Piece>(BUFFER);
            io.stdin = Some(Box::pin(StreamReader::new(ReceiverStream::new(pieces))));
            stdin
        });
        self.processes.insert(id.clone(), Process { stdin, resize, signals });
        let running = Running { id, fds, outgoing: self.outgoing.clone() };
        // Its place is taken here, so that processes have theirs in the order in which they were asked for.
        self.running.spawn(running.run(container.next_process(), process, io, chunks));
        Ok(())
    }
}

impl Process {
    async fn write(&mut self, file: FdMessage) -> Result<(), Status> {
        let unavailable = || Status::out_of_range(format!("fd {} unavailable to write", file.fd));
        let stdin = self.stdin.as_ref().filter(|_| file.fd == STDIN).ok_or_else(unavailable)?;
        // A process that reads no more does not mind what is sent, and neither does the stream.
        let _closed = if file.data.is_empty() { Ok(()) } else { stdin.send(Ok(file.data.clone())).await };
        if file.eof {
            self.stdin = None;
        }
        Ok(())
    }

    async fn resize(&self, size: ResizeMessage) -> Result<(), Status> {
        let number = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
        let _ended = self.resize.send(WindowSize { rows: number(size.rows), cols: number(size.cols) }).await;
        Ok(())
    }

    async fn signal(&self, signal: &SignalMessage) -> Result<(), Status> {
        let number = number(&signal.name)
            .ok_or_else(|| Status::invalid_argument(format!("Unknown signal {}", signal.name)))?;
        let _ended = self.signals.send(number).await;
        Ok(())
    }
}

/// A process that runs, and what it says to the client.
struct Running {
    id: String,
    fds: HashSet<u32>,
    outgoing: Outgoing,
}

impl Running {
    /// Runs it to its end; its id.
    async fn run(
        self,
        place: ProcessPlace,
        process: ContainerProcess,
        io: ProcessIo,
        mut chunks: mpsc::Receiver<Output>,
    ) -> String {
        let (started, is_started) = oneshot::channel();
        let running = place.run(process, io, started);
        let telling = async {
            // Dropped unsent, it never started, and the client is told so by its exit.
            let _unsent = is_started.await;
            self.send(Input::Started(StartedMessage {})).await;
            while let Some(chunk) = chunks.recv().await {
                let (fd, data) = match chunk {
                    Output::Stdout(data) => (STDOUT, data),
                    Output::Stderr(data) => (STDERR, data),
                };
                if self.fds.contains(&fd) {
                    self.send(Input::File(FdMessage { fd, eof: false, data })).await;
                }
            }
        };
        let (exit, ()) = tokio::join!(running, telling);
        for fd in [STDOUT, STDERR] {
            if self.fds.contains(&fd) {
                self.send(Input::File(FdMessage { fd, eof: true, data: Bytes::new() })).await;
            }
        }
        self.send(Input::Exit(exit_message(exit))).await;
        self.send(Input::Done(DoneMessage {})).await;
        self.id
    }

    /// A client that has gone is told nothing.
    async fn send(&self, input: Input) {
        let message = ExecMessage { process_id: self.id.clone(), input: Some(input) };
        let _gone = self.outgoing.send(Ok(message)).await;
    }
}

fn exit_message(exit: Result<Exit, Error>) -> ExitMessage {
    match exit {
        Ok(exit) if exit.code == 0 => ExitMessage { code: 0, error: None },
        Ok(exit) => {
            let code = u32::try_from(exit.code).unwrap_or(UNKNOWN);
            let error = rpc::Status {
                code: Code::Unknown.into(),
                message: format!("exit code: {code}"),
                details: vec![Detail::Exit { code }.to_any()],
            };
            ExitMessage { code, error: Some(error) }
        }
        Err(error) => {
            let status = errors::status(&error);
            let details = errdetails::details(&status);
            let error = rpc::Status {
                code: status.code().into(),
                message: status.message().to_owned(),
                details: details.iter().map(Detail::to_any).collect(),
            };
            ExitMessage { code: UNKNOWN, error: Some(error) }
        }
    }
}

/// The number of a signal by its name without `SIG`.
fn number(name: &str) -> Option<i32> {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
        "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
        "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    let name = match name {
        "IOT" => "ABRT",
        "CLD" => "CHLD",
        "POLL" => "IO",
        name => name,
    };
    let place = NAMES.iter().position(|known| *known == name)?;
    i32::try_from(place + 1).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_go_by_name() {
        for (name, want) in [("HUP", Some(1)), ("KILL", Some(9)), ("TERM", Some(15)), ("WINCH", Some(28))] {
            assert_eq!(number(name), want);
        }
        assert_eq!((number("SIGHUP"), number("hup"), number("IOT")), (None, None, Some(6)));
    }

    #[test]
    fn exits_are_told_with_their_codes() {
        let exit = |code| Ok(Exit { code, oom: false, samples: Default::default() });
        assert_eq!(exit_message(exit(0)), ExitMessage::default());
        let failed = exit_message(exit(3));
        assert_eq!((failed.code, failed.error.unwrap().message.as_str()), (3, "exit code: 3"));
        let unstarted = exit_message(Err(Error::request("no such file")));
        assert_eq!((unstarted.code, unstarted.error.unwrap().message.as_str()), (255, "no such file"));
    }
}
