use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt as _, StreamExt as _};
use http::{Request, Response};
use kiln_api::filesync::BytesMessage;
use kiln_api::fsutil::Packet;
use kiln_rootdir::Root;
use prost::Message as _;
use tokio::sync::mpsc;
use tonic::body::Body;
use tonic::metadata::{KeyAndValueRef, MetadataMap};
use tonic::server::{NamedService, StreamingService};
use tonic::{Status, Streaming};
use tower::Service;

use crate::attach::directories::driven;
use crate::codec::RawCodec;
use crate::error::{Error, Result};
use crate::filesend::{DIFF_COPY, EXPORTER_ID, EXPORTER_METADATA, MULTI_PLATFORM};
use crate::filesync::{PACKETS_QUEUED, messages};
use crate::fsutil::{self, Differ, ReceiveOptions};
use crate::headers;
use crate::wire::{MAX_MESSAGE, message_to_wire};

/// Pieces of a file that wait to be written. The daemon is not read while there are more.
const PIECES_QUEUED: usize = 16;

/// Takes the bytes of a file.
pub type Writer = Box<dyn Write + Send>;
/// Opens a file for a result with this metadata; `None` if it is not wanted.
type Open = Arc<dyn Fn(&BTreeMap<String, String>) -> std::io::Result<Option<Writer>> + Send + Sync>;

/// Where the results of one exporter go.
#[derive(Clone)]
pub enum Target {
    /// Into a directory, made if missing.
    Dir {
        /// The directory.
        path: PathBuf,
        /// Remove what the result does not have.
        delete: bool,
    },
    /// Into a file, or whatever the function opens.
    File(Open),
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dir { path, delete } => {
                f.debug_struct("Dir").field("path", path).field("delete", delete).finish()
            }
            Self::File(_) => f.debug_struct("File").finish_non_exhaustive(),
        }
    }
}

impl Target {
    /// Into a directory, keeping what else it has.
    pub fn dir(path: impl Into<PathBuf>) -> Self {
        Self::Dir { path: path.into(), delete: false }
    }

    /// Into a new file, or in place of the one that is there.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        Self::File(Arc::new(move |_| Ok(Some(Box::new(std::fs::File::create(&path)?) as Writer))))
    }

    /// Into something that is open already, and takes one result.
    pub fn writer(writer: Writer) -> Self {
        let writer = Mutex::new(Some(writer));
        Self::File(Arc::new(move |_| Ok(writer.lock().unwrap_or_else(PoisonError::into_inner).take())))
    }

    /// Into what `open` gives for the metadata of the result.
    pub fn opened_by<F>(open: F) -> Self
    where
        F: Fn(&BTreeMap<String, String>) -> std::io::Result<Option<Writer>> + Send + Sync + 'static,
    {
        Self::File(Arc::new(open))
    }
}

/// Takes the results of a build, by the position of their exporter.
#[derive(Clone, Debug, Default)]
pub struct FileSendTargets {
    targets: Arc<BTreeMap<usize, Target>>,
}

impl FileSendTargets {
    /// Takes results to these targets.
    pub fn new(targets: BTreeMap<usize, Target>) -> Self {
        Self { targets: Arc::new(targets) }
    }

    /// The service, and its methods for [`Attachments::add`](crate::attach::Attachments::add).
    pub fn into_service(self) -> (Self, &'static [&'static str]) {
        (self, &["DiffCopy"])
    }

    async fn take(self, request: tonic::Request<Streaming<Bytes>>) -> Result<ByteStream> {
        let metadata = request.metadata();
        let exporter = headers::first(metadata, EXPORTER_ID).unwrap_or_else(|| "0".to_owned());
        let target = exporter
            .parse()
            .ok()
            .and_then(|id: usize| self.targets.get(&id))
            .ok_or_else(|| Status::unknown(format!("exporter {exporter} not found")))?;
        match target {
            Target::Dir { path, delete } => {
                if *delete && headers::first(metadata, MULTI_PLATFORM).as_deref() != Some("1") {
                    return Err(Status::unknown(
                        "local exporter mode=delete requires a BuildKit daemon with multi-platform local export support",
                    )
                    .into());
                }
                let root = open_dir(path)?;
                Ok(take_dir(root, *delete, request.into_inner()))
            }
            Target::File(open) => {
                let shown = shown_metadata(metadata);
                let writer = open(&shown).map_err(Error::io("open the target"))?;
                let writer = writer.ok_or_else(|| Status::already_exists("target already exists"))?;
                take_file(writer, request.into_inner()).await?;
                Ok(futures::stream::empty().boxed())
            }
        }
    }
}

