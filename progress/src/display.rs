use std::io::{self, Write};
use std::os::fd::AsFd;

use crate::plain::Plain;
use crate::rawjson;
use crate::status::{SolveStatus, Timestamp};
use crate::trace::Trace;
use crate::tty::Tty;

/// How progress is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The live screen on a terminal, plain lines elsewhere.
    Auto,
    /// Plain lines.
    Plain,
    /// The live screen.
    Tty,
    /// Nothing.
    Quiet,
    /// One JSON object a line.
    RawJson,
}

impl std::str::FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" | "" => Ok(Self::Auto),
            "plain" => Ok(Self::Plain),
            "tty" => Ok(Self::Tty),
            "quiet" => Ok(Self::Quiet),
            "rawjson" => Ok(Self::RawJson),
            other => Err(format!("invalid progress mode {other}")),
        }
    }
}

/// Whether `fd` is a terminal.
pub fn is_terminal(fd: impl AsFd) -> bool {
    rustix::termios::isatty(fd)
}

/// Writes the updates of one build.
pub struct Display {
    out: Box<dyn Write + Send>,
    kind: Kind,
    trace: Trace,
    size: Box<dyn Fn() -> (usize, usize) + Send>,
}

enum Kind {
    Plain(Plain),
    Tty(Tty),
    Quiet,
    RawJson,
}

impl std::fmt::Debug for Display {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Display").field("trace", &self.trace).finish_non_exhaustive()
    }
}

/// Environment of the live screen: colours are off with a non-empty `NO_COLOR`.
#[derive(Clone, Debug, Default)]
struct Look {
    no_color: bool,
    log_lines: Option<usize>,
}

impl Display {
    /// Progress on standard error, in `mode`.
    ///
    /// # Errors
    /// `failed to get console` for [`Mode::Tty`] where standard error is no terminal.
    pub fn stderr(mode: Mode) -> io::Result<Self> {
        let terminal = is_terminal(io::stderr());
        if mode == Mode::Tty && !terminal {
            return Err(io::Error::other("failed to get console"));
        }
        let mode = match mode {
            Mode::Auto if terminal => Mode::Tty,
            Mode::Auto => Mode::Plain,
            mode => mode,
        };
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        let log_lines =
            std::env::var("BUILDKIT_TTY_LOG_LINES").ok().filter(|_| !no_color).and_then(|v| v.parse().ok());
        let size = || {
            rustix::termios::tcgetwinsize(io::stderr())
                .map_or((80, 24), |s| (usize::from(s.ws_col).max(20), usize::from(s.ws_row).max(4)))
        };
        Ok(Self::new(Box::new(io::stderr()), mode, &Look { no_color, log_lines }, Box::new(size)))
    }

    /// Progress as plain lines or JSON lines into `out`.
    pub fn to(out: Box<dyn Write + Send>, mode: Mode) -> Self {
        Self::new(
            out,
            if mode == Mode::Auto { Mode::Plain } else { mode },
            &Look::default(),
            Box::new(|| (80, 24)),
        )
    }

    fn new(
        out: Box<dyn Write + Send>,
        mode: Mode,
        look: &Look,
        size: Box<dyn Fn() -> (usize, usize) + Send>,
    ) -> Self {
        let kind = match mode {
            Mode::Auto | Mode::Plain => Kind::Plain(Plain::default()),
            Mode::Tty => Kind::Tty(Tty::new(Timestamp::now(), !look.no_color, look.log_lines)),
            Mode::Quiet => Kind::Quiet,
            Mode::RawJson => Kind::RawJson,
        };
        Self { out, kind, trace: Trace::default(), size }
    }

    /// Whether the display wants [`Display::tick`] between updates.
    pub fn is_live(&self) -> bool {
        matches!(self.kind, Kind::Tty(_) | Kind::Plain(_))
    }

    /// Takes one update and writes what it changes. A live screen is drawn by [`Display::tick`] only.
    pub fn update(&mut self, status: &SolveStatus, now: Timestamp) -> io::Result<()> {
        match &mut self.kind {
            Kind::RawJson => return rawjson::write(&mut self.out, status),
            Kind::Quiet => return Ok(()),
            _ => {}
        }
        self.trace.update(status);
        match &mut self.kind {
            Kind::Plain(plain) => plain.update(&mut self.out, &mut self.trace, now),
            _ => Ok(()),
        }
    }

    /// Draws what time alone changes.
    pub fn tick(&mut self, now: Timestamp) -> io::Result<()> {
        match &mut self.kind {
            Kind::Plain(plain) => plain.update(&mut self.out, &mut self.trace, now),
            Kind::Tty(tty) => tty.update(&mut self.out, &mut self.trace, now, (self.size)(), false),
            Kind::Quiet | Kind::RawJson => Ok(()),
        }
    }

    /// The last drawing, and the logs of failed steps.
    pub fn finish(&mut self, now: Timestamp) -> io::Result<()> {
        match &mut self.kind {
            Kind::Plain(plain) => {
                plain.update(&mut self.out, &mut self.trace, now)?;
                plain.finish(&mut self.out, &self.trace)
            }
            Kind::Tty(tty) => {
                tty.update(&mut self.out, &mut self.trace, now, (self.size)(), true)?;
                Plain::default().finish(&mut self.out, &self.trace)
            }
            Kind::Quiet | Kind::RawJson => self.out.flush(),
        }
    }
}

#[cfg(test)]
mod tests;
