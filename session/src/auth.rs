//! Registry credentials of the client.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use kiln_api::filesync as pb;
use kiln_api::filesync::auth_client::AuthClient;
use tonic::{Code, Response, Status};

use crate::channel::Channel;
use crate::error::{Error, Result};
use crate::sessions::Session;

const CREDENTIALS: &str = "/moby.filesync.v1.Auth/Credentials";
const FETCH_TOKEN: &str = "/moby.filesync.v1.Auth/FetchToken";
const TOKEN_AUTHORITY: &str = "/moby.filesync.v1.Auth/GetTokenAuthority";
const VERIFY: &str = "/moby.filesync.v1.Auth/VerifyTokenAuthority";
/// What daemons call themselves towards token servers.
pub const CLIENT_ID: &str = "buildkit-client";
/// Bytes of an ed25519 signature.
const SIGNATURE: usize = 64;
/// The client may have to run a credential helper that asks somebody.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A text that is not shown by accident.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Hides `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Whether there is any.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// What the client has for a registry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Credentials {
    /// Who; empty if the secret is an identity token.
    pub username: String,
    /// Password or identity token; empty if the client has nothing.
    pub secret: Secret,
}

/// Which token the client is to fetch.
#[derive(Clone, Debug, Default)]
pub struct TokenRequest {
    /// The registry.
    pub host: String,
    /// URL of the token server.
    pub realm: String,
    /// The registry as the token server knows it.
    pub service: String,
    /// What is to be allowed.
    pub scopes: Vec<String>,
}

/// A bearer token.
#[derive(Clone, Debug)]
pub struct Token {
    /// The token.
    pub token: Secret,
    /// For how many seconds it is valid; 0 if unknown.
    pub expires_in: i64,
    /// Since when, in seconds since 1970; 0 if unknown.
    pub issued_at: i64,
}

/// Asks for the credentials of a registry; those of Docker Hub are under `registry-1.docker.io`.
///
/// # Errors
/// What the client answered.
pub async fn credentials(session: &Session, host: &str) -> Result<Credentials> {
    let request = pb::CredentialsRequest { host: host.to_owned() };
    let answer =
        call(session, CREDENTIALS, |mut client| async move { client.credentials(request).await }).await?;
    Ok(Credentials { username: answer.username, secret: Secret(answer.secret) })
}

/// Lets the client fetch a token, so that its password stays with it.
///
/// # Errors
/// What the client answered.
pub async fn fetch_token(session: &Session, request: TokenRequest) -> Result<Token> {
    let TokenRequest { host, realm, service, scopes } = request;
    let request = pb::FetchTokenRequest { client_id: CLIENT_ID.to_owned(), host, realm, service, scopes };
    let answer =
        call(session, FETCH_TOKEN, |mut client| async move { client.fetch_token(request).await }).await?;
    Ok(Token { token: Secret(answer.token), expires_in: answer.expires_in, issued_at: answer.issued_at })
}

/// Asks for the ed25519 key by which the client proves to have the same credentials as another one. `None` if the
/// client fetches no tokens, or has nothing for this registry; then ask for [`credentials`].
///
/// # Errors
/// What the client answered.
pub async fn token_authority(session: &Session, host: &str, salt: &[u8]) -> Result<Option<[u8; 32]>> {
    let request = pb::GetTokenAuthorityRequest { host: host.to_owned(), salt: salt.to_owned() };
    let outcome =
        call(session, TOKEN_AUTHORITY, |mut client| async move { client.get_token_authority(request).await });
    match outcome.await {
        // A key of another length is none.
        Ok(answer) => Ok(answer.public_key.try_into().ok()),
        Err(Error::Unsupported { .. }) => Ok(None),
        Err(Error::Call { status }) if matches!(status.code(), Code::Unimplemented | Code::Unavailable) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Whether the client of `session` can prove to have the key `authority`, which [`token_authority`] gave for the
/// same host and salt, maybe with another session. Who can may use the same token.
///
/// # Errors
/// What the client answered.
pub async fn verify(session: &Session, host: &str, salt: &[u8], authority: &[u8; 32]) -> Result<bool> {
    let payload: [u8; 32] = rand::random();
    let signed = sign(session, host, salt, &payload).await?;
    let Some((signature, message)) = signed.split_at_checked(SIGNATURE) else { return Ok(false) };
    let key = ring::signature::UnparsedPublicKey::new(&ring::signature::ED25519, authority);
    Ok(message == payload && key.verify(message, signature).is_ok())
}

/// Lets the client sign `payload` with its key. Returns signature and message, as NaCl's `sign` has them.
async fn sign(session: &Session, host: &str, salt: &[u8], payload: &[u8]) -> Result<Vec<u8>> {
    let request = pb::VerifyTokenAuthorityRequest {
        host: host.to_owned(),
        salt: salt.to_owned(),
        payload: payload.to_owned(),
    };
    let answer =
        call(session, VERIFY, |mut client| async move { client.verify_token_authority(request).await })
            .await?;
    Ok(answer.signed)
}

async fn call<T, F, Fut>(session: &Session, method: &'static str, run: F) -> Result<T>
where
    F: FnOnce(AuthClient<Channel>) -> Fut,
    Fut: Future<Output = std::result::Result<Response<T>, Status>>,
{
    session.require(method)?;
    let answer = tokio::time::timeout(TIMEOUT, run(AuthClient::new(session.channel())));
    Ok(answer.await.map_err(|_| Error::Timeout { method })??.into_inner())
}
