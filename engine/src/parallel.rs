//! Work on many small things that does not wait for anything.

use std::num::NonZero;

/// Fewer are done by the calling thread: threads cost more than that.
const WORTH_THREADS: usize = 1024;
/// Threads beyond this gain little.
const MAX_THREADS: usize = 8;

/// What `work` makes of each, in order; by several threads if there are many. Returns when all is done.
pub(crate) fn map<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get).min(MAX_THREADS);
    if items.len() < WORTH_THREADS || threads == 1 {
        return items.iter().map(work).collect();
    }
    let work = &work;
    std::thread::scope(|scope| {
        let mut parts = items.chunks(items.len().div_ceil(threads));
        let own = parts.next().unwrap_or_default();
        let others: Vec<_> =
            parts.map(|part| scope.spawn(move || part.iter().map(work).collect::<Vec<_>>())).collect();
        let mut all = Vec::with_capacity(items.len());
        all.extend(own.iter().map(work));
        for other in others {
            match other.join() {
                Ok(done) => all.extend(done),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        all
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_done_once_and_in_order() {
        for count in [0, 1, WORTH_THREADS - 1, WORTH_THREADS, 3 * WORTH_THREADS + 1] {
            let items: Vec<usize> = (0..count).collect();
            assert_eq!(map(&items, |item| item * 2), items.iter().map(|item| item * 2).collect::<Vec<_>>());
        }
    }
}
