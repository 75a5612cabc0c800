use std::collections::BTreeMap;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use kiln_api::content as pb;
use kiln_api::content::content_server::{Content, ContentServer};
use kiln_digest::{Digest, Hasher};
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use crate::blobs::STORE_ID;
use crate::headers;
use crate::wire::MAX_MESSAGE;

/// Bytes of a blob in one message.
const CHUNK: usize = 1 << 20;

/// A directory of blobs, as an OCI layout has them: `<dir>/blobs/sha256/<hex>`.
#[derive(Clone, Debug)]
pub struct BlobStore {
    /// The directory with the layout.
    pub dir: PathBuf,
    /// Take new blobs too.
    pub writable: bool,
}

impl BlobStore {
    fn blob(&self, digest: &Digest) -> PathBuf {
        self.dir.join("blobs").join(digest.algorithm()).join(digest.hex())
    }

    fn info(&self, digest: &Digest) -> Result<pb::Info, Status> {
        match std::fs::metadata(self.blob(digest)) {
            Ok(metadata) => Ok(pb::Info {
                digest: digest.to_string(),
                size: i64::try_from(metadata.len()).unwrap_or(i64::MAX),
                created_at: metadata.modified().ok().map(prost_types::Timestamp::from),
                updated_at: metadata.modified().ok().map(prost_types::Timestamp::from),
                ..pb::Info::default()
            }),
            Err(error) => Err(status(digest, &error)),
        }
    }
}

fn status(digest: &Digest, error: &std::io::Error) -> Status {
    match error.kind() {
        std::io::ErrorKind::NotFound => Status::not_found(format!("content {digest}: not found")),
        _ => Status::unknown(format!("content {digest}: {error}")),
    }
}

/// Gives and takes blobs of several stores, by store id: `oci:<name>`, `local:<dir>` or `export`.
#[derive(Clone, Debug, Default)]
pub struct ContentProvider {
    stores: Arc<BTreeMap<String, BlobStore>>,
}

impl ContentProvider {
    /// Offers these stores.
    pub fn new(stores: BTreeMap<String, BlobStore>) -> Self {
        Self { stores: Arc::new(stores) }
    }

    /// The service, and its methods for [`Attachments::add`](crate::attach::Attachments::add).
    pub fn into_service(self) -> (ContentServer<Self>, &'static [&'static str]) {
        let methods =
            &["Info", "Update", "List", "Delete", "Read", "Status", "ListStatuses", "Write", "Abort"];
        (ContentServer::new(self).max_decoding_message_size(MAX_MESSAGE), methods)
    }

    fn store(&self, metadata: &MetadataMap) -> Result<&BlobStore, Status> {
        let id = headers::first(metadata, STORE_ID).unwrap_or_default();
        self.stores.get(&id).ok_or_else(|| Status::not_found(format!("unknown store {id}")))
    }
}

fn digest(text: &str) -> Result<Digest, Status> {
    text.parse().map_err(|error| Status::invalid_argument(format!("{error}")))
}

fn refused<T>(method: &str) -> Result<Response<T>, Status> {
    Err(Status::unimplemented(format!("method {method} not implemented")))
}

type Stream<T> = BoxStream<'static, Result<T, Status>>;

#[tonic::async_trait]
impl Content for ContentProvider {
    type ListStream = Stream<pb::ListContentResponse>;
    type ReadStream = Stream<pb::ReadContentResponse>;
    type WriteStream = Stream<pb::WriteContentResponse>;

    async fn info(&self, request: Request<pb::InfoRequest>) -> Result<Response<pb::InfoResponse>, Status> {
        let store = self.store(request.metadata())?;
        let info = store.info(&digest(&request.get_ref().digest)?)?;
        Ok(Response::new(pb::InfoResponse { info: Some(info) }))
    }

    async fn read(
        &self,
        request: Request<pb::ReadContentRequest>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        let store = self.store(request.metadata())?;
        let request = request.get_ref();
        let digest = digest(&request.digest)?;
        let failed = move |error: std::io::Error| status(&digest, &error);
        let mut file = std::fs::File::open(store.blob(&digest)).map_err(failed)?;
        let start = u64::try_from(request.offset)
            .map_err(|_| Status::out_of_range("negative offset in a request to read"))?;
        file.seek(SeekFrom::Start(start)).map_err(failed)?;
        let limit = u64::try_from(request.size).ok().filter(|size| *size > 0).unwrap_or(u64::MAX);
        let state = Some((file.take(limit), request.offset));
        let stream = futures::stream::try_unfold(state, move |state| async move {
            let Some((mut file, offset)) = state else { return Ok(None) };
            let reading = tokio::task::spawn_blocking(move || {
                let mut data = Vec::with_capacity(CHUNK);
                let taken = file.by_ref().take(CHUNK as u64).read_to_end(&mut data);
                (taken.map(|_| data), file)
            });
            let (data, file) = reading.await.map_err(|_| Status::internal("reading failed"))?;
            let data = Bytes::from(data.map_err(failed)?);
            if data.is_empty() {
                return Ok(None);
            }
            let next = offset.saturating_add(i64::try_from(data.len()).unwrap_or(i64::MAX));
            Ok(Some((pb::ReadContentResponse { offset, data }, Some((file, next)))))
        });
        Ok(Response::new(stream.boxed()))
    }

