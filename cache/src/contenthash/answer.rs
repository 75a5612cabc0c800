//! Content requests on refs: answered from the catalogue, else from the tree.

use std::sync::Arc;

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
        let received = self.record_type() == RecordType::LocalSource && self.parents().is_empty();
        let (mut tree, stored) = match slot.take() {
            Some(tree) => (tree, received),
            None if received => match inner.db().read(|connection| store::read(connection, self.id()))? {
                Some(tree) => (tree, true),
                None => (Tree::default(), false),
            },
            None => (Tree::default(), false),
        };
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
        let delta = (received && (stored || tree.is_complete())).then(|| tree.delta());
        *slot = Some(tree);
        let digest = digest?;
        if self.is_published() {
            let id = self.id().clone();
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
        Ok(digest)
    }
}

fn with_root<T>(mount: &Mount, f: impl FnOnce(&Root, &str) -> Result<T>) -> Result<T> {
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
/// nothing is known any more.
pub(crate) async fn transferred(
    inner: &Arc<Inner>,
    id: &RecordId,
    fresh: bool,
    changes: Option<Vec<(String, ContentChange)>>,
) -> Result<Option<Tree>> {
    let stored = match &changes {
        Some(_) if fresh => Some(Tree::default()),
        Some(_) => inner.db().read(|connection| store::read(connection, id))?,
        None => None,
    };
    let id = id.clone();
    let (Some(mut tree), Some(changes)) = (stored, changes) else {
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
    inner.db().write(move |transaction| store::write(transaction, &id, &delta)).await?;
    Ok(Some(tree))
}

impl From<kiln_patterns::Error> for Error {
    fn from(error: kiln_patterns::Error) -> Self {
        Self::Filter { filter: String::new(), reason: error.to_string() }
    }
}
