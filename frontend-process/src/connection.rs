//! The daemon at the other end of standard input and output.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use http::Uri;
use hyper_util::rt::TokioIo;
use kiln_api::gateway::llb_bridge_client::LlbBridgeClient;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use crate::error::{Error, Result};

/// What calls go through.
pub(crate) type Client = LlbBridgeClient<Channel>;

/// Bytes of one message, each way: daemons send definitions and files of a result whole.
const MAX_MESSAGE: usize = 64 << 20;
/// Bytes that may be on their way per call and in all.
const CALL_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
/// Bytes of trailers. Details of an error are trailers, and one of them may be a whole Dockerfile.
const MAX_HEADERS: u32 = 16 << 20;

/// Opens the one connection there is.
pub(crate) async fn open() -> Result<Client> {
    let streams = Arc::new(Mutex::new(Some(tokio::io::join(tokio::io::stdin(), tokio::io::stdout()))));
    // A connection that has ended cannot be made anew.
    let connector = service_fn(move |_: Uri| {
        let streams = streams.lock().unwrap_or_else(PoisonError::into_inner).take();
        std::future::ready(
            streams.map(TokioIo::new).ok_or_else(|| io::Error::from(io::ErrorKind::BrokenPipe)),
        )
    });
    let channel = Endpoint::from_static("http://localhost")
        .initial_stream_window_size(CALL_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_max_header_list_size(MAX_HEADERS)
        .connect_with_connector(connector)
        .await
        .map_err(Error::Connect)?;
    Ok(LlbBridgeClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE))
}
