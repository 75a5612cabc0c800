//! Blocking where one is allowed to block.

use std::cell::Cell;

thread_local! {
    static ALLOWED: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work` on this thread, which must not be one of a runtime's: what would be handed to another thread, and waited
/// for, is then done by this one. Small changes to small states cost less than a change of threads.
pub fn in_place<T>(work: impl FnOnce() -> T) -> T {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            ALLOWED.set(self.0);
        }
    }
    let _restore = Restore(ALLOWED.replace(true));
    work()
}

/// Whether the caller is within [`in_place`].
pub fn may_block() -> bool {
    ALLOWED.get()
}
