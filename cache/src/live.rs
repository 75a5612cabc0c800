//! Which records are in use in this process: the leases.
//!
//! A record is in use while a [`Ref`](crate::Ref) on it or on something above it is alive, while it is being loaded,
//! and while somebody writes to it. The collector takes nothing that is in use, and a record it has begun to take
//! can no longer be loaded.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use tokio::sync::Notify;

use crate::{record::RecordId, reference::Record};

#[derive(Debug, Default)]
struct Slot {
    record: Weak<Record>,
    /// Loads in progress.
    holds: usize,
    /// Somebody may write to it.
    exclusive: bool,
    /// The collector is taking it.
    doomed: bool,
}

impl Slot {
    fn idle(&self) -> bool {
        self.record.strong_count() == 0 && self.holds == 0 && !self.exclusive
    }
}

/// The table of records in use.
#[derive(Debug, Default)]
pub(crate) struct Live {
    slots: Mutex<HashMap<RecordId, Slot>>,
    released: Notify,
}

/// What asking for a record gave.
#[derive(Debug)]
pub(crate) enum Lease {
    /// It is in memory.
    Live(Arc<Record>),
    /// It is held and has to be loaded; followed by `publish` or `unhold`.
    Held,
    /// It is being written to or taken away.
    Refused,
}

impl Live {
    fn slots(&self) -> MutexGuard<'_, HashMap<RecordId, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn lease(&self, id: &RecordId) -> Lease {
        let mut slots = self.slots();
        let slot = slots.entry(id.clone()).or_default();
        if slot.doomed || slot.exclusive {
            return Lease::Refused;
        }
        if let Some(record) = slot.record.upgrade() {
            return Lease::Live(record);
        }
        slot.holds += 1;
        Lease::Held
    }

    /// Ends a hold. With a record it becomes the live one, unless another load was faster; returns the live one.
    pub(crate) fn unhold(&self, id: &RecordId, record: Option<&Arc<Record>>) -> Option<Arc<Record>> {
        let mut slots = self.slots();
        let slot = slots.get_mut(id)?;
        slot.holds = slot.holds.saturating_sub(1);
        let live = match (slot.record.upgrade(), record) {
            (Some(live), _) => Some(live),
            (None, Some(record)) => {
                slot.record = Arc::downgrade(record);
                Some(Arc::clone(record))
            }
            (None, None) => None,
        };
        if slot.idle() && !slot.doomed {
            slots.remove(id);
        }
        live
    }

    /// Enters a record made just now.
    pub(crate) fn enter(&self, record: &Arc<Record>) {
        let mut slots = self.slots();
        let slot = slots.entry(record.id().clone()).or_default();
        slot.record = Arc::downgrade(record);
        slot.exclusive = false;
    }

    /// The record, when it is in memory.
    pub(crate) fn peek(&self, id: &RecordId) -> Option<Arc<Record>> {
        self.slots().get(id)?.record.upgrade()
    }

    /// A [`Ref`](crate::Ref) has gone.
    pub(crate) fn leave(&self, id: &RecordId) {
        {
            let mut slots = self.slots();
            if slots.get(id).is_some_and(|slot| slot.idle() && !slot.doomed) {
                slots.remove(id);
            }
        }
        self.released.notify_waiters();
    }

    /// Records in use now.
    pub(crate) fn used(&self) -> Vec<RecordId> {
        self.slots().iter().filter(|(_, slot)| !slot.idle()).map(|(id, _)| id.clone()).collect()
    }

    /// Whether a record is in use now.
    pub(crate) fn is_used(&self, id: &RecordId) -> bool {
        self.slots().get(id).is_some_and(|slot| !slot.idle())
    }

    /// All records in memory.
    pub(crate) fn records(&self) -> Vec<Arc<Record>> {
        self.slots().values().filter_map(|slot| slot.record.upgrade()).collect()
    }

    /// Takes the right to write to a record; nobody else may use it meanwhile.
    pub(crate) fn take_exclusive(&self, id: &RecordId) -> bool {
        let mut slots = self.slots();
        let slot = slots.entry(id.clone()).or_default();
        if slot.doomed || !slot.idle() {
            return false;
        }
        slot.exclusive = true;
        true
    }

    pub(crate) fn leave_exclusive(&self, id: &RecordId) {
        {
            let mut slots = self.slots();
            if let Some(slot) = slots.get_mut(id) {
                slot.exclusive = false;
                if slot.idle() && !slot.doomed {
                    slots.remove(id);
                }
            }
        }
        self.released.notify_waiters();
    }

    /// Begins to take a record away; `false`: it is in use, or being taken already.
    pub(crate) fn doom(&self, id: &RecordId) -> bool {
        let mut slots = self.slots();
        let slot = slots.entry(id.clone()).or_default();
        if slot.doomed || !slot.idle() {
            return false;
        }
        slot.doomed = true;
        true
    }

    /// Ends what `doom` began.
    pub(crate) fn undoom(&self, id: &RecordId) {
        self.slots().remove(id);
    }

    /// Wakes up whenever something may have become free. Make the future before looking.
    pub(crate) fn released(&self) -> tokio::sync::futures::Notified<'_> {
        self.released.notified()
    }
}
