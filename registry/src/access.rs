//! Who asks: credentials and an observer, lent for the time of one call.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use kiln_digest::Digest;

use crate::error::BoxError;

/// On whose behalf a call runs. Nothing in it outlives the call.
#[derive(Clone, Copy, Debug)]
pub struct Access<'a> {
    pub(crate) credentials: &'a dyn Credentials,
    pub(crate) observer: &'a dyn Observer,
}

impl<'a> Access<'a> {
    /// Asks with the credentials that `credentials` lends.
    #[must_use]
    pub fn new(credentials: &'a dyn Credentials) -> Self {
        Self { credentials, observer: &Silent }
    }

    /// Asks without credentials.
    #[must_use]
    pub fn anonymous() -> Self {
        Self::new(&Anonymous)
    }

    /// Whose credentials are used.
    #[must_use]
    pub fn credentials(&self) -> &'a dyn Credentials {
        self.credentials
    }

    /// Tells `observer` what goes on.
    #[must_use]
    pub fn observed(mut self, observer: &'a dyn Observer) -> Self {
        self.observer = observer;
        self
    }
}

/// Lends credentials for the time of a call.
///
/// 1. `identity` is stable for one holder of credentials and never shared by two: tokens got under an
///    identity are given to later calls of the same identity only.
/// 2. `token_authority` answers `Ok(Some)` when the lender fetches tokens itself; then only
///    `fetch_token` is called and no secret leaves the lender.
/// 3. `credentials` answers `Ok(None)` when there are none for the host.
/// 4. A lender for several holders answers `next_holder` with each that is not in `tried`, by identity, the preferred
///    one first, so that what one may not can be tried with the next. Who lends for a single holder answers none.
#[async_trait]
pub trait Credentials: fmt::Debug + Send + Sync {
    /// Names the holder of these credentials.
    fn identity(&self) -> String;

    /// Returns the next single holder who has not been tried.
    fn next_holder(&self, tried: &HashSet<String>) -> Option<Arc<dyn Credentials>> {
        let _ = tried;
        None
    }

    /// Returns the user name and secret for `host` (`registry-1.docker.io` for `docker.io`).
    async fn credentials(&self, host: &str) -> Result<Option<Credential>, BoxError>;

    /// Returns a public key when the lender fetches tokens for `host` itself.
    async fn token_authority(&self, host: &str, salt: &[u8]) -> Result<Option<Vec<u8>>, BoxError> {
        let _ = (host, salt);
        Ok(None)
    }

    /// Fetches a token; only called after `token_authority` gave a key.
    async fn fetch_token(&self, request: TokenRequest) -> Result<Token, BoxError> {
        Err(format!("no tokens for `{}` are fetched here", request.host).into())
    }
}

/// A user name and a secret; with an empty user name the secret is an identity token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    /// The user name; empty for an identity token.
    pub username: String,
    /// The password or identity token.
    pub secret: Secret,
}

/// A text that no log may show.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }

    /// Returns the secret itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// What a token is wanted for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TokenRequest {
    /// Names the software that asks.
    pub client_id: String,
    /// The registry.
    pub host: String,
    /// The address of the token server.
    pub realm: String,
    /// The service that the token server knows the registry by.
    pub service: String,
    /// What the token shall allow, such as `repository:a/b:pull`.
    pub scopes: Vec<String>,
}

/// A bearer token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// The token itself.
    pub token: Secret,
    /// How long it is valid, in seconds; 0 when not known.
    pub expires_in: u64,
    /// When it was issued, in seconds since 1970 UTC; 0 when not known.
    pub issued_at: u64,
}

/// Is told what a call does, for progress.
pub trait Observer: fmt::Debug + Send + Sync {
    /// `current` of `total` bytes of `digest` have been received.
    fn received(&self, digest: &Digest, current: u64, total: u64) {
        let _ = (digest, current, total);
    }

    /// `current` of `total` bytes of `digest` have been sent.
    fn sent(&self, digest: &Digest, current: u64, total: u64) {
        let _ = (digest, current, total);
    }

    /// A line for the log of whoever waits, with its line feed.
    fn log(&self, line: &str) {
        let _ = line;
    }

    /// A token is asked for: `[auth] a/b:pull token for r.example`.
    fn authenticating(&self, what: &str) {
        let _ = what;
    }
}

/// Ignores everything.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Observer for Silent {}

/// Has no credentials.
#[derive(Clone, Copy, Debug, Default)]
pub struct Anonymous;

#[async_trait]
impl Credentials for Anonymous {
    fn identity(&self) -> String {
        String::new()
    }

    async fn credentials(&self, _host: &str) -> Result<Option<Credential>, BoxError> {
        Ok(None)
    }
}

/// Has one credential, for every host.
#[derive(Clone, Debug)]
pub struct FixedCredentials {
    identity: String,
    credential: Credential,
}

impl FixedCredentials {
    /// Lends `username` and `secret` to whoever asks.
    #[must_use]
    pub fn new(username: &str, secret: &str) -> Self {
        Self {
            identity: format!("fixed:{}", Digest::of(format!("{username}:{secret}"))),
            credential: Credential { username: username.to_owned(), secret: Secret::new(secret) },
        }
    }
}

#[async_trait]
impl Credentials for FixedCredentials {
    fn identity(&self) -> String {
        self.identity.clone()
    }

    async fn credentials(&self, _host: &str) -> Result<Option<Credential>, BoxError> {
        Ok(Some(self.credential.clone()))
    }
}
