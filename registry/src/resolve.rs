//! From a reference to the descriptor of what it names.

use bytes::Bytes;
use kiln_content::Descriptor;
use kiln_digest::Digest;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, StatusCode};

use crate::access::Access;
use crate::client::Registry;
use crate::document::{self, is_document};
use crate::error::{Error, Result};
use crate::gate::Traffic;
use crate::hosts::Target;
use crate::reference::Reference;
use crate::retry::with_retries;
use crate::scope::Scopes;
use crate::send::{self, Answer, Call, CallUrl};

/// The header with the digest of a manifest.
pub(crate) const CONTENT_DIGEST: &str = "docker-content-digest";

/// How far a failed host got; the error of the one that got furthest is shown.
type Failure = (u8, Error);

impl Registry {
    /// Asks the mirrors and the origin, in order, what `reference` names.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::PullDenied`], or whatever the most telling host answered.
    ///
    /// # Cancel safety
    /// Changes nothing.
    pub async fn resolve(&self, reference: &Reference, access: Access<'_>) -> Result<Descriptor> {
        with_retries(self.config(), access.observer, || self.resolve_once(reference, access)).await
    }

    async fn resolve_once(&self, reference: &Reference, access: Access<'_>) -> Result<Descriptor> {
        let Some(object) = reference.object() else {
            return Err(Error::InvalidReference { input: reference.to_string(), reason: "object required" });
        };
        let targets = self.config().targets(reference.host());
        let mut worst: Option<Failure> = None;
        let endpoints: &[&str] = match reference.digest() {
            // Registries of old served manifests as blobs.
            Some(_) => &["manifests", "blobs"],
            None => &["manifests"],
        };
        for endpoint in endpoints {
            if worst.as_ref().is_some_and(|(rank, _)| *rank > 2) {
                break;
            }
            for (at, target) in targets.iter().enumerate() {
                let call = manifest_call(
                    reference,
                    target,
                    &format!("{endpoint}/{object}"),
                    at + 1 == targets.len(),
                );
                let failure = match self.resolve_at(reference, call, access).await {
                    Ok(found) => return Ok(found),
                    Err(failure) => failure,
                };
                tracing::debug!(host = %target.host, error = %failure.1, "a host did not resolve");
                if worst.as_ref().is_none_or(|(rank, _)| *rank < failure.0) {
                    worst = Some(failure);
                }
            }
        }
        Err(worst.map_or_else(|| Error::NotFound { what: reference.to_string() }, |(_, error)| error))
    }

    async fn resolve_at(
        &self,
        reference: &Reference,
        call: Call<'_>,
        access: Access<'_>,
    ) -> std::result::Result<Descriptor, Failure> {
        let patience = self.config().stall_timeout;
        let head = self.send(&call, access).await.map_err(|error| (1, pull_error(error)))?;
        let status = head.response.status();
        if status == StatusCode::NOT_FOUND {
            return Err((2, Error::NotFound { what: reference.to_string() }));
        }
        if !status.is_success() {
            drop(head);
            // The answer to a HEAD has no body, so only a GET tells why.
            let error = match status {
                StatusCode::FORBIDDEN => match self.send(&as_get(&call), access).await {
                    Ok(answer) => send::unexpected_status(answer.response, "GET", patience).await,
                    Err(error) => error,
                },
                _ => Error::Status { method: "HEAD", url: self.shown(&call), status, message: String::new() },
            };
            return Err((3, pull_error(error)));
        }
        let known = match reference.digest() {
            Some(digest) => Some(*digest),
            // The only moment at which a registry is believed: the name's digest is what it says.
            None => announced_digest(&head.response).map_err(|error| (3, error))?,
        };
        let kind = media_type(&head.response);
        let size = content_length(&head.response);
        drop(head);
        match (known, size) {
            (Some(digest), Some(size)) if is_document(&kind) => {
                self.bounded(reference, size).map_err(|error| (4, error))?;
                Ok(Descriptor::new(kind, digest, size))
            }
            _ => self
                .resolve_by_content(reference, &call, known, kind, access)
                .await
                .map_err(|error| (4, error)),
        }
    }

