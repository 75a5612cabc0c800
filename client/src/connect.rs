use std::io;
use std::time::Duration;

use futures::future::BoxFuture;
use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use crate::address::Address;
use crate::error::{Error, Result};
use crate::stdio::CommandStream;
use crate::tls::{Tls, TlsFiles};

/// Bytes that may be on their way per stream and in all. A session with all its transfers is one stream.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;
/// Bytes of headers or trailers. Details of an error are trailers, and one of them is the whole Dockerfile.
const MAX_HEADERS: u32 = 16 << 20;

/// How a daemon is connected to.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ConnectOptions {
    /// How long connecting may take; none for any time.
    pub timeout: Option<Duration>,
    /// TLS for `tcp` addresses; without it they are plain text.
    pub tls: Option<TlsFiles>,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self { timeout: Some(Duration::from_secs(5)), tls: None }
    }
}

/// A byte stream to a daemon.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for T {}
type BoxStream = Box<dyn Stream>;

pub(crate) async fn connect(text: &str, options: &ConnectOptions) -> Result<Channel> {
    let address = Address::parse(text)?;
    let tls = match (&options.tls, &address) {
        (Some(files), Address::Tcp(host)) => {
            let host = host.rsplit_once(':').map_or(host.as_str(), |(host, _)| host);
            Some(Tls::load(files, host.trim_start_matches('[').trim_end_matches(']'))?)
        }
        _ => None,
    };
    // Also for every time that the connection has to be made anew.
    let connector = service_fn(move |_: Uri| {
        let (address, tls) = (address.clone(), tls.clone());
        let opening: BoxFuture<'static, io::Result<TokioIo<BoxStream>>> =
            Box::pin(async move { open(&address, tls.as_ref()).await.map(TokioIo::new) });
        opening
    });
    let endpoint = Endpoint::from_static("http://localhost")
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_max_header_list_size(MAX_HEADERS);
    let connecting = endpoint.connect_with_connector(connector);
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| Error::Connect {
        address: text.to_owned(),
        source,
    };
    let outcome = match options.timeout {
        None => connecting.await,
        Some(limit) => tokio::time::timeout(limit, connecting)
            .await
            .map_err(|_| failed("context deadline exceeded".into()))?,
    };
    outcome.map_err(|error| failed(Box::new(error)))
}

async fn open(address: &Address, tls: Option<&Tls>) -> io::Result<BoxStream> {
    Ok(match address {
        Address::Unix(path) => Box::new(UnixStream::connect(path).await?),
        Address::Tcp(host) => {
            let stream = TcpStream::connect(host.as_str()).await?;
            stream.set_nodelay(true)?;
            match tls {
                Some(tls) => Box::new(tls.connect(stream).await?),
                None => Box::new(stream),
            }
        }
        Address::Command(words) => Box::new(CommandStream::start(words)?),
    })
}
