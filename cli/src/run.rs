//! A build with its progress on a terminal.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::time::{Duration, Instant};

use kiln_client::api::control::{
    StatusResponse, Vertex, VertexDifference, VertexLog, VertexReason, VertexStatus, VertexWarning,
};
use kiln_client::api::pb;
use kiln_client::{Client, SolveOptions, SolveOutcome};
use kiln_progress::{
    Difference, Display, Explanation, Log, Mode, Position, ProgressGroup, Range, Reason, SolveStatus,
    SourceInfo, Status, Timestamp, Warning,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};
use crate::excerpts::Excerpts;
use crate::go::timestamp;

/// Updates that wait for the terminal. The daemon is not read while there are more.
const UPDATES_QUEUED: usize = 64;
/// Time between drawings, unless `TTY_DISPLAY_RATE` says otherwise.
const REFRESH: Duration = Duration::from_millis(150);
/// Time that has to pass before news are drawn.
const LEAST: Duration = Duration::from_millis(100);
/// Environment variable: milliseconds between drawings.
const REFRESH_VARIABLE: &str = "TTY_DISPLAY_RATE";

/// A build to run.
#[derive(Debug)]
pub struct Build {
    /// What to build.
    pub options: SolveOptions,
    /// Where its progress is shown.
    pub display: Display,
    /// Where its progress is written down, one JSON object a line.
    pub trace: Option<File>,
    /// What is said in the end of why steps ran.
    pub explain: Explain,
    /// How warnings are shown in the end.
    pub warnings: Warnings,
}

/// How warnings are shown once a build has ended, on standard error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Warnings {
    /// Not again: the display had a line for each.
    #[default]
    No,
    /// Each with the lines that it is about.
    Excerpts,
}

/// What is said of why steps ran.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Explain {
    /// Nothing.
    #[default]
    No,
    /// Of each step that ran, on standard error.
    Runs,
    /// Of every step, on standard output.
    All,
}

impl Build {
    /// Builds and shows the progress.
    ///
    /// # Errors
    /// What the client says, and [`Error::Stopped`] if `stop` was cancelled first.
    ///
    /// # Cancel safety
    /// Dropping the future cancels the build; the display is then left as it is.
    pub async fn run(self, client: &Client, stop: &CancellationToken) -> Result<SolveOutcome> {
        let Self { options, display, trace, explain, warnings } = self;
        let shown = Shown { display, trace, explain, warnings };
        shown.during(stop, |progress| client.solve(options, progress)).await
    }

    /// Asks the frontend a question about its input, and shows the progress. Returns the metadata of its answer.
    ///
    /// # Errors
    /// What the client says, and [`Error::Stopped`] if `stop` was cancelled first.
    ///
    /// # Cancel safety
    /// Dropping the future withdraws the question; the display is then left as it is.
    pub async fn ask(self, client: &Client, stop: &CancellationToken) -> Result<BTreeMap<String, Vec<u8>>> {
        let Self { options, display, trace, explain, warnings } = self;
        let shown = Shown { display, trace, explain, warnings };
        shown.during(stop, |progress| client.ask(options, progress)).await
    }
}

/// Where the progress of something goes.
struct Shown {
    display: Display,
    trace: Option<File>,
    explain: Explain,
    warnings: Warnings,
}

