//! One request: authorized, redirected, and repeated where the protocol says so.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::header::{AUTHORIZATION, HeaderMap, LOCATION, RETRY_AFTER};
use reqwest::{Body, Client, Method, RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize;

use crate::access::{Access, Secret};
use crate::auth::Purpose;
use crate::challenge;
use crate::client::Registry;
use crate::error::{Error, Kind, Result};
use crate::gate::{Slot, Traffic};
use crate::hosts::{Scheme, Target, has_port};
use crate::scope::Scopes;

/// How often one request is made, counting those that only brought a challenge.
const MAX_TRIES: usize = 5;
const MAX_REDIRECTS: usize = 10;
/// The pause after a broken connection; a pause for a busy host comes from the configuration.
const TRANSPORT_PAUSE: Duration = Duration::from_millis(50);
/// A host that asks for a longer pause is not waited for that long.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(30);
/// How much of an error's explanation is read, and how much of it shown.
const MAX_ERROR_BODY: u64 = 64_000;
const MAX_ERROR_SHOWN: usize = 1000;
/// Once a body is sent, the registry may need a while to digest it.
const COMMIT_FACTOR: u32 = 5;

/// A request to a host of a reference.
#[derive(Clone)]
pub(crate) struct Call<'a> {
    pub(crate) target: &'a Target,
    pub(crate) method: Method,
    pub(crate) url: CallUrl,
    pub(crate) headers: HeaderMap,
    pub(crate) scopes: Scopes,
    pub(crate) traffic: Traffic,
    /// No other host is asked after this one, so trying again is worth it.
    pub(crate) last: bool,
    pub(crate) body: Option<&'a dyn Upload>,
    /// Credentials are neither offered nor asked for.
    pub(crate) anonymous: bool,
}

