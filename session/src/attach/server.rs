//! The client's end of a session: an HTTP/2 server on the byte pipe.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt;

use bytes::Bytes;
use futures::StreamExt as _;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use kiln_api::control::BytesMessage;
use kiln_api::control::control_client::ControlClient;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::{Code, Status};
use tower::util::BoxCloneSyncService;
use tower::{Service, ServiceExt as _};

use crate::channel::Tasks;
use crate::codec::RawCodec;
use crate::error::{Error, Result};
use crate::headers;
use crate::health;
use crate::pipe::Pipe;
use crate::sessions::{ID_KEY, METHOD_KEY, SHARED_KEY_KEY};

/// Bytes that may be on their way per stream and in all, before the receiver has to make room.
const STREAM_WINDOW: u32 = 2 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;

type BoxService = BoxCloneSyncService<Request<Body>, Response<Body>, Infallible>;

/// The services of a session, with their methods.
#[derive(Clone)]
pub struct Attachments {
    services: HashMap<&'static str, BoxService>,
    methods: Vec<String>,
}

impl fmt::Debug for Attachments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attachments").field("methods", &self.methods).finish_non_exhaustive()
    }
}

impl Default for Attachments {
    fn default() -> Self {
        Self::new()
    }
}

impl Attachments {
    /// Starts with the health service alone.
    pub fn new() -> Self {
        let none = Self { services: HashMap::new(), methods: Vec::new() };
        none.add(HealthService, &["Check"])
    }

    /// Adds a service; `methods` are the short names of those that it answers.
    pub fn add<S>(mut self, service: S, methods: &[&str]) -> Self
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
            + NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send + 'static,
    {
        self.methods.extend(methods.iter().map(|method| format!("/{}/{method}", S::NAME)));
        self.services.insert(S::NAME, BoxCloneSyncService::new(service));
        self
    }

    /// Full names of all methods, as the head of a session lists them.
    pub fn methods(&self) -> &[String] {
        &self.methods
    }

    /// Serves one connection until the peer ends it.
    ///
    /// # Errors
    /// [`Error::InvalidSession`] if the peer does not speak HTTP/2.
    pub async fn serve<T>(&self, io: T, tasks: TaskTracker) -> Result<()>
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let services = self.services.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let name = request.uri().path().trim_start_matches('/').split('/').next().unwrap_or_default();
            let service = services.get(name).cloned();
            async move {
                match service {
                    Some(service) => service.oneshot(request.map(Body::new)).await,
                    None => Ok(Status::unimplemented("unknown service").into_http()),
                }
            }
        });
        hyper::server::conn::http2::Builder::new(Tasks(tasks))
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .serve_connection(TokioIo::new(io), service)
            .await
            .map_err(|error| Error::InvalidSession { reason: error.to_string() })
    }
}

/// How a session introduces itself.
#[derive(Clone, Debug, Default)]
pub struct SessionHead {
    /// Its id, chosen at random.
    pub id: String,
    /// What the daemon finds local snapshots of the same client by; may be empty.
    pub shared_key: String,
}

/// Opens a session at the daemon behind `control` and serves it until the daemon ends it or `cancel` fires.
///
/// # Errors
/// What the daemon answered, or that it does not speak HTTP/2 on the session.
pub async fn run(
    control: tonic::transport::Channel,
    head: &SessionHead,
    attachments: &Attachments,
    cancel: CancellationToken,
) -> Result<()> {
    let (given, incoming) = futures::channel::oneshot::channel();
    // The daemon may answer only once it has bytes, so the pipe is there before the answer is.
    let incoming = futures::stream::once(incoming).filter_map(|stream| async { stream.ok() }).flatten();
    let (pipe, outgoing) = Pipe::new(incoming.take_until(cancel.clone().cancelled_owned()));
    let outgoing = ReceiverStream::new(outgoing).take_until(cancel.clone().cancelled_owned());
    let mut call = tonic::Request::new(outgoing.map(|data: Bytes| BytesMessage { data }));
    let metadata = call.metadata_mut();
    metadata.insert(ID_KEY, headers::parse(&head.id)?);
    metadata.insert(SHARED_KEY_KEY, headers::parse(&head.shared_key)?);
    for method in attachments.methods() {
        metadata.append(METHOD_KEY, headers::parse(method)?);
    }
    let calling = async move {
        let stream = ControlClient::new(control).session(call).await?.into_inner();
        // Fails only if the pipe is gone.
        let _given = given.send(stream.map(|item| item.map(|message| message.data)).boxed());
        std::future::pending::<Result<()>>().await
    };
    // The calls that the daemon still has open end with the pipe.
    let tasks = TaskTracker::new();
    tokio::select! {
        () = cancel.cancelled() => Ok(()),
        outcome = calling => outcome,
        outcome = attachments.serve(pipe, tasks) => outcome,
    }
}

/// Answers that the session is alive.
#[derive(Clone, Copy, Debug)]
struct HealthService;

impl NamedService for HealthService {
    const NAME: &'static str = "grpc.health.v1.Health";
}

impl Service<Request<Body>> for HealthService {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = futures::future::BoxFuture<'static, std::result::Result<Response<Body>, Infallible>>;

    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::result::Result<(), Infallible>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(async move {
            if request.uri().path() != health::CHECK {
                return Ok(Status::new(Code::Unimplemented, "unknown method").into_http());
            }
            Ok(tonic::server::Grpc::new(RawCodec).unary(Alive, request).await)
        })
    }
}

struct Alive;

impl tonic::server::UnaryService<Bytes> for Alive {
    type Response = Bytes;
    type Future = std::future::Ready<std::result::Result<tonic::Response<Bytes>, Status>>;

    fn call(&mut self, _: tonic::Request<Bytes>) -> Self::Future {
        // HealthCheckResponse { status: SERVING }
        std::future::ready(Ok(tonic::Response::new(Bytes::from_static(&[0x08, 0x01]))))
    }
}