type ByteStream = BoxStream<'static, std::result::Result<Bytes, Status>>;

fn shown_metadata(metadata: &MetadataMap) -> BTreeMap<String, String> {
    let entries = metadata.iter().filter_map(|entry| match entry {
        KeyAndValueRef::Ascii(key, value) => {
            let key = key.as_str().strip_prefix(EXPORTER_METADATA)?;
            Some((key.to_owned(), String::from_utf8_lossy(value.as_encoded_bytes()).into_owned()))
        }
        KeyAndValueRef::Binary(..) => None,
    });
    entries.collect()
}

fn open_dir(path: &PathBuf) -> Result<Root> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(Error::io(format!("make `{}`", path.display())))?;
    Ok(Root::open(path)?)
}

fn take_dir(root: Root, delete: bool, incoming: Streaming<Bytes>) -> ByteStream {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let options = ReceiveOptions {
        differ: if delete { Differ::None } else { Differ::Metadata },
        merge: !delete,
        map: Some(Arc::new(move |stat| {
            (stat.uid, stat.gid) = (uid, gid);
            true
        })),
        ..ReceiveOptions::default()
    };
    let packets = incoming.map(|body| {
        Packet::decode(body?).map_err(|error| Status::internal(format!("invalid packet: {error}")))
    });
    let (outgoing, queue) = mpsc::channel(PACKETS_QUEUED);
    let receiving =
        async move { fsutil::receive(Arc::new(root), options, messages(packets), outgoing).await.map(drop) };
    driven(queue, receiving)
        .map(|item| item.map(|message| Bytes::from(message_to_wire(message).encode_to_vec())))
        .boxed()
}

async fn take_file(mut writer: Writer, mut incoming: Streaming<Bytes>) -> Result<()> {
    let (pieces, mut queue) = mpsc::channel::<Bytes>(PIECES_QUEUED);
    let writing = tokio::task::spawn_blocking(move || {
        while let Some(piece) = queue.blocking_recv() {
            writer.write_all(&piece)?;
        }
        writer.flush()
    });
    while let Some(body) = incoming.message().await? {
        let message = BytesMessage::decode(body)
            .map_err(|error| Status::internal(format!("invalid message: {error}")))?;
        if pieces.send(message.data).await.is_err() {
            break;
        }
    }
    drop(pieces);
    writing.await.map_err(Error::task)?.map_err(Error::io("write to the target"))
}

impl NamedService for FileSendTargets {
    const NAME: &'static str = "moby.filesync.v1.FileSend";
}

// One method takes messages of two kinds, so this service is not the generated one.
impl Service<Request<Body>> for FileSendTargets {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, std::result::Result<Response<Body>, Infallible>>;

    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::result::Result<(), Infallible>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let handler = Handler(self.clone());
        async move {
            if request.uri().path() != DIFF_COPY {
                return Ok(Status::unimplemented("unknown method").into_http());
            }
            let grpc = tonic::server::Grpc::new(RawCodec);
            Ok(grpc.max_decoding_message_size(MAX_MESSAGE).streaming(handler, request).await)
        }
        .boxed()
    }
}

struct Handler(FileSendTargets);

impl StreamingService<Bytes> for Handler {
    type Response = Bytes;
    type ResponseStream = ByteStream;
    type Future = BoxFuture<'static, std::result::Result<tonic::Response<ByteStream>, Status>>;

    fn call(&mut self, request: tonic::Request<Streaming<Bytes>>) -> Self::Future {
        let targets = self.0.clone();
        async move { Ok(tonic::Response::new(targets.take(request).await?)) }.boxed()
    }
}
