//! Receiving a client's directory into one that is kept between builds.

use std::sync::Arc;

use kiln_cache::{
    CacheManager, ChangeLog, ContentChange, ContentHeader, EntryKind, RecordOptions, RecordType, Ref,
};
use kiln_rootdir::{Kind, Root};
use kiln_session::filesync::{self, DirRequest};
use kiln_session::fsutil::{self, Change, ChangeKind, ReceiveOptions, Stat};
use kiln_session::{APPEAR_TIMEOUT, Lender, Session};
use kiln_solver::VertexProgress;

use crate::error::{Error, Result};
use crate::local::request::{Differ, LocalRequest};
use crate::progress::Transfer;

/// Receives directories of clients.
#[derive(Clone, Debug)]
pub struct Locals {
    cache: CacheManager,
}

impl Locals {
    /// Makes a receiver over its port.
    #[must_use]
    pub fn new(cache: CacheManager) -> Self {
        Self { cache }
    }

    /// Receives a directory: from the session that the request names, else, or when that one lacks it, from any
    /// whose client waits. Only what changed since the last time is transferred.
    ///
    /// # Errors
    /// [`Error::Client`] with the answer of the last client asked.
    ///
    /// # Cancel safety
    /// A half-received directory is thrown away.
    pub async fn snapshot(
        &self,
        request: &LocalRequest,
        lender: &Lender,
        progress: &VertexProgress,
    ) -> Result<Ref> {
        if !request.session.is_empty()
            && let Ok(session) = lender.sessions().get(&request.session, APPEAR_TIMEOUT).await
        {
            match self.receive(request, &session, progress).await {
                Err(Error::Client(error)) if error.is_absent() => {
                    tracing::debug!(name = request.name, %error, "the named session lacks the directory");
                }
                done => return done,
            }
        }
        lender.any(async |session| self.receive(request, &session, progress).await).await
    }

    async fn receive(
        &self,
        request: &LocalRequest,
        session: &Session,
        progress: &VertexProgress,
    ) -> Result<Ref> {
        let key = request.shared_key(session.shared_key());
        let name = &request.name;
        let options = RecordOptions {
            retain: true,
            index: vec![key.clone()],
            ..RecordOptions::new(format!("local source for {name}"), RecordType::LocalSource)
        };
        let directory = self.cache.local_source(&key, options).await?;
        let mount = directory.mount().await?;
        let changes = directory.changes();
        let reporter = Transfer::new(format!("transferring {name}:"), "transferring", progress.clone());
        let reporter = Arc::new(reporter);
        {
            // Alive until everything is received.
            let mounted = mount.with_temp()?;
            let destination = Root::open(mounted.path())?;
            reporter.show(0, 0, false);
            let wanted = dir_request(request);
            let options = receive_options(request, changes, reporter.clone());
            let stats = filesync::receive(session, &wanted, Arc::new(destination), options).await?;
            reporter.show(stats.bytes, 0, true);
        }
        Ok(directory.commit().await?)
    }
}

fn dir_request(request: &LocalRequest) -> DirRequest {
    let list = |patterns: &Option<Vec<String>>| patterns.clone().unwrap_or_default();
    let mut wanted = DirRequest::new(&request.name);
    wanted.include = list(&request.include);
    wanted.exclude = list(&request.exclude);
    wanted.follow_paths = list(&request.follow);
    wanted
}

fn receive_options(
    request: &LocalRequest,
    changes: Arc<ChangeLog>,
    reporter: Arc<Transfer>,
) -> ReceiveOptions {
    let mut options = ReceiveOptions::default();
    options.differ = match request.differ {
        Differ::Metadata => fsutil::Differ::Metadata,
        Differ::None => fsutil::Differ::None,
    };
    options.metadata_only =
        request.metadata_only.then(|| request.metadata_exceptions.clone().unwrap_or_default());
    options.progress = Some(Arc::new(move |progress| reporter.show(progress.bytes, 0, false)));
    options.seed = Some(Arc::new(|stat: &Stat| header(stat).bytes()));
    options.changes = Some(Arc::new(move |change: Change| {
        if let Some(noted) = noted(&change) {
            changes.push(change.path, noted);
        }
    }));
    options
}

/// Translates a change of the transfer into one of the checksums.
fn noted(change: &Change) -> Option<ContentChange> {
    match (&change.stat, change.kind) {
        (_, ChangeKind::Delete) => Some(ContentChange::Removed),
        (Some(stat), _) if stat.is_hard_link() => {
            Some(ContentChange::HardLink { target: stat.linkname.clone() })
        }
        (Some(stat), _) => Some(ContentChange::Entry { header: header(stat), digest: change.digest }),
        (None, _) => None,
    }
}

/// Returns what of an entry counts for its checksum: the stat as it was sent.
fn header(stat: &Stat) -> ContentHeader {
    let kind = match stat.mode.kind() {
        Some(Kind::Dir) => EntryKind::Dir,
        Some(Kind::Symlink) => EntryKind::Symlink,
        Some(Kind::CharDevice) => EntryKind::CharDevice,
        Some(Kind::BlockDevice) => EntryKind::BlockDevice,
        Some(Kind::Fifo) => EntryKind::Fifo,
        Some(Kind::Socket) => EntryKind::Socket,
        _ => EntryKind::File,
    };
    let number = |number: i64| u64::try_from(number).unwrap_or_default();
    ContentHeader {
        kind,
        mode: stat.mode.posix(),
        uid: stat.uid,
        gid: stat.gid,
        size: number(stat.size),
        link: stat.linkname.clone().into_bytes(),
        device: (number(stat.dev_major), number(stat.dev_minor)),
        xattrs: stat.xattrs.iter().map(|(name, value)| (name.clone().into_bytes(), value.clone())).collect(),
    }
}
