//! Limits of what one stream of a step may log.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;

/// Bytes a stream may log altogether.
const MAX_SIZE: u64 = 2 << 20;
/// Bytes a stream may log per second since the start, begun seconds counted whole.
const MAX_SPEED: u64 = 200 << 10;
/// How much of the end is kept for a step that fails after clipping began.
const TAIL: usize = 256 << 10;

/// The limits, `None` for off.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) size: Option<u64>,
    pub(crate) speed: Option<u64>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { size: Some(MAX_SIZE), speed: Some(MAX_SPEED) }
    }
}

/// What one stream has logged.
#[derive(Debug, Default)]
pub(crate) struct Clip {
    passed: u64,
    clipping: bool,
    clipped_ever: bool,
    tail: VecDeque<u8>,
}

impl Clip {
    /// Returns what may be sent of `data`, and the notice that has to follow it.
    pub(crate) fn pass(&mut self, limits: Limits, elapsed: Duration, data: &[u8]) -> (usize, Option<String>) {
        let seconds = elapsed.as_millis().div_ceil(1000).max(1);
        let speed =
            limits.speed.map(|speed| speed.saturating_mul(u64::try_from(seconds).unwrap_or(u64::MAX)));
        let (allowed, reason) = match (limits.size, speed) {
            (Some(size), Some(speed)) if size <= speed => (size, size_text(limits.size)),
            (Some(size), None) => (size, size_text(Some(size))),
            (_, Some(speed)) => (speed, format!("{}/s", size_text(limits.speed))),
            (None, None) => (u64::MAX, String::new()),
        };
        let room = usize::try_from(allowed.saturating_sub(self.passed)).unwrap_or(usize::MAX);
        let taken = data.len().min(room);
        self.passed += taken as u64;
        self.keep(data);
        if taken == data.len() {
            self.clipping = false;
            return (taken, None);
        }
        self.clipped_ever = true;
        let notice = (!self.clipping).then(|| format!("\n[output clipped, log limit {reason} reached]\n"));
        self.clipping = true;
        (taken, notice)
    }

    /// Returns the end of the stream, if any of it was withheld.
    pub(crate) fn tail(&mut self) -> Option<Bytes> {
        self.clipped_ever.then(|| Bytes::from(Vec::from(std::mem::take(&mut self.tail))))
    }

    fn keep(&mut self, data: &[u8]) {
        let data = &data[data.len().saturating_sub(TAIL)..];
        let excess = (self.tail.len() + data.len()).saturating_sub(TAIL);
        self.tail.drain(..excess);
        self.tail.extend(data);
    }
}

fn size_text(bytes: Option<u64>) -> String {
    match bytes.unwrap_or(0) {
        bytes if bytes >= 1 << 20 && bytes % (1 << 20) == 0 => format!("{}MiB", bytes >> 20),
        bytes if bytes >= 1 << 10 && bytes % (1 << 10) == 0 => format!("{}KiB", bytes >> 10),
        bytes => format!("{bytes}B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speed_then_size() {
        let mut clip = Clip::default();
        let limits = Limits::default();
        let block = vec![b'x'; 150 << 10];
        assert_eq!(clip.pass(limits, Duration::ZERO, &block), (150 << 10, None));
        let (taken, notice) = clip.pass(limits, Duration::from_millis(10), &block);
        assert_eq!(taken, 50 << 10);
        assert_eq!(notice.unwrap(), "\n[output clipped, log limit 200KiB/s reached]\n");
        assert_eq!(clip.pass(limits, Duration::from_millis(20), b"more"), (0, None));
        assert_eq!(clip.pass(limits, Duration::from_millis(1001), b"more"), (4, None));
        let (taken, notice) = clip.pass(limits, Duration::from_secs(100), &vec![b'y'; 4 << 20]);
        assert_eq!(taken as u64, MAX_SIZE - (200 << 10) - 4);
        assert_eq!(notice.unwrap(), "\n[output clipped, log limit 2MiB reached]\n");
        assert_eq!(clip.tail().unwrap().len(), TAIL);
    }

    #[test]
    fn no_tail_without_clipping() {
        let mut clip = Clip::default();
        clip.pass(Limits::default(), Duration::ZERO, b"abc");
        assert_eq!(clip.tail(), None);
    }
}
