//! Reading documents and blobs.

use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use kiln_content::Descriptor;
use kiln_digest::Digest;
use reqwest::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_RANGE, HeaderMap, HeaderValue, RANGE};
use reqwest::{Method, StatusCode, Url};

use crate::access::Access;
use crate::client::Registry;
use crate::document::is_document;
use crate::error::{Error, Result};
use crate::gate::{Slot, Traffic};
use crate::hosts::Target;
use crate::reference::Reference;
use crate::resolve::{pull_error, repository_call};
use crate::retry::with_retries;
use crate::send::{self, Call, CallUrl};

/// A descriptor's own addresses, beyond these, are not tried.
const MAX_URLS: usize = 8;

/// The bytes of a blob from some offset on, unverified.
#[derive(Debug)]
pub struct BlobStream {
    response: reqwest::Response,
    url: Url,
    patience: Duration,
    /// Bytes to drop because the host ignored the range.
    skip: u64,
    /// Bytes that may still come.
    left: u64,
    digest: Digest,
    size: u64,
    _slot: Slot,
}

impl BlobStream {
    /// Waits for more bytes; `None` at the end.
    ///
    /// # Errors
    /// [`Error::Stalled`], [`Error::Transport`], and [`Error::TooLarge`] or [`Error::Truncated`] when the
    /// length is not that of the descriptor.
    ///
    /// # Cancel safety
    /// No bytes are lost.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        while let Some(mut chunk) = send::next_chunk(&mut self.response, &self.url, self.patience).await? {
            let skipped = self.skip.min(chunk.len() as u64);
            self.skip -= skipped;
            // `skipped` is at most the chunk's length, so it fits.
            let _ = chunk.split_to(usize::try_from(skipped).unwrap_or(usize::MAX).min(chunk.len()));
            if chunk.is_empty() {
                continue;
            }
            let Some(left) = self.left.checked_sub(chunk.len() as u64) else {
                return Err(Error::TooLarge {
                    what: self.digest.to_string(),
                    actual: self.size + 1,
                    limit: self.size,
                });
            };
            self.left = left;
            return Ok(Some(chunk));
        }
        if self.left > 0 {
            return Err(Error::Truncated {
                digest: self.digest,
                expected: self.size,
                actual: self.size - self.left,
            });
        }
        Ok(None)
    }

    /// Returns the address that serves the bytes.
    #[must_use]
    pub fn address(&self) -> String {
        send::shown(&self.url)
    }

    /// Turns it into a stream that ends after the first error.
    pub fn into_stream(self) -> impl Stream<Item = Result<Bytes>> + Send {
        futures::stream::unfold(Some(self), |state| async {
            let mut stream = state?;
            match stream.next().await {
                Ok(None) => None,
                Ok(Some(chunk)) => Some((Ok(chunk), Some(stream))),
                Err(error) => Some((Err(error), None)),
            }
        })
    }
}

/// A place that may have a blob.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// An address of the descriptor itself; it never sees credentials.
    Address(Url),
    Host(Target),
}

impl Registry {
    /// Reads a manifest, index or config of at most the configured size, and verifies it.
    ///
    /// # Errors
    /// As [`Registry::resolve`]; [`Error::DigestMismatch`] when no host has the right bytes.
    ///
    /// # Cancel safety
    /// Changes nothing.
    pub async fn read(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        access: Access<'_>,
    ) -> Result<Bytes> {
        self.bounded(reference, descriptor.size)?;
        with_retries(self.config(), access.observer, || async {
            let places = self.places(reference, descriptor);
            let mut first = None;
            for (at, place) in places.iter().enumerate() {
                let last = at + 1 == places.len();
                match self.read_at(place, reference, descriptor, last, access).await {
                    Ok(bytes) => return Ok(bytes),
                    Err(error) => keep_telling(&mut first, error),
                }
            }
            Err(first.unwrap_or_else(|| not_found(descriptor)))
        })
        .await
    }

    async fn read_at(
        &self,
        place: &Place,
        reference: &Reference,
        descriptor: &Descriptor,
        last: bool,
        access: Access<'_>,
    ) -> Result<Bytes> {
        let mut stream = self.open_at(place, reference, descriptor, 0, last, access).await?;
        let mut bytes = Vec::new();
        while let Some(chunk) = stream.next().await? {
            bytes.extend_from_slice(&chunk);
        }
        let actual = Digest::of(&bytes);
        if actual != descriptor.digest {
            return Err(Error::DigestMismatch {
                url: stream.address(),
                expected: descriptor.digest,
                actual: actual.to_string(),
            });
        }
        Ok(bytes.into())
    }

    /// Looks whether a repository has a blob, at the mirrors or the origin, without reading it.
    ///
    /// # Errors
    /// What the first host answered that said neither yes nor no, unless another said yes.
    ///
    /// # Cancel safety
    /// Changes nothing.
    pub async fn has_blob(
        &self,
        reference: &Reference,
        blob: &Descriptor,
        access: Access<'_>,
    ) -> Result<bool> {
        with_retries(self.config(), access.observer, || async {
            let targets = self.config().targets(reference.host());
            let mut first = None;
            for (at, target) in targets.iter().enumerate() {
                let path = format!("blobs/{}", blob.digest);
                let mut head =
                    repository_call(reference, target, Method::HEAD, &path, at + 1 == targets.len());
                head.traffic = Traffic::Document;
                match self.send(&head, access).await {
                    Ok(answer) if answer.response.status().is_success() => return Ok(true),
                    Ok(answer) if answer.response.status() == StatusCode::NOT_FOUND => {}
                    Ok(answer) => {
                        let patience = self.config().stall_timeout;
                        let error = send::unexpected_status(answer.response, "HEAD", patience).await;
                        keep_telling(&mut first, error);
                    }
                    Err(error) => keep_telling(&mut first, error),
                }
            }
            first.map_or(Ok(false), Err)
        })
        .await
    }

