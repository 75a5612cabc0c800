//! Which namespaces are held ready. Knows no plugins and no clock.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// After this long without use, namespaces beyond the number that is to be ready are given up.
const IDLE: Duration = Duration::from_secs(5 * 60);

/// Namespaces that nobody uses, the one that was used last at the back.
#[derive(Debug)]
pub(crate) struct Pool<T> {
    ready: VecDeque<(T, Instant)>,
    /// How many are to be ready, used or not.
    target: usize,
}

impl<T> Pool<T> {
    pub(crate) fn new(target: usize) -> Self {
        Self { ready: VecDeque::new(), target }
    }

    /// The one that was used last: it is the most likely to be warm.
    pub(crate) fn take(&mut self) -> Option<T> {
        self.ready.pop_back().map(|(one, _)| one)
    }

    pub(crate) fn put(&mut self, one: T, now: Instant) {
        self.ready.push_back((one, now));
    }

    /// Whether one more is to be made.
    pub(crate) fn wants_more(&self) -> bool {
        self.ready.len() < self.target
    }

    /// Takes out what is to be given up.
    pub(crate) fn expired(&mut self, now: Instant) -> Vec<T> {
        let mut expired = Vec::new();
        while self.next_expiry().is_some_and(|at| at <= now) {
            expired.extend(self.ready.pop_front().map(|(one, _)| one));
        }
        expired
    }

    /// When something is to be given up next.
    pub(crate) fn next_expiry(&self) -> Option<Instant> {
        let (_, since) = self.ready.front().filter(|_| self.ready.len() > self.target)?;
        Some(*since + IDLE)
    }

    pub(crate) fn drain(&mut self) -> Vec<T> {
        self.ready.drain(..).map(|(one, _)| one).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_as_wanted_stay() {
        let start = Instant::now();
        let mut pool = Pool::new(1);
        assert!(pool.wants_more());
        for (one, second) in [("a", 0), ("b", 1), ("c", 2)] {
            pool.put(one, start + Duration::from_secs(second));
        }
        assert!(!pool.wants_more());
        assert_eq!(pool.next_expiry(), Some(start + IDLE));
        assert_eq!(pool.expired(start + IDLE - Duration::from_secs(1)), Vec::<&str>::new());
        assert_eq!(pool.expired(start + IDLE), ["a"]);
        assert_eq!(pool.expired(start + IDLE * 9), ["b"]);
        assert_eq!((pool.next_expiry(), pool.take(), pool.take()), (None, Some("c"), None));
    }
}
