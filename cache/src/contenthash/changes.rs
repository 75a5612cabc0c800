//! Change events of a received context.

use std::sync::{Mutex, PoisonError};

use kiln_digest::Digest;

use super::{
    header::{ContentHeader, EntryKind},
    tree::{Entry, Tree, key_of},
};
use crate::{Error, Result};

/// What happened to one path of a received context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContentChange {
    /// It is new or other than before.
    Entry {
        /// Its metadata.
        header: ContentHeader,
        /// For a regular file: what [`ContentHeader::hasher`] gave after it took the bytes. `None`: read from disk
        /// when it is needed.
        digest: Option<Digest>,
    },
    /// It is another name of a file that was told before.
    HardLink {
        /// The other name, relative to the root.
        target: String,
    },
    /// It has gone, with everything below.
    Removed,
}

/// Takes the changes of one transfer in the order in which they happen; kept when the transfer is committed.
#[derive(Debug, Default)]
pub struct ChangeLog(Mutex<Vec<(String, ContentChange)>>);

impl ChangeLog {
    /// Notes a change of `path`, relative to the root of the context. Parents come before what is in them.
    pub fn push(&self, path: impl Into<String>, change: ContentChange) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((path.into(), change));
    }

    pub(crate) fn take(&self) -> Vec<(String, ContentChange)> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Tree {
    /// Applies one change.
    pub(super) fn apply(&mut self, path: &str, change: ContentChange) -> Result<()> {
        let path = kiln_patterns::clean(&format!("/{path}"));
        let key = key_of(&path);
        if key.is_empty() {
            return Ok(());
        }
        self.begin_received();
        self.touch(&key);
        let entry = match change {
            ContentChange::Removed => {
                self.remove(&key);
                return Ok(());
            }
            ContentChange::HardLink { target } => {
                let target = key_of(&kiln_patterns::clean(&format!("/{target}")));
                match self.entries.get(&target) {
                    Some(entry @ (Entry::File { .. } | Entry::Symlink { .. })) => entry.clone(),
                    _ => {
                        return Err(Error::ContentPath(format!(
                            "{path:?}: hard link to a file that was not sent"
                        )));
                    }
                }
            }
            ContentChange::Entry { header, digest } => match header.kind {
                EntryKind::Dir => {
                    if let Some(Entry::Dir { header: known, .. }) = self.entries.get_mut(&key) {
                        *known = header.digest();
                        self.stale.insert(key);
                        return Ok(());
                    }
                    Entry::Dir { header: header.digest(), contents: None, listed: true }
                }
                EntryKind::Symlink => Entry::Symlink { digest: header.digest(), target: header.link },
                EntryKind::File if header.size > 0 || digest.is_some() => Entry::File { digest },
                _ => Entry::File { digest: Some(header.digest()) },
            },
        };
        if !matches!(entry, Entry::Dir { .. }) || !matches!(self.entries.get(&key), Some(Entry::Dir { .. })) {
            self.remove(&key);
        }
        self.put(key, entry);
        Ok(())
    }
}
