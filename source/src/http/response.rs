//! Requests and their answers, within bounds of time.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use reqwest::header::{
    AUTHORIZATION, CONTENT_DISPOSITION, ETAG, HeaderMap, HeaderName, IF_NONE_MATCH, LAST_MODIFIED,
};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode};

use crate::error::{BoxError, Error, Result};
use crate::http::request::{HttpRequest, shown};

/// The most redirects that are followed.
const MAX_REDIRECTS: usize = 10;
/// How long a host may take to be connected to.
const DIAL: Duration = Duration::from_secs(30);

/// Makes a client. Credentials stay with the host that they were meant for: a redirect elsewhere drops them.
pub(crate) fn client(user_agent: &str, local: bool) -> Result<Client, reqwest::Error> {
    let mut builder = Client::builder()
        .user_agent(user_agent)
        .redirect(reqwest::redirect::Policy::limited(MAX_REDIRECTS))
        .referer(false)
        .connect_timeout(DIAL);
    // A proxy cannot reach what only this machine can.
    if local {
        builder = builder.no_proxy();
    }
    builder.build()
}

/// A request with the build's own headers. Compressed bodies are not asked for, so that tags name what is stored.
pub(crate) fn build(
    client: &Client,
    method: Method,
    request: &HttpRequest,
    authorization: Option<&str>,
    etags: &[String],
) -> Result<RequestBuilder> {
    let mut builder = client.request(method, request.url.clone());
    for (name, value) in &request.headers {
        if let Ok(name) = HeaderName::from_bytes(name.as_bytes()) {
            builder = builder.header(name, value);
        }
    }
    if let Some(value) = authorization {
        let mut value = reqwest::header::HeaderValue::from_str(value)
            .map_err(|_| Error::Secret { what: "an `Authorization` header", url: request.shown() })?;
        value.set_sensitive(true);
        builder = builder.header(AUTHORIZATION, value);
    }
    if !etags.is_empty() {
        builder = builder.header(IF_NONE_MATCH, etags.join(", "));
    }
    Ok(builder)
}

/// The head of an answer, whatever its status.
pub(crate) async fn send(
    builder: RequestBuilder,
    request: &HttpRequest,
    stall: Duration,
) -> Result<Response> {
    match tokio::time::timeout(stall, builder.send()).await {
        Ok(answer) => answer.map_err(|error| failed(request, error)),
        Err(_) => Err(Error::Stalled { url: request.shown(), seconds: stall.as_secs() }),
    }
}

/// Why an answer is none to keep.
pub(crate) fn status_error(response: &Response) -> Error {
    Error::Status { url: shown(response.url()), status: response.status().as_u16() }
}

pub(crate) fn is_good(status: StatusCode) -> bool {
    (200..400).contains(&status.as_u16())
}

/// The body, piece by piece; a server that is silent for `stall` has ended it.
pub(crate) fn body(
    response: Response,
    request: &HttpRequest,
    stall: Duration,
) -> BoxStream<'static, Result<Bytes>> {
    let state = Some((response, request.clone()));
    let pieces = futures::stream::unfold(state, move |state| async move {
        let (mut response, request) = state?;
        match tokio::time::timeout(stall, response.chunk()).await {
            Ok(Ok(Some(piece))) => Some((Ok(piece), Some((response, request)))),
            Ok(Ok(None)) => None,
            Ok(Err(error)) => Some((Err(failed(&request, error)), None)),
            Err(_) => {
                let error = Error::Stalled { url: request.shown(), seconds: stall.as_secs() };
                Some((Err(error), None))
            }
        }
    });
    pieces.boxed()
}

fn failed(request: &HttpRequest, error: reqwest::Error) -> Error {
    let reason: BoxError = error.without_url().into();
    Error::Transfer { url: request.shown(), source: reason }
}

/// What the headers of an answer say of its body.
#[derive(Clone, Debug, Default)]
pub(crate) struct Described {
    pub(crate) disposition: Option<String>,
    /// In the form that HTTP prefers.
    pub(crate) modified: Option<String>,
    pub(crate) etag: Option<String>,
}

impl Described {
    pub(crate) fn read(headers: &HeaderMap) -> Self {
        let text = |name: HeaderName| {
            // A header with other than ASCII in it is read as UTF-8, as servers mean it.
            headers.get(name).and_then(|value| std::str::from_utf8(value.as_bytes()).ok())
        };
        let modified = text(LAST_MODIFIED).and_then(|text| httpdate::parse_http_date(text).ok());
        Self {
            disposition: text(CONTENT_DISPOSITION).map(str::to_owned),
            modified: modified.map(httpdate::fmt_http_date),
            etag: text(ETAG).and_then(crate::http::records::etag),
        }
    }
}
