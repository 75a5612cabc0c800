use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use futures::stream::BoxStream;
use futures::{FutureExt as _, StreamExt as _};
use kiln_api::filesync::file_sync_server::{FileSync, FileSyncServer};
use kiln_api::fsutil::Packet;
use kiln_rootdir::Root;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status, Streaming};

use crate::error::{Error, Result};
use crate::filesync::{DIR_NAME, EXCLUDE, FOLLOW, INCLUDE, PACKETS_QUEUED, messages};
use crate::fsutil::{self, DirTree, Message, WalkOptions};
use crate::headers;
use crate::wire::{MAX_MESSAGE, message_to_wire};

/// Sends directories under names of their own. Owners are sent as 0.
#[derive(Clone, Debug, Default)]
pub struct FileSyncProvider {
    dirs: BTreeMap<String, PathBuf>,
}

impl FileSyncProvider {
    /// Offers these directories.
    pub fn new(dirs: BTreeMap<String, PathBuf>) -> Self {
        Self { dirs }
    }

    /// The service, and its methods for [`Attachments::add`](crate::attach::Attachments::add).
    pub fn into_service(self) -> (FileSyncServer<Self>, &'static [&'static str]) {
        (FileSyncServer::new(self).max_decoding_message_size(MAX_MESSAGE), &["DiffCopy"])
    }

    fn open(&self, request: &Request<Streaming<Packet>>) -> Result<DirTree> {
        let metadata = request.metadata();
        let name = headers::values(metadata, DIR_NAME)?.into_iter().next().unwrap_or_default();
        let dir = self
            .dirs
            .get(&name)
            .ok_or_else(|| Status::not_found(format!("no access allowed to dir {name:?}")))?;
        let options = WalkOptions {
            include: headers::values(metadata, INCLUDE)?,
            exclude: headers::values(metadata, EXCLUDE)?,
            follow_paths: headers::values(metadata, FOLLOW)?,
            map: Some(Arc::new(|stat| {
                (stat.uid, stat.gid) = (0, 0);
                true
            })),
        };
        options.check()?;
        Ok(DirTree::new(Root::open(dir)?, options))
    }
}

#[tonic::async_trait]
impl FileSync for FileSyncProvider {
    type DiffCopyStream = BoxStream<'static, std::result::Result<Packet, Status>>;
    type TarStreamStream = Self::DiffCopyStream;

    async fn diff_copy(
        &self,
        request: Request<Streaming<Packet>>,
    ) -> std::result::Result<Response<Self::DiffCopyStream>, Status> {
        let tree = self.open(&request)?;
        let incoming = messages(request.into_inner());
        let (outgoing, queue) = mpsc::channel(PACKETS_QUEUED);
        let sending = async move { fsutil::send(Arc::new(tree), incoming, outgoing).await };
        Ok(Response::new(driven(queue, sending).map(|item| item.map(message_to_wire)).boxed()))
    }

    async fn tar_stream(
        &self,
        _: Request<Streaming<Packet>>,
    ) -> std::result::Result<Response<Self::TarStreamStream>, Status> {
        Err(Status::unimplemented("method TarStream not implemented"))
    }
}

/// The messages that `work` queues, while it is carried on; then its error, if it fails.
pub(crate) fn driven<F>(
    mut queue: mpsc::Receiver<Message>,
    work: F,
) -> BoxStream<'static, std::result::Result<Message, Status>>
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    use std::task::Poll;
    let mut work = Some(Box::pin(work));
    let mut failure: Option<Error> = None;
    futures::stream::poll_fn(move |cx| {
        if let Some(running) = &mut work
            && let Poll::Ready(outcome) = running.poll_unpin(cx)
        {
            work = None;
            failure = outcome.err();
        }
        match queue.poll_recv(cx) {
            Poll::Ready(Some(message)) => Poll::Ready(Some(Ok(message))),
            Poll::Ready(None) if work.is_none() => Poll::Ready(failure.take().map(|error| Err(error.into()))),
            _ => Poll::Pending,
        }
    })
    .boxed()
}