/// Where a call goes.
#[derive(Clone)]
pub(crate) enum CallUrl {
    /// `<repository>/<rest>` below the target's base, with `ns=` and such.
    Path { path: String, query: Vec<(&'static str, String)> },
    /// Elsewhere, such as an upload location; authorized only when it is on the target's host.
    Absolute(Url),
}

/// A body that can be made again for another try.
pub(crate) trait Upload: Send + Sync {
    fn body(&self) -> Result<Body>;
    /// Bytes handed out so far and the bytes there are.
    fn progress(&self) -> (u64, u64);
    /// Bytes there are.
    fn length(&self) -> u64 {
        self.progress().1
    }
}

/// An answer whose slot at the host is held until it is dropped.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) response: Response,
    pub(crate) slot: Slot,
    pub(crate) url: Url,
}

impl Registry {
    /// Makes a request; any status but those that ask for another try is an answer.
    ///
    /// # Cancel safety
    /// A dropped call closes its connection; the registry may have carried it out.
    pub(crate) async fn send(&self, call: &Call<'_>, access: Access<'_>) -> Result<Answer> {
        let mut call = call.clone();
        let client = self.client(call.target)?;
        let patience = self.config().stall_timeout;
        let slot = self.gates().enter(&call.target.host, call.traffic).await;
        let mut previous: Option<StatusCode> = None;
        let mut renewed = false;
        let mut pause = self.config().retry_pause;
        for attempt in 1..=MAX_TRIES {
            let is_final = attempt == MAX_TRIES;
            let url = self.url(&call)?;
            let scopes = call.scopes.clone();
            let purpose = Purpose { client: &client, host: &call.target.host, scopes: &scopes, patience };
            let header = if !call.anonymous && self.is_own(call.target, &url) {
                self.auth().authorize(purpose, access).await?
            } else {
                None
            };
            let (response, url) = match self.follow(&client, &call, url, header.as_ref()).await {
                Ok(done) => done,
                Err(error) if call.last && !is_final && broke_off(&error) => {
                    tokio::time::sleep(TRANSPORT_PAUSE).await;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let status = response.status();
            let seen = previous.replace(status);
            match status.as_u16() {
                401 if !is_final && !call.anonymous && self.is_own(call.target, &url) => {
                    let challenges = challenge::parse(response.headers());
                    if challenges.is_empty() {
                        return Ok(Answer { response, slot, url });
                    }
                    drop(response);
                    self.auth().challenged(&challenges, header.as_ref(), renewed, purpose, access).await?;
                    renewed = true;
                }
                // Some registries know no HEAD.
                405 if call.method == Method::HEAD && url.path().contains("/manifests/") && !is_final => {
                    call.method = Method::GET;
                }
                408 | 429 if !is_final => {
                    let wait = retry_after(&response).unwrap_or(pause).min(MAX_RETRY_AFTER);
                    drop(response);
                    tokio::time::sleep(wait).await;
                    pause *= 2;
                }
                500 | 503 | 504 if call.last && !is_final && seen != Some(status) => {
                    drop(response);
                    tokio::time::sleep(TRANSPORT_PAUSE).await;
                }
                _ => return Ok(Answer { response, slot, url }),
            }
        }
        // Every arm of the last attempt returns; a loop that asks once more would never end.
        Err(Error::AuthorizationFailed { message: String::new() })
    }

    /// Sends a request and follows its redirects. The credentials stay with the host they are for.
    async fn follow(
        &self,
        client: &Client,
        call: &Call<'_>,
        mut url: Url,
        header: Option<&Secret>,
    ) -> Result<(Response, Url)> {
        let method = name(&call.method);
        for _ in 0..=MAX_REDIRECTS {
            let response = match self.once(client, call, &url, header).await {
                Err(error) if self.falls_back(call.target, &url, &error) => {
                    self.remember_plain(&call.target.host);
                    let _ = url.set_scheme("http");
                    self.once(client, call, &url, header).await?
                }
                other => other?,
            };
            let repeats = match response.status().as_u16() {
                301..=303 => matches!(call.method, Method::GET | Method::HEAD),
                307 | 308 => true,
                _ => false,
            };
            let Some(location) = response.headers().get(LOCATION).filter(|_| repeats) else {
                return Ok((response, url));
            };
            let next = location.to_str().ok().and_then(|location| url.join(location).ok());
            url = match next {
                Some(next) if matches!(next.scheme(), "http" | "https") => without_userinfo(next),
                _ => return Err(invalid(&url, "the address it redirects to is not usable")),
            };
        }
        Err(Error::InvalidResponse {
            url: shown(&url),
            reason: format!("{method} stopped after {MAX_REDIRECTS} redirects"),
        })
    }

    async fn once(
        &self,
        client: &Client,
        call: &Call<'_>,
        url: &Url,
        header: Option<&Secret>,
    ) -> Result<Response> {
        let mut builder = client.request(call.method.clone(), url.clone()).headers(call.headers.clone());
        if let Some(header) = header.filter(|_| self.is_own(call.target, url)) {
            builder = builder.header(AUTHORIZATION, header.expose());
        }
        let patience = self.config().stall_timeout;
        let method = name(&call.method);
        let Some(upload) = call.body else {
            return with_patience(builder, method, url, patience).await;
        };
        builder = builder.body(upload.body()?);
        let mut answer = Box::pin(builder.send());
        let mut before = upload.progress();
        let mut silent = 0;
        loop {
            match tokio::time::timeout(patience, &mut answer).await {
                Ok(result) => return result.map_err(|source| transport(method, url, source)),
                Err(_) => {
                    let now = upload.progress();
                    silent = if now == before { silent + 1 } else { 0 };
                    let allowed = if now.0 >= now.1 { COMMIT_FACTOR } else { 1 };
                    if silent >= allowed {
                        return Err(stalled(url, patience * allowed));
                    }
                    before = now;
                }
            }
        }
    }

    fn url(&self, call: &Call<'_>) -> Result<Url> {
        let (path, query) = match &call.url {
            CallUrl::Absolute(url) => return Ok(url.clone()),
            CallUrl::Path { path, query } => (path, query),
        };
        let target = call.target;
        let scheme = match target.scheme {
            Scheme::Http => "http",
            Scheme::Either if self.is_plain(&target.host) => "http",
            Scheme::Https | Scheme::Either => "https",
        };
        let text = format!("{scheme}://{}{}/{path}", target.host, target.base);
        let mut url = Url::parse(&text)
            .map_err(|error| Error::InvalidResponse { url: text, reason: error.to_string() })?;
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        Ok(url)
    }

    /// Tells whether `url` is on the target's own host, which may see its credentials.
    fn is_own(&self, target: &Target, url: &Url) -> bool {
        let scheme = match target.scheme {
            Scheme::Http => url.scheme() == "http",
            Scheme::Https => url.scheme() == "https",
            Scheme::Either => true,
        };
        let own = Url::parse(&format!("{}://{}/", url.scheme(), target.host));
        scheme
            && own.is_ok_and(|own| {
                own.host() == url.host() && own.port_or_known_default() == url.port_or_known_default()
            })
    }

    fn falls_back(&self, target: &Target, url: &Url, error: &Error) -> bool {
        if target.scheme != Scheme::Either || url.scheme() != "https" || !self.is_own(target, url) {
            return false;
        }
        match error {
            Error::Transport { source, .. } if source.is_connect() => {
                speaks_plain_http(source) || (!has_port(&target.host) && is_unreachable(source))
            }
            Error::Stalled { .. } => !has_port(&target.host),
            _ => false,
        }
    }
}

/// Sends a request and waits `patience` for the head of its answer.
pub(crate) async fn with_patience(
    builder: RequestBuilder,
    method: &'static str,
    url: &Url,
    patience: Duration,
) -> Result<Response> {
    match tokio::time::timeout(patience, builder.send()).await {
        Ok(result) => result.map_err(|source| transport(method, url, source)),
        Err(_) => Err(stalled(url, patience)),
    }
}

/// Reads a body of at most `max` bytes.
pub(crate) async fn read_bounded(mut response: Response, max: u64, patience: Duration) -> Result<Bytes> {
    let url = response.url().clone();
    let too_large = |actual| Error::TooLarge { what: shown(&url), actual, limit: max };
    if let Some(length) = response.content_length().filter(|length| *length > max) {
        return Err(too_large(length));
    }
    let mut body = BytesMut::new();
    while let Some(chunk) = next_chunk(&mut response, &url, patience).await? {
        if (body.len() + chunk.len()) as u64 > max {
            return Err(too_large((body.len() + chunk.len()) as u64));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

/// Waits for the next part of a body.
pub(crate) async fn next_chunk(
    response: &mut Response,
    url: &Url,
    patience: Duration,
) -> Result<Option<Bytes>> {
    match tokio::time::timeout(patience, response.chunk()).await {
        Ok(result) => result.map_err(|source| transport("GET", url, source)),
        Err(_) => Err(stalled(url, patience)),
    }
}

/// Turns an unwelcome answer into an error with the registry's own explanation.
pub(crate) async fn unexpected_status(
    mut response: Response,
    method: &'static str,
    patience: Duration,
) -> Error {
    let status = response.status();
    let url = response.url().clone();
    let mut body = BytesMut::new();
    while let Ok(Some(chunk)) = next_chunk(&mut response, &url, patience).await {
        body.extend_from_slice(&chunk);
        if body.len() as u64 > MAX_ERROR_BODY {
            break;
        }
    }
    Error::Status { method, url: shown(&url), status, message: explanation(&body) }
}

/// Reads `{"errors":[{"code":…,"message":…}]}` as `code: message`.
fn explanation(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Errors {
        #[serde(default)]
        errors: Vec<One>,
    }
    #[derive(Deserialize)]
    struct One {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let Ok(errors) = serde_json::from_slice::<Errors>(body) else {
        return String::new();
    };
    let texts: Vec<String> = errors
        .errors
        .iter()
        .map(|error| {
            let code = error.code.to_lowercase().replace('_', " ");
            match error.message.is_empty() {
                true => code,
                false => format!("{code}: {}", error.message),
            }
        })
        .collect();
    texts.join(", ").chars().filter(|c| !c.is_control()).take(MAX_ERROR_SHOWN).collect()
}

/// Returns an address as errors show it: without its query, which may hold signatures.
pub(crate) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    without_userinfo(url).to_string()
}

pub(crate) fn without_userinfo(mut url: Url) -> Url {
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url
}

pub(crate) fn invalid(url: &Url, reason: &str) -> Error {
    Error::InvalidResponse { url: shown(url), reason: reason.to_owned() }
}

pub(crate) fn name(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        _ => "request",
    }
}

fn transport(method: &'static str, url: &Url, source: reqwest::Error) -> Error {
    Error::Transport { method, url: shown(url), source: source.without_url() }
}

fn stalled(url: &Url, after: Duration) -> Error {
    Error::Stalled { url: shown(url), after }
}

fn retry_after(response: &Response) -> Option<Duration> {
    let seconds: u64 = response.headers().get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// Tells a connection that broke from a host that is silent: asking that one again at once only takes longer.
fn broke_off(error: &Error) -> bool {
    match error {
        Error::Transport { source, .. } => !source.is_timeout() && error.kind() == Kind::Temporary,
        _ => false,
    }
}

/// Tells a server that answered the TLS hello with HTTP.
fn speaks_plain_http(error: &reqwest::Error) -> bool {
    causes(error).any(|cause| cause.to_string().contains("InvalidContentType"))
}

fn is_unreachable(error: &reqwest::Error) -> bool {
    error.is_timeout()
        || causes(error).filter_map(|cause| cause.downcast_ref::<std::io::Error>()).any(|io| {
            matches!(io.kind(), std::io::ErrorKind::ConnectionRefused | std::io::ErrorKind::TimedOut)
        })
}

fn causes(error: &reqwest::Error) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    let first: &(dyn std::error::Error + 'static) = error;
    std::iter::successors(Some(first), |cause| cause.source())
}

/// A body that is all in memory.
pub(crate) struct Whole {
    bytes: Bytes,
    sent: Arc<AtomicU64>,
}

impl Whole {
    pub(crate) fn new(bytes: Bytes) -> Self {
        Self { bytes, sent: Arc::default() }
    }
}

impl Upload for Whole {
    fn body(&self) -> Result<Body> {
        self.sent.store(self.bytes.len() as u64, Ordering::Relaxed);
        Ok(Body::from(self.bytes.clone()))
    }

    fn progress(&self) -> (u64, u64) {
        (self.sent.load(Ordering::Relaxed), self.bytes.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn explanations_are_short_and_clean() {
        for (body, want) in [
            (
                r#"{"errors":[{"code":"NAME_UNKNOWN","message":"no\nrepo"},{"code":"DENIED"}]}"#,
                "name unknown: norepo, denied",
            ),
            ("<html>", ""),
            ("{}", ""),
        ] {
            assert_eq!(explanation(body.as_bytes()), want);
        }
    }

    #[test]
    fn shown_addresses_hold_no_secrets() {
        let url = Url::parse("https://u:p@h.x/a/b?sig=1#f").unwrap();
        assert_eq!(shown(&url), "https://h.x/a/b");
    }
}
