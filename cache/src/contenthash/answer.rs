//! Content requests on refs: answered from the catalogue, else from the tree.

use std::sync::{Arc, Mutex, PoisonError};

use kiln_digest::Digest;
use kiln_rootdir::Root;
use kiln_snapshot::Mount;

use super::{
    changes::ContentChange,
    select::{combined, of_nothing, request},
    selector::ContentSelector,
    store,
    tree::{Tree, View},
};
use crate::{
    BlobProvider, Error, RecordId, RecordType, Ref, Result,
    db::rows,
    manager::{Inner, blocking},
};

/// The content key of an empty state.
///
/// # Errors
/// [`Error::ContentPath`] when a selector names more than the root.
pub fn nil_content_digest(selectors: &[ContentSelector]) -> Result<Digest> {
    of_nothing(selectors)
}

impl Ref {
    /// Digest of the selected parts of it, as a content-based cache key uses it; no selector is the whole tree.
    /// Answers are kept with the record.
    ///
    /// # Errors
    /// [`Error::ContentPath`], with the reference's text, when a path is not there.
    pub async fn content_digest(
        &self,
        selectors: &[ContentSelector],
        provider: &dyn BlobProvider,
    ) -> Result<Digest> {
        let inner = self.0.inner();
        let request = request(selectors);
        if self.is_published()
            && let Some(known) =
                inner.db().read(|connection| store::answer(connection, self.id(), &request))?
        {
            return Ok(known);
        }
        let mut slot = self.0.checksums.lock().await;
        let (mut tree, received) = self.take_tree(&mut slot).await?;
        let mount = self.mount(provider).await?;
        let wanted = selectors.to_vec();
        let (digest, mut tree) = blocking(move || {
            let digest = with_root(&mount, |root, name| {
                let view = View { root, name, received };
                tree.begin(&view)?;
                combined(&mut tree, Some(&view), &wanted)
            });
            // A part that is not there is an answer too; the tree is worth keeping.
            Ok((digest, tree))
        })
        .await?;
        let digest = match digest {
            Ok(digest) => digest,
            Err(error) => {
                *slot = Some(tree);
                return Err(error);
            }
        };
        if self.is_published() {
            let delta = (received && tree.is_complete()).then(|| tree.delta());
            let id = self.id().clone();
            // When this fails the tree is dropped too: what is stored and what it takes for stored would differ.
            inner
                .db()
                .write(move |transaction| {
                    if let Some(delta) = &delta {
                        store::write(transaction, &id, delta)?;
                    }
                    store::set_answer(transaction, &id, &request, &digest)
                })
                .await?;
        }
        *slot = Some(tree);
        Ok(digest)
    }

    /// What is known of its tree, and whether it was received from a client.
    pub(super) async fn take_tree(&self, slot: &mut Option<Tree>) -> Result<(Tree, bool)> {
        let inner = self.0.inner();
        let received = self.record_type() == RecordType::LocalSource && self.parents().is_empty();
        let tree = match slot.take() {
            Some(tree) => tree,
            None if received => match inner.trees.take(self.id()) {
                Some(tree) => tree,
                None => {
                    let (reader, id) = (Arc::clone(inner), self.id().clone());
                    let stored =
                        blocking(move || reader.db().read(|connection| store::read(connection, &id)));
                    stored.await?.unwrap_or_default()
                }
            },
            None => Tree::default(),
        };
        Ok((tree, received))
    }
}

pub(super) fn with_root<T>(mount: &Mount, f: impl FnOnce(&Root, &str) -> Result<T>) -> Result<T> {
    let open = |path: &std::path::Path| Root::open(path).map_err(super::tree::io);
    match mount {
        Mount::Bind { source, .. } => f(&open(source)?, &source.display().to_string()),
        overlay => {
            let mounted = overlay.with_temp()?;
            f(&open(mounted.path())?, &mounted.path().display().to_string())
        }
    }
}

/// Brings what is known of a received context up to date with the changes of a transfer. Without a list of changes
/// nothing is known any more; with an empty one everything still is.
pub(crate) async fn transferred(
    inner: &Arc<Inner>,
    id: &RecordId,
    fresh: bool,
    changes: Option<Vec<(String, ContentChange)>>,
) -> Result<Option<Tree>> {
    // Only a tree that knows everything can follow changes.
    let kept = inner.trees.take(id).filter(Tree::is_complete);
    let id = id.clone();
    let Some(changes) = changes else {
        inner.db().write(move |transaction| store::clear(transaction, &id)).await?;
        return Ok(None);
    };
    if changes.is_empty() && !fresh {
        return Ok(kept);
    }
    let stored = match kept {
        Some(tree) => Some(tree),
        None if fresh => Some(Tree::default()),
        None => {
            let (reader, id) = (Arc::clone(inner), id.clone());
            blocking(move || reader.db().read(|connection| store::read(connection, &id))).await?
        }
    };
    let Some(mut tree) = stored else {
        inner.db().write(move |transaction| store::clear(transaction, &id)).await?;
        return Ok(None);
    };
    let (tree, delta) = blocking(move || {
        for (path, change) in changes {
            tree.apply(&path, change)?;
        }
        let delta = tree.delta();
        Ok((tree, delta))
    })
    .await?;
    inner
        .db()
        .write(move |transaction| {
            rows::drop_answers(transaction, &id)?;
            store::write(transaction, &id, &delta)
        })
        .await?;
    Ok(Some(tree))
}

/// Trees of received contexts that nobody holds at the moment: the next build asks for them again.
#[derive(Debug, Default)]
pub(crate) struct Trees(Mutex<Vec<(RecordId, Tree)>>);

/// Entries kept in memory, of all trees together.
const KEPT_ENTRIES: usize = 50_000;

impl Trees {
    /// Keeps a tree; those kept longest go when there are too many entries.
    pub(crate) fn keep(&self, id: &RecordId, tree: Tree) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|(other, _)| other != id);
        kept.push((id.clone(), tree));
        let mut entries: usize = kept.iter().map(|(_, tree)| tree.entries.len()).sum();
        let mut gone = 0;
        while entries > KEPT_ENTRIES {
            entries -= kept.get(gone).map_or(entries, |(_, tree)| tree.entries.len());
            gone += 1;
        }
        let gone = gone.min(kept.len());
        kept.drain(..gone);
    }

    fn take(&self, id: &RecordId) -> Option<Tree> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let place = kept.iter().position(|(other, _)| other == id)?;
        Some(kept.remove(place).1)
    }
}

impl From<kiln_patterns::Error> for Error {
    fn from(error: kiln_patterns::Error) -> Self {
        Self::Filter { filter: String::new(), reason: error.to_string() }
    }
}
