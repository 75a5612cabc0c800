//! The read-only content service: clients fetch the blobs of build records by it.

use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt as _};
use kiln_api::content::content_server::Content as ContentService;
use kiln_api::content::{
    AbortRequest, DeleteContentRequest, Info, InfoRequest, InfoResponse, ListContentRequest,
    ListContentResponse, ListStatusesRequest, ListStatusesResponse, ReadContentRequest, ReadContentResponse,
    StatusRequest, StatusResponse, UpdateRequest, UpdateResponse, WriteContentRequest, WriteContentResponse,
};
use kiln_content::{BlobInfo, ContentStore};
use kiln_digest::Digest;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};

use crate::service::internal;

/// Bytes of one answer, and answers on their way to a slow client.
const PIECE: u64 = 1 << 20;
const ON_THE_WAY: usize = 4;
/// Blobs of one answer.
const LISTED: usize = 100;

/// The service.
#[derive(Clone, Debug)]
pub struct Blobs {
    content: Arc<dyn ContentStore>,
    tasks: TaskTracker,
}

impl Blobs {
    pub(crate) fn new(content: Arc<dyn ContentStore>, tasks: TaskTracker) -> Self {
        Self { content, tasks }
    }

    async fn find(&self, digest: &str) -> Result<BlobInfo, Status> {
        let parsed: Digest = digest
            .parse()
            .map_err(|error| Status::invalid_argument(format!("invalid digest `{digest}`: {error}")))?;
        let found = self.content.info(&parsed).await.map_err(internal)?;
        found.ok_or_else(|| Status::not_found(format!("content {parsed}: not found")))
    }
}

type Boxed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl ContentService for Blobs {
    type ListStream = Boxed<ListContentResponse>;
    type ReadStream = Boxed<ReadContentResponse>;
    type WriteStream = Boxed<WriteContentResponse>;

    async fn info(&self, request: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        let found = self.find(&request.into_inner().digest).await?;
        Ok(Response::new(InfoResponse { info: Some(info(&found)) }))
    }

    async fn list(&self, request: Request<ListContentRequest>) -> Result<Response<Self::ListStream>, Status> {
        if !request.into_inner().filters.is_empty() {
            return Err(Status::unimplemented("filters of content are not supported: list all of it"));
        }
        let all = self.content.list().await.map_err(internal)?;
        let answers: Vec<_> = all
            .chunks(LISTED)
            .map(|some| Ok(ListContentResponse { info: some.iter().map(info).collect() }))
            .collect();
        Ok(Response::new(futures::stream::iter(answers).boxed()))
    }

    async fn read(&self, request: Request<ReadContentRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let ReadContentRequest { digest, offset, size } = request.into_inner();
        let found = self.find(&digest).await?;
        let range = |what: &str, value: i64| {
            u64::try_from(value)
                .ok()
                .filter(|value| *value <= found.size)
                .ok_or_else(|| Status::out_of_range(format!("{what} {value} of {} bytes", found.size)))
        };
        let offset = range("offset", offset)?;
        let left = found.size - offset;
        let size = if size == 0 { left } else { range("size", size)?.min(left) };
        let file = self.content.open(&found.digest).await.map_err(internal)?;
        let file = file.ok_or_else(|| Status::not_found(format!("content {digest}: not found")))?;
        let (send, receive) = mpsc::channel(ON_THE_WAY);
        self.tasks.spawn_blocking(move || {
            let (mut at, end) = (offset, offset + size);
            while at < end {
                let length = (end - at).min(PIECE);
                let mut data = vec![0; usize::try_from(length).unwrap_or_default()];
                let read = std::os::unix::fs::FileExt::read_exact_at(&file, &mut data, at);
                let piece = match read {
                    Ok(()) => Ok(ReadContentResponse { offset: at.cast_signed(), data: data.into() }),
                    Err(error) => Err(Status::data_loss(format!("failed to read the blob: {error}"))),
                };
                let last = piece.is_err();
                if send.blocking_send(piece).is_err() || last {
                    return;
                }
                at += length;
            }
        });
        Ok(Response::new(ReceiverStream::new(receive).boxed()))
    }

    async fn update(&self, _: Request<UpdateRequest>) -> Result<Response<UpdateResponse>, Status> {
        Err(read_only())
    }

    async fn delete(&self, _: Request<DeleteContentRequest>) -> Result<Response<()>, Status> {
        Err(read_only())
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        Err(read_only())
    }

    async fn list_statuses(
        &self,
        _: Request<ListStatusesRequest>,
    ) -> Result<Response<ListStatusesResponse>, Status> {
        Err(read_only())
    }

    async fn write(
        &self,
        _: Request<Streaming<WriteContentRequest>>,
    ) -> Result<Response<Self::WriteStream>, Status> {
        Err(read_only())
    }

    async fn abort(&self, _: Request<AbortRequest>) -> Result<Response<()>, Status> {
        Err(read_only())
    }
}

fn read_only() -> Status {
    Status::unimplemented("content can only be read here: builds write it")
}

fn info(found: &BlobInfo) -> Info {
    Info {
        digest: found.digest.to_string(),
        size: i64::try_from(found.size).unwrap_or(i64::MAX),
        ..Info::default()
    }
}