    /// Reads the manifest, because its head did not say enough.
    async fn resolve_by_content(
        &self,
        reference: &Reference,
        call: &Call<'_>,
        known: Option<Digest>,
        kind: String,
        access: Access<'_>,
    ) -> Result<Descriptor> {
        let answer = self.send(&as_get(call), access).await.map_err(pull_error)?;
        let (body, url) = self.body(answer).await?;
        let actual = Digest::of(&body);
        if let Some(expected) = known.filter(|expected| reference.digest().is_some() && *expected != actual) {
            return Err(Error::DigestMismatch {
                url: send::shown(&url),
                expected,
                actual: actual.to_string(),
            });
        }
        let kind = if is_document(&kind) { kind } else { document::sniff(&body)? };
        Ok(Descriptor::new(kind, actual, body.len() as u64))
    }

    /// Reads the body of a document's answer.
    pub(crate) async fn body(&self, answer: Answer) -> Result<(Bytes, reqwest::Url)> {
        let patience = self.config().stall_timeout;
        if !answer.response.status().is_success() {
            return Err(send::unexpected_status(answer.response, "GET", patience).await);
        }
        let body = send::read_bounded(answer.response, self.config().max_document, patience).await?;
        Ok((body, answer.url))
    }

    pub(crate) fn bounded(&self, what: &Reference, size: u64) -> Result<()> {
        let limit = self.config().max_document;
        if size > limit {
            return Err(Error::TooLarge { what: what.to_string(), actual: size, limit });
        }
        Ok(())
    }

    fn shown(&self, call: &Call<'_>) -> String {
        match &call.url {
            CallUrl::Absolute(url) => send::shown(url),
            CallUrl::Path { path, .. } => format!("{}{}/{path}", call.target.host, call.target.base),
        }
    }
}

/// Makes a call below the repository of `reference`.
pub(crate) fn repository_call<'a>(
    reference: &Reference,
    target: &'a Target,
    method: Method,
    rest: &str,
    last: bool,
) -> Call<'a> {
    let query = if target.mirror { vec![("ns", reference.host().to_owned())] } else { Vec::new() };
    Call {
        target,
        method,
        url: CallUrl::Path { path: format!("{}/{rest}", reference.path()), query },
        headers: HeaderMap::new(),
        scopes: Scopes::pull(reference.path()),
        traffic: Traffic::Blob,
        last,
        body: None,
        anonymous: false,
    }
}

fn manifest_call<'a>(reference: &Reference, target: &'a Target, rest: &str, last: bool) -> Call<'a> {
    let mut call = repository_call(reference, target, Method::HEAD, rest, last);
    call.headers.insert(ACCEPT, HeaderValue::from_static(document::ACCEPT));
    call.traffic = Traffic::Document;
    call
}

fn as_get<'a>(call: &Call<'a>) -> Call<'a> {
    let mut call = call.clone();
    call.method = Method::GET;
    call
}

/// Says that it is about reading when a request was not authorized.
pub(crate) fn pull_error(error: Error) -> Error {
    let denied = match &error {
        Error::Status { status, .. } => *status == StatusCode::UNAUTHORIZED,
        other => other.is_authorization_failure(),
    };
    match denied {
        true => Error::PullDenied { source: Box::new(error) },
        false => error,
    }
}

pub(crate) fn announced_digest(response: &reqwest::Response) -> Result<Option<Digest>> {
    let Some(value) = response.headers().get(CONTENT_DIGEST) else {
        return Ok(None);
    };
    let text = String::from_utf8_lossy(value.as_bytes());
    match text.parse() {
        Ok(digest) => Ok(Some(digest)),
        Err(_) => Err(send::invalid(response.url(), &format!("{text:?} in header not a valid digest"))),
    }
}

fn media_type(response: &reqwest::Response) -> String {
    let value =
        response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_owned()
}

/// Returns the length that the head announces; the client itself knows only of a body's.
pub(crate) fn content_length(response: &reqwest::Response) -> Option<u64> {
    response.headers().get(reqwest::header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}
