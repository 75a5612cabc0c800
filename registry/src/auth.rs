//! What is known of how hosts want to be asked: their challenges and the tokens that answered them.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use reqwest::Client;

use crate::access::{Access, Secret, TokenRequest};
use crate::challenge::{AuthScheme, Challenge};
use crate::error::{Error, Result};
use crate::scope::Scopes;
use crate::token::{self, Held};

/// What is not used this long is forgotten.
const IDLE: Duration = Duration::from_secs(600);
/// More holders of credentials than this at a time are asked again.
const MAX_HANDLERS: usize = 1024;
/// More tokens than this of one holder are fetched again.
const MAX_TOKENS: usize = 1024;
/// How long whoever lends credentials may take to answer.
const LENDER_PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Auth {
    salt: [u8; 32],
    handlers: Mutex<HashMap<Holder, Handler>>,
}

/// A holder of credentials at a host.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Holder {
    host: String,
    identity: String,
}

#[derive(Clone)]
struct Handler {
    answer: Answer,
    used: Instant,
}

#[derive(Clone)]
enum Answer {
    Basic(Secret),
    Bearer(Arc<Bearer>),
}

struct Bearer {
    realm: String,
    service: String,
    /// Scopes that challenges named beyond those of the request.
    extra: Scopes,
    /// The lender fetches tokens itself.
    lender_fetches: bool,
    tokens: Mutex<HashMap<String, Slot>>,
}

/// Whoever holds the lock fetches; others wait for it and find the token.
type Slot = Arc<tokio::sync::Mutex<Option<Held>>>;

/// Where and for what a request needs authorization.
#[derive(Clone, Copy)]
pub(crate) struct Purpose<'a> {
    pub(crate) client: &'a Client,
    pub(crate) host: &'a str,
    pub(crate) scopes: &'a Scopes,
    pub(crate) patience: Duration,
}

impl Auth {
    pub(crate) fn new() -> Self {
        Self { salt: rand::random(), handlers: Mutex::default() }
    }

    /// Returns the `Authorization` value for a request; `None` as long as the host asked for nothing.
    pub(crate) async fn authorize(&self, purpose: Purpose<'_>, access: Access<'_>) -> Result<Option<Secret>> {
        match self.known(purpose, access) {
            None => Ok(None),
            Some(Answer::Basic(header)) => Ok(Some(header)),
            Some(Answer::Bearer(bearer)) => {
                let scopes = purpose.scopes.clone().merge(&bearer.extra);
                let slot = bearer.slot(&scopes.list().join(" "));
                let mut held = slot.lock().await;
                if let Some(held) = held.as_ref().filter(|held| held.is_fresh()) {
                    return Ok(Some(header(held)));
                }
                let fetched = self.fetch(&bearer, &scopes, purpose, access).await?;
                let value = header(&fetched);
                *held = Some(fetched);
                Ok(Some(value))
            }
        }
    }

    /// Takes in the challenges of a 401, so that the next [`Auth::authorize`] answers them.
    /// `sent` is what the refused request carried, and `renewed` says that it came from an earlier
    /// challenge of the same request.
    ///
    /// # Errors
    /// [`Error::AuthorizationFailed`] when asking again cannot help.
    pub(crate) async fn challenged(
        &self,
        challenges: &[Challenge],
        sent: Option<&Secret>,
        renewed: bool,
        purpose: Purpose<'_>,
        access: Access<'_>,
    ) -> Result<()> {
        let holder = holder(purpose, access);
        // They are ordered; a host that offers a safer way is not asked the other way.
        let Some(challenge) = challenges.first() else {
            return Err(Error::UnsupportedAuth { challenge: purpose.host.to_owned() });
        };
        match challenge.scheme {
            AuthScheme::Bearer => {
                let asked = Scopes::default().and(challenge.parameter("scope"));
                let known = match self.known(purpose, access) {
                    Some(Answer::Bearer(bearer)) => Some(bearer),
                    _ => None,
                };
                let mut extra = asked;
                if let Some(bearer) = known {
                    let had = purpose.scopes.clone().merge(&bearer.extra);
                    if sent.is_some() && renewed && had.contains(&extra) {
                        return Err(failed(challenge));
                    }
                    if let Some(sent) = sent {
                        bearer.forget(sent);
                    }
                    // Another request may have met the challenge first, and a token by now.
                    if had.contains(&extra)
                        && bearer.realm == challenge.parameter("realm")
                        && bearer.service == challenge.parameter("service")
                    {
                        return Ok(());
                    }
                    extra = extra.merge(&bearer.extra);
                } else if sent.is_some() && renewed {
                    return Err(failed(challenge));
                }
                // The repository of this request is asked for by this request alone.
                let extra = if purpose.scopes.contains(&extra) { Scopes::default() } else { extra };
                let authority = self
                    .lend(purpose.host, access.credentials.token_authority(purpose.host, &self.salt))
                    .await?;
                self.remember(
                    holder,
                    Answer::Bearer(Arc::new(Bearer {
                        realm: challenge.parameter("realm").to_owned(),
                        service: challenge.parameter("service").to_owned(),
                        extra,
                        lender_fetches: authority.is_some(),
                        tokens: Mutex::default(),
                    })),
                );
                Ok(())
            }
            AuthScheme::Basic => {
                if sent.is_some() && renewed {
                    return Err(failed(challenge));
                }
                let credential = self
                    .lend(purpose.host, access.credentials.credentials(purpose.host))
                    .await?
                    .filter(|credential| {
                        !credential.username.is_empty() && !credential.secret.expose().is_empty()
                    });
                let Some(credential) = credential else {
                    return Err(Error::NoCredentials { host: purpose.host.to_owned() });
                };
                self.remember(holder, Answer::Basic(Secret::new(token::basic(&credential))));
                Ok(())
            }
        }
    }

