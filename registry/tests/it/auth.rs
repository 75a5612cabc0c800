//! Challenges, tokens and whom they are shown to.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use kiln_content::media_type;
use kiln_registry::{
    Access, BoxError, Credential, Credentials, FixedCredentials, Observer, Registry, Secret, Token,
    TokenRequest,
};

use crate::faulty::{chain, config, reference};
use crate::server::{Reply, Request, Server};

const MANIFEST: &str = r#"{"layers":[]}"#;

fn manifest() -> Reply {
    Reply::ok(MANIFEST).header("Content-Type", media_type::OCI_MANIFEST)
}

/// A registry that wants the token `good` from a token server of its own.
async fn token_registry(
    token_server: impl Fn(&Request) -> Reply + Send + Sync + 'static,
) -> (Server, Server) {
    let tokens = Server::start(token_server).await;
    let realm = format!("http://{}/token", tokens.address);
    let registry = Server::start(move |request| match request.header("authorization") {
        Some("Bearer good") => manifest(),
        other => {
            let error = if other.is_some() { r#",error="insufficient_scope""# } else { "" };
            Reply::new(401).header(
                "WWW-Authenticate",
                format!(r#"Bearer realm="{realm}",service="svc",scope="repository:a/b:pull"{error}"#),
            )
        }
    })
    .await;
    (registry, tokens)
}

async fn check(
    token_server: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    credentials: &dyn Credentials,
    want_result: &str,
    want_requests: &[&str],
) {
    let (server, tokens) = token_registry(token_server).await;
    let registry = Registry::new(config());
    let got = match registry.resolve(&reference(&server, "a/b:t"), Access::new(credentials)).await {
        Ok(_) => "found".to_owned(),
        Err(error) => format!("{:?}: {}", error.kind(), chain(&error)),
    };
    assert_eq!(got.replace(&tokens.address, "TOKENS").replace(&server.address, "HOST"), want_result);
    let requests: Vec<String> = tokens
        .requests()
        .iter()
        .map(|request| {
            let authorization = request.header("authorization").unwrap_or("-");
            format!("{} {authorization} {}", request.line(), String::from_utf8_lossy(&request.body))
        })
        .collect();
    assert_eq!(requests, want_requests);
}

const GET: &str = "GET /token?service=svc&scope=repository%3Aa%2Fb%3Apull";

#[tokio::test]
async fn an_anonymous_token_is_enough_for_public_images() {
    check(|_| Reply::ok(r#"{"token":"good"}"#), ANONYMOUS, "found", &[&format!("{GET} - ")]).await;
}

const ANONYMOUS: &kiln_registry::Anonymous = &kiln_registry::Anonymous;

#[tokio::test]
async fn a_password_goes_to_the_token_server_alone() {
    check(
        |_| Reply::ok(r#"{"access_token":"good","expires_in":300}"#),
        &FixedCredentials::new("u", "p"),
        "found",
        &[&format!("{GET} Basic dTpw ")],
    )
    .await;
}

#[tokio::test]
async fn servers_without_get_are_asked_by_form() {
    for status in [401, 404, 405] {
        check(
            move |request| match request.method.as_str() {
                "GET" => Reply::new(status),
                _ => Reply::ok(r#"{"access_token":"good"}"#),
            },
            &FixedCredentials::new("u", "p"),
            "found",
            &[
                &format!("{GET} Basic dTpw "),
                "POST /token - client_id=buildkit-client&service=svc&scope=repository%3Aa%2Fb%3Apull&\
                 grant_type=password&username=u&password=p",
            ],
        )
        .await;
    }
}

#[tokio::test]
async fn an_identity_token_is_refreshed() {
    check(
        |request| match request.method.as_str() {
            "GET" => Reply::new(404),
            _ => Reply::ok(r#"{"access_token":"good"}"#),
        },
        &FixedCredentials::new("", "idt"),
        "found",
        &[
            &format!("{GET} Basic OmlkdA== "),
            "POST /token - client_id=buildkit-client&service=svc&scope=repository%3Aa%2Fb%3Apull&\
             grant_type=refresh_token&refresh_token=idt",
        ],
    )
    .await;
}

#[tokio::test]
async fn a_token_that_does_not_help_is_final() {
    check(
        |_| Reply::ok(r#"{"token":"bad"}"#),
        ANONYMOUS,
        "Denied: pull access denied, repository does not exist or may require authorization: server message: \
         insufficient_scope: authorization failed",
        &[&format!("{GET} - ")],
    )
    .await;
}

#[tokio::test]
async fn a_token_server_that_fails_is_named() {
    check(
        |_| Reply::new(403).body("no"),
        ANONYMOUS,
        "Denied: failed to fetch anonymous token for `HOST`: unexpected status from GET request to \
         http://TOKENS/token: 403 Forbidden",
        &[&format!("{GET} - ")],
    )
    .await;
    check(
        |_| Reply::ok("{}"),
        ANONYMOUS,
        "Other: failed to fetch anonymous token for `HOST`: invalid response from `http://TOKENS/token`: it \
         has no usable token",
        &[&format!("{GET} - ")],
    )
    .await;
}

#[derive(Debug, Default)]
struct Lender {
    asked: Mutex<Vec<String>>,
    key: Option<Vec<u8>>,
}

#[async_trait]
impl Credentials for Lender {
    fn identity(&self) -> String {
        "lender".to_owned()
    }

    async fn credentials(&self, host: &str) -> Result<Option<Credential>, BoxError> {
        self.asked.lock().unwrap().push(format!("credentials {host}"));
        Ok(Some(Credential { username: "u".to_owned(), secret: Secret::new("p") }))
    }

    async fn token_authority(&self, host: &str, salt: &[u8]) -> Result<Option<Vec<u8>>, BoxError> {
        assert_eq!(salt.len(), 32);
        self.asked.lock().unwrap().push(format!("authority {host}"));
        Ok(self.key.clone())
    }

    async fn fetch_token(&self, request: TokenRequest) -> Result<Token, BoxError> {
        let TokenRequest { service, scopes, .. } = request;
        self.asked.lock().unwrap().push(format!("token {service} {}", scopes.join(" ")));
        Ok(Token { token: Secret::new("good"), expires_in: 0, issued_at: 0 })
    }
}

#[derive(Debug, Default)]
struct Auths(Mutex<Vec<String>>);

impl Observer for Auths {
    fn authenticating(&self, what: &str) {
        self.0.lock().unwrap().push(what.to_owned());
    }
}

#[tokio::test]
async fn a_lender_that_fetches_tokens_keeps_its_password() {
    let (server, tokens) = token_registry(|_| Reply::new(500)).await;
    let lender = Lender { key: Some(vec![1; 32]), ..Lender::default() };
    let auths = Auths::default();
    let registry = Registry::new(config());
    for _ in 0..3 {
        let access = Access::new(&lender).observed(&auths);
        registry.resolve(&reference(&server, "a/b:t"), access).await.unwrap();
    }
    assert!(tokens.lines().is_empty());
    assert_eq!(
        *lender.asked.lock().unwrap(),
        [format!("authority {}", server.address), "token svc repository:a/b:pull".to_owned()]
    );
    assert_eq!(*auths.0.lock().unwrap(), [format!("[auth] a/b:pull token for {}", server.address)]);
}

#[tokio::test]
async fn tokens_are_kept_apart_by_holder_and_fetched_once() {
    let (server, tokens) = token_registry(|_| Reply::ok(r#"{"token":"good","expires_in":300}"#)).await;
    let registry = Registry::new(config());
    let (one, two) = (FixedCredentials::new("one", "1"), FixedCredentials::new("two", "2"));
    for _ in 0..2 {
        for credentials in [&one, &two] {
            let reference = reference(&server, "a/b:t");
            let access = Access::new(credentials);
            let calls = (0..4).map(|_| registry.resolve(&reference, access));
            futures::future::try_join_all(calls).await.unwrap();
        }
    }
    let mut asked: Vec<_> =
        tokens.requests().iter().map(|request| request.header("authorization").unwrap().to_owned()).collect();
    asked.sort();
    asked.dedup();
    assert_eq!(asked, ["Basic b25lOjE=", "Basic dHdvOjI="]);
}

#[tokio::test]
async fn an_endless_challenge_ends() {
    let server = Server::start(|_| Reply::new(401).header("WWW-Authenticate", r#"Basic realm="x""#)).await;
    let registry = Registry::new(config());
    let credentials = FixedCredentials::new("u", "wrong");
    let error = registry.resolve(&reference(&server, "a/b:t"), Access::new(&credentials)).await.unwrap_err();
    assert_eq!(
        chain(&error),
        "pull access denied, repository does not exist or may require authorization: authorization failed"
    );
    assert_eq!(server.lines().len(), 2);
    let error = registry.resolve(&reference(&server, "a/b:t"), Access::anonymous()).await.unwrap_err();
    assert!(chain(&error).contains("no basic auth credentials"), "{}", chain(&error));
}

#[tokio::test]
async fn unknown_schemes_are_named() {
    let server = Server::start(|_| Reply::new(401).header("WWW-Authenticate", "Negotiate")).await;
    let error =
        Registry::new(config()).resolve(&reference(&server, "a/b:t"), Access::anonymous()).await.unwrap_err();
    assert!(chain(&error).contains("401 Unauthorized"), "{}", chain(&error));
}

#[tokio::test]
async fn a_redirect_elsewhere_does_not_take_credentials_along() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    let storage = Server::start(move |request| {
        log.lock().unwrap().push(request.header("authorization").map(str::to_owned));
        manifest()
    })
    .await;
    let location = format!("http://{}/x", storage.address);
    let server = Server::start(move |request| match request.header("authorization") {
        None => Reply::new(401).header("WWW-Authenticate", "Basic"),
        Some(_) => Reply::new(302).header("Location", &location),
    })
    .await;
    let credentials = FixedCredentials::new("u", "p");
    Registry::new(config()).resolve(&reference(&server, "a/b:t"), Access::new(&credentials)).await.unwrap();
    let seen = seen.lock().unwrap();
    assert!(!seen.is_empty() && seen.iter().all(Option::is_none), "{seen:?}");
}
