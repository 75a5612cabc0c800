//! Blobs in stores of the client: OCI layouts, local caches, exports.

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use kiln_api::content as pb;
use kiln_api::content::content_client::ContentClient;
use kiln_digest::Digest;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request};

use crate::channel::Channel;
use crate::error::{Error, Result};
use crate::headers;
use crate::sessions::Session;
use crate::wire::MAX_MESSAGE;

const READ: &str = "/containerd.services.content.v1.Content/Read";
pub(crate) const STORE_ID: &str = "buildkit-attachable-store-id";
/// Bytes of a blob in one message. Clients take up to 4 MiB.
const CHUNK: usize = 1 << 20;
/// Messages of a blob on their way out. The writer waits while there are more.
const CHUNKS_QUEUED: usize = 4;

/// A blob store of the client of a session: `oci:<name>`, `local:<dir>` or `export`.
#[derive(Clone, Debug)]
pub struct Blobs {
    session: Session,
    store: String,
}

impl Blobs {
    /// Names a store; whether the client has it shows with the first call.
    pub fn new(session: Session, store: impl Into<String>) -> Self {
        Self { session, store: store.into() }
    }

    /// The size of a blob in bytes; `None` if the store does not have it.
    ///
    /// # Errors
    /// What else the client answered, also that it has no such store.
    pub async fn size(&self, digest: &Digest) -> Result<Option<u64>> {
        let request = self.request(pb::InfoRequest { digest: digest.to_string() })?;
        match self.client()?.info(request).await {
            Ok(answer) => {
                let size = answer.into_inner().info.map_or(0, |info| info.size);
                Ok(Some(u64::try_from(size).unwrap_or_default()))
            }
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(status.into()),
        }
    }

    /// Reads a blob from `offset` to its end. Its digest is not checked here.
    ///
    /// # Errors
    /// What the client answered; the stream's items may fail too.
    pub async fn read(
        &self,
        digest: &Digest,
        offset: u64,
    ) -> Result<impl Stream<Item = Result<Bytes>> + Send + Unpin + use<>> {
        let request = pb::ReadContentRequest {
            digest: digest.to_string(),
            offset: i64::try_from(offset).unwrap_or(i64::MAX),
            size: 0,
        };
        let answer = self.client()?.read(self.request(request)?).await?;
        Ok(answer.into_inner().map(|piece| piece.map(|piece| piece.data).map_err(Error::from)))
    }

    /// Reads a small blob whole.
    ///
    /// # Errors
    /// As [`read`](Self::read), and [`Error::Limit`].
    pub async fn read_all(&self, digest: &Digest, limit: u64) -> Result<Bytes> {
        let mut stream = self.read(digest, 0).await?;
        let mut content = Vec::new();
        while let Some(piece) = stream.next().await {
            content.extend_from_slice(&piece?);
            if content.len() as u64 > limit {
                return Err(Error::Limit { what: "bytes", limit });
            }
        }
        Ok(content.into())
    }

    /// Writes a blob of known digest and size.
    ///
    /// # Errors
    /// What `content` or the client brought.
    pub async fn write<S>(&self, digest: &Digest, size: u64, mut content: S) -> Result<()>
    where
        S: Stream<Item = Result<Bytes>> + Send + Unpin,
    {
        let base = pb::WriteContentRequest {
            r#ref: format!("kiln-{}", digest.hex()),
            total: i64::try_from(size).unwrap_or(i64::MAX),
            expected: digest.to_string(),
            ..pb::WriteContentRequest::default()
        };
        let (chunks, queue) = mpsc::channel(CHUNKS_QUEUED);
        let call = self.request(ReceiverStream::new(queue))?;
        let mut client = self.client()?;
        let sending = async {
            let mut offset = 0;
            while let Some(piece) = content.next().await {
                let mut piece = piece?;
                while !piece.is_empty() {
                    let data = piece.split_to(piece.len().min(CHUNK));
                    let next = offset + i64::try_from(data.len()).unwrap_or_default();
                    let message = pb::WriteContentRequest {
                        action: pb::WriteAction::Write.into(),
                        offset,
                        data,
                        ..base.clone()
                    };
                    offset = next;
                    chunks.send(message).await.map_err(|_| Error::Interrupted)?;
                }
            }
            let commit = pb::WriteContentRequest { action: pb::WriteAction::Commit.into(), offset, ..base };
            chunks.send(commit).await.map_err(|_| Error::Interrupted)?;
            drop(chunks);
            Ok::<_, Error>(())
        };
        let answering = async {
            let mut answers = client.write(call).await?.into_inner();
            while answers.message().await?.is_some() {}
            Ok::<_, Error>(())
        };
        let (sent, answered) = tokio::join!(sending, answering);
        match answered {
            // The client has it already.
            Err(Error::Call { status }) if status.code() == Code::AlreadyExists => Ok(()),
            Err(error) => match sent {
                // The source failed first, and the client only saw the end of it.
                Err(source @ (Error::Read { .. } | Error::Io { .. })) => Err(source),
                _ => Err(error),
            },
            Ok(()) => sent,
        }
    }

    /// Writes a blob of known digest and size out of a file.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub async fn write_file(&self, digest: &Digest, size: u64, file: std::fs::File) -> Result<()> {
        let pieces = futures::stream::unfold(Some(file), |file| async move {
            let mut file = file?;
            let read = tokio::task::spawn_blocking(move || {
                let mut piece = vec![0; CHUNK];
                let count = std::io::Read::read(&mut file, &mut piece)?;
                piece.truncate(count);
                Ok::<_, std::io::Error>((piece, file))
            });
            match read.await {
                Ok(Ok((piece, _))) if piece.is_empty() => None,
                Ok(Ok((piece, file))) => Some((Ok(piece.into()), Some(file))),
                Ok(Err(source)) => Some((Err(Error::Read { path: "blob".to_owned(), source }), None)),
                Err(_) => Some((Err(Error::Interrupted), None)),
            }
        });
        self.write(digest, size, Box::pin(pieces)).await
    }

    fn client(&self) -> Result<ContentClient<Channel>> {
        self.session.require(READ)?;
        Ok(ContentClient::new(self.session.channel()).max_decoding_message_size(MAX_MESSAGE))
    }

    fn request<T>(&self, message: T) -> Result<Request<T>> {
        let mut request = Request::new(message);
        request.metadata_mut().insert(STORE_ID, headers::parse(&self.store)?);
        Ok(request)
    }
}
