//! Getting a bearer token from a token server.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use reqwest::header::{ACCEPT, AUTHORIZATION};
use reqwest::{Client, Method, Url};
use serde::Deserialize;

use crate::access::{Credential, Secret, Token, TokenRequest};
use crate::error::{Error, Result};
use crate::send;

/// How the daemon names itself to token servers.
pub(crate) const CLIENT_ID: &str = "buildkit-client";
/// The lifetime of a token whose answer names none.
const DEFAULT_LIFETIME: u64 = 60;
const MAX_TOKEN_ANSWER: u64 = 1 << 20;

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
    #[serde(default)]
    expires_in: u64,
    #[serde(default)]
    issued_at: String,
}

/// A token with the moment after which it is not used any more.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) token: Secret,
    pub(crate) until: SystemTime,
}

impl Held {
    /// A token is used for nine tenths of its life.
    pub(crate) fn new(token: Token) -> Self {
        let lifetime = match token.expires_in {
            0 => DEFAULT_LIFETIME,
            seconds => seconds.min(30 * 24 * 3600),
        };
        let now = SystemTime::now();
        let issued = match token.issued_at {
            0 => now,
            seconds => {
                UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).map_or(now, |issued| issued.min(now))
            }
        };
        let until = issued + Duration::from_millis(lifetime * 900);
        Self { token: token.token, until }
    }

    pub(crate) fn is_fresh(&self) -> bool {
        SystemTime::now() < self.until
    }
}

/// Fetches a token with `credential`, or without any.
///
/// A GET comes first because the largest registry does not support POST; the statuses that some
/// servers answer to GET lead to the OAuth2 form.
pub(crate) async fn fetch(
    client: &Client,
    request: &TokenRequest,
    credential: Option<&Credential>,
    patience: Duration,
) -> Result<Token> {
    let wrap = |source| Error::TokenFetch {
        host: request.host.clone(),
        anonymous: credential.is_none(),
        source: Box::new(source),
    };
    let realm = realm(request).map_err(wrap)?;
    match get(client, &realm, request, credential, patience).await {
        Err(Error::Status { status, .. })
            if credential.is_some_and(|credential| match status.as_u16() {
                405 => !credential.username.is_empty(),
                401 | 404 => true,
                _ => false,
            }) =>
        {
            let Some(credential) = credential else {
                return Err(wrap(Error::AuthorizationFailed { message: String::new() }));
            };
            post(client, &realm, request, credential, patience).await.map_err(wrap)
        }
        other => other.map_err(wrap),
    }
}

fn realm(request: &TokenRequest) -> Result<Url> {
    let fail = |reason: &str| Error::InvalidResponse { url: request.host.clone(), reason: reason.to_owned() };
    let realm =
        Url::parse(&request.realm).map_err(|_| fail("the realm of the challenge is not an address"))?;
    if !matches!(realm.scheme(), "http" | "https") {
        return Err(fail("the realm of the challenge is not an http address"));
    }
    Ok(realm)
}

async fn get(
    client: &Client,
    realm: &Url,
    request: &TokenRequest,
    credential: Option<&Credential>,
    patience: Duration,
) -> Result<Token> {
    let mut url = realm.clone();
    {
        let mut query = url.query_pairs_mut();
        if !request.service.is_empty() {
            query.append_pair("service", &request.service);
        }
        for scope in &request.scopes {
            query.append_pair("scope", scope);
        }
    }
    let mut builder = client.request(Method::GET, url.clone()).header(ACCEPT, "application/json");
    if let Some(credential) = credential {
        builder = builder.header(AUTHORIZATION, basic(credential));
    }
    answer(builder, "GET", &url, patience).await
}

async fn post(
    client: &Client,
    realm: &Url,
    request: &TokenRequest,
    credential: &Credential,
    patience: Duration,
) -> Result<Token> {
    let scope = request.scopes.join(" ");
    let secret = credential.secret.expose();
    let mut form = vec![("client_id", request.client_id.as_str()), ("service", &request.service)];
    if !scope.is_empty() {
        form.push(("scope", &scope));
    }
    if credential.username.is_empty() {
        form.extend([("grant_type", "refresh_token"), ("refresh_token", secret)]);
    } else {
        form.extend([("grant_type", "password"), ("username", &credential.username), ("password", secret)]);
    }
    let builder = client.request(Method::POST, realm.clone()).form(&form);
    answer(builder, "POST", realm, patience).await
}

async fn answer(
    builder: reqwest::RequestBuilder,
    method: &'static str,
    url: &Url,
    patience: Duration,
) -> Result<Token> {
    let response = send::with_patience(builder, method, url, patience).await?;
    if !response.status().is_success() {
        return Err(send::unexpected_status(response, method, patience).await);
    }
    let body = send::read_bounded(response, MAX_TOKEN_ANSWER, patience).await?;
    let invalid = |reason: String| Error::InvalidResponse { url: send::shown(url), reason };
    let answer: Answer =
        serde_json::from_slice(&body).map_err(|error| invalid(format!("it is not a token: {error}")))?;
    let token = if answer.token.is_empty() { answer.access_token } else { answer.token };
    if token.is_empty() || !token.bytes().all(|b| (0x21..0x7f).contains(&b)) {
        return Err(invalid("it has no usable token".to_owned()));
    }
    Ok(Token {
        token: Secret::new(token),
        expires_in: answer.expires_in,
        issued_at: unix_seconds(&answer.issued_at).unwrap_or(0),
    })
}

/// Returns the value of an `Authorization` header.
pub(crate) fn basic(credential: &Credential) -> String {
    use base64::Engine as _;
    let pair = format!("{}:{}", credential.username, credential.secret.expose());
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair))
}

/// Reads `2024-05-06T07:08:09…Z`; other zones and forms count as not known.
fn unix_seconds(text: &str) -> Option<u64> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let mut date = date.splitn(3, '-').map(|part| part.parse::<u64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let mut time =
        time.splitn(3, ':').map(|part| part.split('.').next().and_then(|whole| whole.parse::<u64>().ok()));
    let (hour, minute, second) = (time.next()??, time.next()??, time.next()??);
    if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    if hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    // Days since 1970 with years that start in March, so that leap days come last.
    let (y, m) = if month <= 2 { (year - 1, month + 9) } else { (year, month - 3) };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1;
    let days = days.checked_sub(719_468)?;
    Some(((days * 24 + hour) * 60 + minute) * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_time(text: &str, want: Option<u64>) {
        assert_eq!(unix_seconds(text), want, "{text}");
    }

    #[test]
    fn issue_times_are_read() {
        check_time("1970-01-01T00:00:00Z", Some(0));
        check_time("2000-02-29T12:00:00.123456Z", Some(951_825_600));
        check_time("2024-12-31T23:59:59Z", Some(1_735_689_599));
        check_time("2024-12-31T23:59:59+01:00", None);
        check_time("99999-01-01T00:00:00Z", None);
        check_time("0000-00-00T00:00:00Z", None);
        check_time("", None);
    }

    #[test]
    fn a_token_is_used_for_most_of_its_life() {
        let token = |expires_in, issued_at| {
            Held::new(Token { token: Secret::new("t"), expires_in, issued_at }).is_fresh()
        };
        assert!(token(0, 0));
        assert!(token(300, 0));
        assert!(!token(300, 1));
        assert!(token(u64::MAX, u64::MAX));
    }
}