    async fn fetch(
        &self,
        bearer: &Bearer,
        scopes: &Scopes,
        purpose: Purpose<'_>,
        access: Access<'_>,
    ) -> Result<Held> {
        let host = purpose.host;
        access.observer.authenticating(&format!("[auth] {} token for {host}", scopes.shown()));
        let request = TokenRequest {
            client_id: token::CLIENT_ID.to_owned(),
            host: host.to_owned(),
            realm: bearer.realm.clone(),
            service: bearer.service.clone(),
            scopes: scopes.list(),
        };
        if bearer.lender_fetches {
            return self.lend(host, access.credentials.fetch_token(request)).await.map(Held::new);
        }
        let credential = self
            .lend(host, access.credentials.credentials(host))
            .await?
            .filter(|credential| !credential.secret.expose().is_empty());
        token::fetch(purpose.client, &request, credential.as_ref(), purpose.patience).await.map(Held::new)
    }

    async fn lend<T>(
        &self,
        host: &str,
        answer: impl Future<Output = std::result::Result<T, crate::BoxError>>,
    ) -> Result<T> {
        match tokio::time::timeout(LENDER_PATIENCE, answer).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(source)) => Err(Error::Credentials { host: host.to_owned(), source }),
            Err(elapsed) => Err(Error::Credentials { host: host.to_owned(), source: elapsed.into() }),
        }
    }

    fn known(&self, purpose: Purpose<'_>, access: Access<'_>) -> Option<Answer> {
        let mut handlers = self.handlers.lock().unwrap_or_else(PoisonError::into_inner);
        let handler = handlers.get_mut(&holder(purpose, access))?;
        if handler.used.elapsed() > IDLE {
            return None;
        }
        handler.used = Instant::now();
        Some(handler.answer.clone())
    }

    fn remember(&self, holder: Holder, answer: Answer) {
        let mut handlers = self.handlers.lock().unwrap_or_else(PoisonError::into_inner);
        handlers.retain(|_, handler| handler.used.elapsed() <= IDLE);
        if handlers.len() >= MAX_HANDLERS {
            handlers.clear();
        }
        let used = Instant::now();
        handlers.insert(holder, Handler { answer, used });
    }
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Auth").finish_non_exhaustive()
    }
}

impl Bearer {
    fn slot(&self, scopes: &str) -> Slot {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if tokens.len() >= MAX_TOKENS {
            tokens.clear();
        }
        tokens.entry(scopes.to_owned()).or_default().clone()
    }

    /// Drops the token that was refused, and leaves one alone that has replaced it meanwhile.
    fn forget(&self, refused: &Secret) {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.retain(|_, slot| match slot.try_lock() {
            Ok(held) => held.as_ref().is_none_or(|held| header(held) != *refused),
            Err(_) => true,
        });
    }
}

fn holder(purpose: Purpose<'_>, access: Access<'_>) -> Holder {
    Holder { host: purpose.host.to_owned(), identity: access.credentials.identity() }
}

fn header(held: &Held) -> Secret {
    Secret::new(format!("Bearer {}", held.token.expose()))
}

fn failed(challenge: &Challenge) -> Error {
    Error::AuthorizationFailed {
        message: challenge.parameter("error").chars().filter(|c| !c.is_control()).take(64).collect(),
    }
}
