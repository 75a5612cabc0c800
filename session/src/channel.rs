//! The daemon's end of a session: an HTTP/2 client on the byte pipe.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio_util::task::TaskTracker;
use tonic::body::Body;
use tower::Service;

use crate::error::{Error, Result};
use crate::pipe::Pipe;

/// Bytes that may be on their way per stream and in all, before the receiver has to make room.
const STREAM_WINDOW: u32 = 2 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;
/// Bytes of headers or trailers, details of errors among them.
const MAX_HEADERS: u32 = 1 << 20;
/// How long the other side may take to start speaking HTTP/2.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(20);

/// A gRPC transport that calls the client of one session. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Channel {
    sender: SendRequest<Body>,
}

/// Drives the connection; ends with it.
pub(crate) type Connection = Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>;

impl Channel {
    pub(crate) async fn open(pipe: Pipe, tasks: TaskTracker) -> Result<(Self, Connection)> {
        let handshake = http2::Builder::new(Tasks(tasks))
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(MAX_HEADERS)
            .handshake(TokioIo::new(pipe));
        let failed = |reason: String| Error::InvalidSession { reason };
        let (sender, connection) = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake)
            .await
            .map_err(|_| failed("no HTTP/2 handshake".to_owned()))?
            .map_err(|error| failed(error.to_string()))?;
        Ok((Self { sender }, Box::pin(connection)))
    }
}

impl Service<Request<Body>> for Channel {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = hyper::Result<Response<Incoming>>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        self.sender.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let path = request.uri().path_and_query().cloned();
        *request.uri_mut() = absolute(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
        Box::pin(self.sender.send_request(request))
    }
}

fn absolute(path: PathAndQuery) -> Uri {
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = Some(Authority::from_static("localhost"));
    parts.path_and_query = Some(path);
    // All three parts are there, so they make a URI.
    Uri::from_parts(parts).unwrap_or_default()
}

/// Lets hyper's tasks belong to the owner of the session.
#[derive(Clone, Debug)]
pub(crate) struct Tasks(pub(crate) TaskTracker);

impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, future: F) {
        self.0.spawn(future);
    }
}
