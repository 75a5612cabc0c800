//! The ports of image sources, over sessions of whoever waits.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use kiln_content::{ContentStore, ContentStoreExt as _, Descriptor, media_type};
use kiln_registry::{Credential, Credentials, Document, Secret, Token, TokenRequest};
use kiln_session::blobs::Blobs;
use kiln_session::{Lender, Session, auth};

use crate::error::{BoxError, Error, Result};
use crate::image::{Layout, Layouts};

/// The largest root document of a layout, in bytes.
const MAX_ROOT: u64 = 4 << 20;

/// How long a client may take for its credentials while others wait for the same: it may have to ask somebody, but its
/// network may also be gone.
const PATIENCE: Duration = Duration::from_secs(10);

/// Registry credentials of whoever waits, asked for anew each time.
#[derive(Clone, Debug)]
pub struct SessionCredentials {
    lender: Lender,
    /// The one session that is asked.
    only: Option<String>,
}

impl SessionCredentials {
    /// Asks sessions that `lender` lends.
    #[must_use]
    pub fn new(lender: Lender) -> Self {
        Self { lender, only: None }
    }

    async fn ask<T, F, Fut>(&self, question: F) -> kiln_session::Result<T>
    where
        F: Fn(Session) -> Fut,
        Fut: Future<Output = kiln_session::Result<T>>,
    {
        let Some(only) = &self.only else { return self.lender.soonest(question).await };
        let answer = async {
            let session = self.lender.sessions().get(only, kiln_session::APPEAR_TIMEOUT).await?;
            question(session).await
        };
        if self.lender.ids().len() < 2 {
            return answer.await;
        }
        match tokio::time::timeout(PATIENCE, answer).await {
            Ok(answer) => answer,
            Err(_) => Err(kiln_session::Error::NoSession { id: only.clone() }),
        }
    }
}

#[async_trait]
impl Credentials for SessionCredentials {
    /// Tokens are shared by those whose preferred session is the same; a session's id is its client's secret.
    fn identity(&self) -> String {
        let first = || self.lender.ids().into_iter().find(|id| !id.is_empty()).unwrap_or_default();
        self.only.clone().unwrap_or_else(first)
    }

    fn next_holder(&self, tried: &HashSet<String>) -> Option<Arc<dyn Credentials>> {
        if self.only.is_some() {
            return None;
        }
        let only = self.lender.next(tried)?;
        Some(Arc::new(Self { lender: self.lender.clone(), only: Some(only) }))
    }

    async fn credentials(&self, host: &str) -> Result<Option<Credential>, BoxError> {
        let answer = self.ask(async |session| auth::credentials(&session, host).await).await;
        match absent_is_none(answer)? {
            Some(found) if !found.secret.is_empty() => {
                Ok(Some(Credential { username: found.username, secret: Secret::new(found.secret.reveal()) }))
            }
            _ => Ok(None),
        }
    }

    async fn token_authority(&self, host: &str, salt: &[u8]) -> Result<Option<Vec<u8>>, BoxError> {
        let answer = self.ask(async |session| auth::token_authority(&session, host, salt).await).await;
        Ok(absent_is_none(answer)?.flatten().map(|key| key.to_vec()))
    }

    async fn fetch_token(&self, request: TokenRequest) -> Result<Token, BoxError> {
        let wanted = auth::TokenRequest {
            host: request.host,
            realm: request.realm,
            service: request.service,
            scopes: request.scopes,
        };
        let token = self.ask(async |session| auth::fetch_token(&session, wanted.clone()).await).await?;
        Ok(Token {
            token: Secret::new(token.token.reveal()),
            expires_in: u64::try_from(token.expires_in).unwrap_or_default(),
            issued_at: u64::try_from(token.issued_at).unwrap_or_default(),
        })
    }
}

/// A client without the service, and a build without a client, have no credentials.
fn absent_is_none<T>(answer: kiln_session::Result<T>) -> kiln_session::Result<Option<T>> {
    match answer {
        Ok(found) => Ok(Some(found)),
        Err(kiln_session::Error::NoSessions) => Ok(None),
        Err(error) if error.is_absent() => Ok(None),
        Err(error) => Err(error),
    }
}

/// OCI layouts of whoever waits.
#[derive(Clone, Debug)]
pub struct SessionLayouts(Lender);

impl SessionLayouts {
    /// Asks sessions that `lender` lends.
    #[must_use]
    pub fn new(lender: Lender) -> Self {
        Self(lender)
    }

    async fn receive(
        blobs: Blobs,
        descriptor: &Descriptor,
        store: &dyn ContentStore,
        progress: &mut (dyn FnMut(u64, u64) + Send),
    ) -> Result<()> {
        let mut writer = store.writer(Some(descriptor)).await?;
        let mut content = blobs.read(&descriptor.digest, 0).await?;
        while let Some(piece) = content.next().await {
            writer.write(piece?).await?;
            progress(writer.written(), descriptor.size);
        }
        writer.commit(Some((descriptor.digest, descriptor.size))).await?;
        Ok(())
    }
}

#[async_trait]
impl Layouts for SessionLayouts {
    async fn descriptor(&self, layout: &Layout) -> Result<Descriptor> {
        let bytes = self
            .0
            .any_preferring(preferred(layout), async |session| {
                Blobs::new(session, layout.store_id()).read_all(&layout.digest, MAX_ROOT).await
            })
            .await?;
        let kind = match Document::parse(&bytes)? {
            Document::Manifest(manifest) if manifest.media_type.is_empty() => media_type::OCI_MANIFEST.into(),
            Document::Index(index) if index.media_type.is_empty() => media_type::OCI_INDEX.into(),
            Document::Manifest(manifest) => manifest.media_type,
            Document::Index(index) => index.media_type,
        };
        Ok(Descriptor::new(kind, layout.digest, bytes.len() as u64))
    }

    async fn fetch(
        &self,
        layout: &Layout,
        descriptor: &Descriptor,
        store: &dyn ContentStore,
        progress: &mut (dyn FnMut(u64, u64) + Send),
    ) -> Result<()> {
        if store.has_whole(descriptor).await? {
            return Ok(());
        }
        // Tried one after the other, so that the observer is never shared.
        let mut last = None;
        let sessions = preferred(layout).map(str::to_owned).into_iter().chain(self.0.ids());
        for id in sessions.filter(|id| !id.is_empty()) {
            let received = match self.0.sessions().get(&id, kiln_session::APPEAR_TIMEOUT).await {
                Ok(session) => {
                    Self::receive(Blobs::new(session, layout.store_id()), descriptor, store, progress).await
                }
                Err(error) => Err(error.into()),
            };
            match received {
                Ok(()) => return Ok(()),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| Error::NoLayout(layout.store.clone())))
    }
}

fn preferred(layout: &Layout) -> Option<&str> {
    Some(layout.session.as_str()).filter(|id| !id.is_empty())
}
