//! The gateway on the standard streams of a frontend: one HTTP/2 connection, on which the frontend is the client.

use async_trait::async_trait;
use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use kiln_api::gateway::llb_bridge_server::LlbBridgeServer;
use kiln_engine::{BoxError, BridgeServer, BuildBridge};
use tokio::io::DuplexStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::body::Body;
use tonic::service::Routes;
use tower::ServiceExt as _;

use crate::gateway::{Calls, Gateway};
use crate::service::{MAX_ANSWER, MAX_REQUEST, Version};

/// Calls that a frontend may have open at a time; more wait for their turn.
const MAX_CALLS: u32 = 250;
/// Bytes that may be on their way per call and in all, before the receiver has to make room.
const CALL_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;

/// Serves the gateway to frontends that run as processes.
#[derive(Clone, Debug, Default)]
pub struct FrontendServer {
    /// The daemon's version, as they are told it.
    pub version: Version,
}

#[async_trait]
impl BridgeServer for FrontendServer {
    async fn serve(&self, bridge: BuildBridge, connection: DuplexStream) -> Result<(), BoxError> {
        let tasks = TaskTracker::new();
        let gateway =
            Gateway { calls: Calls::One(bridge), version: self.version.clone(), tasks: tasks.clone() };
        let gateway = LlbBridgeServer::new(gateway)
            .max_decoding_message_size(MAX_REQUEST)
            .max_encoding_message_size(MAX_ANSWER);
        let (health, health_service) = tonic_health::server::health_reporter();
        health.set_service_status("", tonic_health::ServingStatus::Serving).await;
        let routes = Routes::new(gateway).add_service(health_service).prepare();
        let service =
            service_fn(move |request: Request<Incoming>| routes.clone().oneshot(request.map(Body::new)));
        let ended = CancellationToken::new();
        let _end = ended.clone().drop_guard();
        hyper::server::conn::http2::Builder::new(Calling { ended, tasks })
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_CALLS)
            .initial_stream_window_size(CALL_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .serve_connection(TokioIo::new(connection), service)
            .await
            .map_err(Into::into)
    }
}

/// Runs the calls of one connection, which end with it.
#[derive(Clone, Debug)]
struct Calling {
    ended: CancellationToken,
    tasks: TaskTracker,
}

impl<F> hyper::rt::Executor<F> for Calling
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, future: F) {
        self.tasks.spawn(self.ended.clone().run_until_cancelled_owned(future));
    }
}