    /// Opens a blob from `offset` on, at the first place that has it: the descriptor's own addresses,
    /// mirrors, origin.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::PullDenied`], or whatever the first host answered.
    ///
    /// # Cancel safety
    /// Changes nothing.
    pub async fn fetch(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        offset: u64,
        access: Access<'_>,
    ) -> Result<BlobStream> {
        let places = self.places(reference, descriptor);
        let mut first = None;
        for (at, place) in places.iter().enumerate() {
            let last = at + 1 == places.len();
            match self.open_at(place, reference, descriptor, offset, last, access).await {
                Ok(stream) => return Ok(stream),
                Err(error) => keep_telling(&mut first, error),
            }
        }
        Err(first.unwrap_or_else(|| not_found(descriptor)))
    }

    /// Returns where a blob may be had, in the order of asking.
    pub(crate) fn places(&self, reference: &Reference, descriptor: &Descriptor) -> Vec<Place> {
        let own = descriptor
            .urls
            .iter()
            .take(MAX_URLS)
            .filter_map(|url| Url::parse(url).ok())
            .filter(|url| matches!(url.scheme(), "http" | "https"))
            .map(|url| Place::Address(send::without_userinfo(url)));
        let hosts = self.config().targets(reference.host());
        own.chain(hosts.into_iter().map(Place::Host)).collect()
    }

    pub(crate) async fn open_at(
        &self,
        place: &Place,
        reference: &Reference,
        descriptor: &Descriptor,
        offset: u64,
        last: bool,
        access: Access<'_>,
    ) -> Result<BlobStream> {
        let document = is_document(&descriptor.media_type);
        let endpoint = if document { "manifests" } else { "blobs" };
        let elsewhere;
        let mut call = match place {
            Place::Host(target) => repository_call(
                reference,
                target,
                Method::GET,
                &format!("{endpoint}/{}", descriptor.digest),
                last,
            ),
            Place::Address(url) => {
                elsewhere = self.config().address(url);
                let mut call = repository_call(reference, &elsewhere, Method::GET, "", last);
                call.url = CallUrl::Absolute(url.clone());
                call.anonymous = true;
                call
            }
        };
        call.headers = headers(descriptor, document, offset);
        if document {
            call.traffic = Traffic::Document;
        }
        self.open(&call, descriptor, offset, access).await
    }

    async fn open(
        &self,
        call: &Call<'_>,
        descriptor: &Descriptor,
        offset: u64,
        access: Access<'_>,
    ) -> Result<BlobStream> {
        let patience = self.config().stall_timeout;
        let answer = self.send(call, access).await.map_err(pull_error)?;
        let status = answer.response.status();
        if status == StatusCode::NOT_FOUND {
            return Err(not_found(descriptor));
        }
        if !status.is_success() {
            let error = send::unexpected_status(answer.response, "GET", patience).await;
            return Err(pull_error(error));
        }
        let skip = if status == StatusCode::PARTIAL_CONTENT {
            if range_start(answer.response.headers()) != Some(offset) {
                return Err(send::invalid(&answer.url, "it is not the range that was asked for"));
            }
            0
        } else {
            offset
        };
        Ok(BlobStream {
            response: answer.response,
            url: answer.url,
            patience,
            skip,
            left: descriptor.size.saturating_sub(offset),
            digest: descriptor.digest,
            size: descriptor.size,
            _slot: answer.slot,
        })
    }
}

fn headers(descriptor: &Descriptor, document: bool, offset: u64) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if document && let Ok(accept) = HeaderValue::from_str(&format!("{}, */*", descriptor.media_type)) {
        headers.insert(ACCEPT, accept);
    }
    // The digest is that of the bytes as stored, so nothing on the way may re-encode them.
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    if offset > 0
        && let Ok(range) = HeaderValue::from_str(&format!("bytes={offset}-"))
    {
        headers.insert(RANGE, range);
    }
    headers
}

/// Reads the start of `bytes 5-9/10`.
fn range_start(headers: &HeaderMap) -> Option<u64> {
    let value = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    let (start, _) = value.trim().strip_prefix("bytes ")?.split_once('-')?;
    start.trim().parse().ok()
}

pub(crate) fn not_found(descriptor: &Descriptor) -> Error {
    Error::NotFound {
        what: format!(
            "could not fetch content descriptor {} ({}) from remote",
            descriptor.digest, descriptor.media_type
        ),
    }
}

/// Keeps the first error, but prefers any to a mere "not found".
pub(crate) fn keep_telling(kept: &mut Option<Error>, error: Error) {
    if matches!(kept, None | Some(Error::NotFound { .. })) {
        *kept = Some(error);
    }
}