    async fn write(
        &self,
        request: Request<Streaming<pb::WriteContentRequest>>,
    ) -> Result<Response<Self::WriteStream>, Status> {
        let store = self.store(request.metadata())?.clone();
        if !store.writable {
            return Err(Status::permission_denied("store is read-only"));
        }
        let state = (request.into_inner(), Ingest::new(store));
        let stream = futures::stream::try_unfold(state, |(mut requests, mut ingest)| async move {
            let Some(request) = requests.message().await? else { return Ok(None) };
            let handling = tokio::task::spawn_blocking(move || (ingest.handle(request), ingest));
            let (answer, ingest) = handling.await.map_err(|_| Status::internal("writing failed"))?;
            Ok(Some((answer?, (requests, ingest))))
        });
        Ok(Response::new(stream.boxed()))
    }

    async fn status(
        &self,
        request: Request<pb::StatusRequest>,
    ) -> Result<Response<pb::StatusResponse>, Status> {
        // An ingest that was cut off is never taken up again.
        Err(Status::not_found(format!("reference {}: not found", request.get_ref().r#ref)))
    }

    async fn list_statuses(
        &self,
        _: Request<pb::ListStatusesRequest>,
    ) -> Result<Response<pb::ListStatusesResponse>, Status> {
        Ok(Response::new(pb::ListStatusesResponse::default()))
    }

    async fn abort(&self, _: Request<pb::AbortRequest>) -> Result<Response<()>, Status> {
        Ok(Response::new(()))
    }

    async fn update(&self, _: Request<pb::UpdateRequest>) -> Result<Response<pb::UpdateResponse>, Status> {
        refused("Update")
    }

    async fn list(&self, _: Request<pb::ListContentRequest>) -> Result<Response<Self::ListStream>, Status> {
        refused("List")
    }

    async fn delete(&self, _: Request<pb::DeleteContentRequest>) -> Result<Response<()>, Status> {
        refused("Delete")
    }
}

/// One blob on its way in. Dropped, it leaves nothing.
struct Ingest {
    store: BlobStore,
    open: Option<(std::fs::File, PathBuf, Hasher)>,
    offset: i64,
}

impl Ingest {
    fn new(store: BlobStore) -> Self {
        Self { store, open: None, offset: 0 }
    }

    fn handle(&mut self, request: pb::WriteContentRequest) -> Result<pb::WriteContentResponse, Status> {
        let failed = |error: std::io::Error| Status::unknown(format!("failed to write content: {error}"));
        let expected = if request.expected.is_empty() { None } else { Some(digest(&request.expected)?) };
        if let Some(expected) = &expected
            && self.store.blob(expected).exists()
        {
            return Err(Status::already_exists(format!("content {expected}: already exists")));
        }
        if !request.data.is_empty() {
            if request.offset != self.offset {
                return Err(Status::out_of_range(format!(
                    "write at {}, not {}",
                    request.offset, self.offset
                )));
            }
            let (file, _, hasher) = match &mut self.open {
                Some(open) => open,
                none => none.insert(create(&self.store).map_err(failed)?),
            };
            file.write_all(&request.data).map_err(failed)?;
            hasher.update(&request.data);
            self.offset += i64::try_from(request.data.len()).unwrap_or_default();
        }
        let mut answer = pb::WriteContentResponse {
            action: request.action,
            offset: self.offset,
            total: request.total,
            ..pb::WriteContentResponse::default()
        };
        if request.action == i32::from(pb::WriteAction::Commit) {
            if request.total > 0 && request.total != self.offset {
                return Err(Status::failed_precondition(format!(
                    "content has {} bytes, not {}",
                    self.offset, request.total
                )));
            }
            answer.digest = self.commit(expected)?.to_string();
        }
        Ok(answer)
    }

    fn commit(&mut self, expected: Option<Digest>) -> Result<Digest, Status> {
        let failed = |error: std::io::Error| Status::unknown(format!("failed to write content: {error}"));
        let (file, temporary, hasher) = match self.open.take() {
            Some(open) => open,
            None => create(&self.store).map_err(failed)?,
        };
        drop(file);
        let actual = hasher.finish();
        let outcome = match expected.filter(|expected| *expected != actual) {
            Some(expected) => {
                Err(Status::failed_precondition(format!("content has digest {actual}, not {expected}")))
            }
            None => std::fs::rename(&temporary, self.store.blob(&actual)).map_err(failed),
        };
        if outcome.is_err() {
            // The first error is the one to report.
            let _removed = std::fs::remove_file(&temporary);
        }
        outcome.map(|()| actual)
    }
}

impl Drop for Ingest {
    fn drop(&mut self) {
        if let Some((_, temporary, _)) = self.open.take() {
            // Left behind, it is only in the way.
            let _removed = std::fs::remove_file(&temporary);
        }
    }
}

fn create(store: &BlobStore) -> std::io::Result<(std::fs::File, PathBuf, Hasher)> {
    let dir = store.dir.join("blobs").join("sha256");
    std::fs::create_dir_all(&dir)?;
    let temporary = dir.join(format!(".tmp.{:016x}", rand::random::<u64>()));
    let file = std::fs::File::options().write(true).create_new(true).open(&temporary)?;
    Ok((file, temporary, Hasher::new()))
}