impl Shown {
    /// Shows the progress of calls while they run.
    async fn during<T, F>(
        self,
        stop: &CancellationToken,
        calls: impl FnOnce(mpsc::Sender<StatusResponse>) -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<T, kiln_client::Error>>,
    {
        let (progress, updates) = mpsc::channel(UPDATES_QUEUED);
        // On a thread of its own: a terminal that does not read must not hold the session up.
        let handle = tokio::runtime::Handle::current();
        let showing = tokio::task::spawn_blocking(move || handle.block_on(show(self, updates)));
        let outcome = {
            let solving = calls(progress);
            tokio::select! {
                outcome = solving => outcome.map_err(Error::from),
                () = stop.cancelled() => {
                    Err(Error::Stopped { message: "failed to solve: Canceled: context canceled" })
                }
            }
            // Dropped here: the daemon is told to stop, and the display that there is no more.
        };
        // A display that failed (a closed terminal) does not fail the build.
        let _shown = showing.await;
        outcome
    }
}

/// Shows the progress of one build until `updates` end.
///
/// # Errors
/// Of the daemon; not of the display.
pub async fn follow(
    client: &Client,
    reference: &str,
    display: Display,
    stop: &CancellationToken,
) -> Result<(), kiln_client::Error> {
    let (progress, received) = mpsc::channel(UPDATES_QUEUED);
    let mut updates = client
        .control()
        .status(kiln_client::api::control::StatusRequest { r#ref: reference.to_owned() })
        .await?
        .into_inner();
    let receiving = async move {
        loop {
            let update = tokio::select! {
                update = updates.message() => update?,
                () = stop.cancelled() => None,
            };
            let Some(update) = update else { break };
            if progress.send(update).await.is_err() {
                break;
            }
        }
        // With this block the sender goes, and the display ends.
        Ok::<(), tonic::Status>(())
    };
    let shown = Shown { display, trace: None, explain: Explain::No, warnings: Warnings::No };
    let (outcome, ()) = tokio::join!(receiving, show(shown, received));
    Ok(outcome?)
}

async fn show(shown: Shown, mut updates: mpsc::Receiver<StatusResponse>) {
    let Shown { display, trace, explain, warnings } = shown;
    let mut excerpts = Excerpts::default();
    let mut explanation = Explanation::default();
    let refresh = std::env::var(REFRESH_VARIABLE).ok().and_then(|text| text.parse().ok());
    let refresh = refresh.filter(|ms| *ms > 0).map(Duration::from_millis);
    let mut ticks = tokio::time::interval(refresh.unwrap_or(REFRESH));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let least = refresh.unwrap_or(LEAST);
    let mut screen = Screen { display, pending: SolveStatus::default() };
    let mut trace = trace.map(|file| Display::to(Box::new(file), Mode::RawJson));
    let mut drawn: Option<Instant> = None;
    loop {
        tokio::select! {
            update = updates.recv() => {
                let Some(update) = update else { break };
                let update = solve_status(update);
                // Output that cannot be written is no reason to stop a build.
                let _written = trace.as_mut().map(|trace| trace.update(&update, Timestamp::now()));
                if warnings == Warnings::Excerpts {
                    excerpts.take(&update);
                }
                if explain != Explain::No {
                    explanation.take(&update);
                }
                screen.take(update);
                if drawn.is_none_or(|drawn| drawn.elapsed() >= least) {
                    screen.draw();
                    drawn = Some(Instant::now());
                    ticks.reset();
                }
            }
            _ = ticks.tick(), if screen.display.is_live() => {
                screen.draw();
                drawn = Some(Instant::now());
            }
        }
    }
    screen.flush();
    let _written = screen.display.finish(Timestamp::now());
    // A closed output is nobody's concern.
    let _written = excerpts.write(&mut std::io::stderr());
    let _written = match explain {
        Explain::No => Ok(()),
        Explain::Runs => explanation.write(&mut std::io::stderr(), false, Timestamp::now()),
        Explain::All => explanation.write(&mut std::io::stdout(), true, Timestamp::now()),
    };
}

/// A display that is not drawn for every update.
struct Screen {
    display: Display,
    /// Updates since the last drawing, as one.
    pending: SolveStatus,
}

impl Screen {
    fn take(&mut self, update: SolveStatus) {
        self.pending.vertexes.extend(update.vertexes);
        self.pending.statuses.extend(update.statuses);
        self.pending.logs.extend(update.logs);
        self.pending.warnings.extend(update.warnings);
        if !self.display.is_live() {
            self.flush();
        }
    }

    fn flush(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        if pending == SolveStatus::default() {
            return;
        }
        let _written = self.display.update(&pending, Timestamp::now());
    }

    fn draw(&mut self) {
        if self.display.is_live() {
            self.flush();
            let _written = self.display.tick(Timestamp::now());
        }
    }
}

/// A random name for a build.
pub fn random_id() -> String {
    const ALPHABET: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    (0..25).map(|_| char::from(ALPHABET[rand::random_range(0..ALPHABET.len())])).collect()
}

/// Prints a warning to standard error, as the reference's logger writes it.
pub fn warning(message: &str) {
    let mut now = Timestamp::now();
    now.nanos = 0;
    let (time, message) = (crate::go::timestamp_text(now), crate::go::quote(message));
    // A closed standard error is nobody's concern.
    let _written = writeln!(std::io::stderr(), "time=\"{time}\" level=warning msg={message}");
}

fn solve_status(update: StatusResponse) -> SolveStatus {
    SolveStatus {
        vertexes: update.vertexes.into_iter().map(vertex).collect(),
        statuses: update.statuses.into_iter().map(status).collect(),
        logs: update.logs.into_iter().map(log).collect(),
        warnings: update.warnings.into_iter().map(a_warning).collect(),
    }
}

fn vertex(vertex: Vertex) -> kiln_progress::Vertex {
    kiln_progress::Vertex {
        digest: vertex.digest,
        inputs: vertex.inputs,
        name: vertex.name,
        started: vertex.started.map(|t| timestamp(t.seconds, t.nanos)),
        completed: vertex.completed.map(|t| timestamp(t.seconds, t.nanos)),
        cached: vertex.cached,
        error: vertex.error,
        progress_group: vertex.progress_group.map(|group| ProgressGroup {
            id: group.id,
            name: group.name,
            weak: group.weak,
        }),
        reason: vertex.reason.map(reason),
    }
}

fn reason(reason: VertexReason) -> Reason {
    let count = |number: i32| usize::try_from(number).unwrap_or_default();
    let difference = |d: VertexDifference| Difference {
        kind: d.kind,
        name: d.name,
        was: d.was,
        now: d.now,
        hidden: d.hidden,
        input: count(d.input),
        anew: d.anew,
        path: d.path,
        what: d.what,
        further: count(d.further),
    };
    Reason {
        outcome: reason.outcome,
        record: reason.record,
        origin: reason.origin,
        by_content: reason.by_content,
        created: reason.created.map(|t| timestamp(t.seconds, t.nanos)),
        miss: reason.miss,
        nearest: reason.nearest,
        differences: reason.differences.into_iter().map(difference).collect(),
        further: count(reason.further),
        gone: reason.gone,
        gone_at: reason.gone_at.map(|t| timestamp(t.seconds, t.nanos)),
    }
}

fn status(status: VertexStatus) -> Status {
    Status {
        id: status.id,
        vertex: status.vertex,
        name: status.name,
        total: status.total,
        current: status.current,
        timestamp: status.timestamp.map(|t| timestamp(t.seconds, t.nanos)).unwrap_or_default(),
        started: status.started.map(|t| timestamp(t.seconds, t.nanos)),
        completed: status.completed.map(|t| timestamp(t.seconds, t.nanos)),
    }
}

fn log(log: VertexLog) -> Log {
    Log {
        vertex: log.vertex,
        stream: log.stream,
        data: log.msg.to_vec(),
        timestamp: log.timestamp.map(|t| timestamp(t.seconds, t.nanos)).unwrap_or_default(),
    }
}

fn a_warning(warning: VertexWarning) -> Warning {
    let position = |position: Option<pb::Position>| {
        position.map(|p| Position { line: p.line, character: p.character }).unwrap_or_default()
    };
    Warning {
        vertex: warning.vertex,
        level: warning.level,
        short: warning.short,
        detail: warning.detail,
        url: warning.url,
        source_info: warning.info.map(|info| SourceInfo {
            filename: info.filename,
            data: info.data,
            language: info.language,
        }),
        ranges: warning
            .ranges
            .into_iter()
            .map(|range| Range { start: position(range.start), end: position(range.end) })
            .collect(),
    }
}
