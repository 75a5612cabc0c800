//! Lending a session to work that may outlive it.

use std::collections::HashSet;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;

use crate::error::Error;
use crate::sessions::{APPEAR_TIMEOUT, Session, Sessions};

/// Who waits for a piece of work.
///
/// 1. `sessions` gives the session ids of those who wait now, the preferred one first.
/// 2. It may answer differently each time: waiters join and leave.
pub trait Waiters: fmt::Debug + Send + Sync + 'static {
    /// The session ids of those who wait now.
    fn sessions(&self) -> Vec<String>;
}

/// Waiters that do not change.
#[derive(Clone, Debug, Default)]
pub struct FixedWaiters(pub Vec<String>);

impl Waiters for FixedWaiters {
    fn sessions(&self) -> Vec<String> {
        self.0.clone()
    }
}

/// How long one client may take for a short answer before the next one is asked as well.
const PATIENCE: Duration = Duration::from_secs(2);

/// Finds a session of someone who waits, anew for each use. Nothing keeps a session.
#[derive(Clone, Debug)]
pub struct Lender {
    sessions: Sessions,
    waiters: Arc<dyn Waiters>,
}

impl Lender {
    /// Lends sessions of `waiters`.
    pub fn new(sessions: Sessions, waiters: Arc<dyn Waiters>) -> Self {
        Self { sessions, waiters }
    }

    /// Where the sessions come from.
    pub fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    /// The session ids of those who wait now, the preferred one first.
    pub fn ids(&self) -> Vec<String> {
        self.waiters.sessions()
    }

    /// Tries `work` with the session of each waiter in turn, waiting up to five seconds for each to appear, until
    /// it succeeds. A waiter who joins meanwhile, say because the one in use died, is tried too.
    ///
    /// # Errors
    /// The last error; [`Error::NoSessions`] if nobody waits.
    pub async fn any<T, E, F, Fut>(&self, work: F) -> Result<T, E>
    where
        F: FnMut(Session) -> Fut,
        Fut: Future<Output = Result<T, E>>,
        E: From<Error>,
    {
        self.any_preferring(None, work).await
    }

    /// As [`any`](Self::any), with one session tried before the waiters'.
    ///
    /// # Errors
    /// As [`any`](Self::any).
    pub async fn any_preferring<T, E, F, Fut>(&self, first: Option<&str>, mut work: F) -> Result<T, E>
    where
        F: FnMut(Session) -> Fut,
        Fut: Future<Output = Result<T, E>>,
        E: From<Error>,
    {
        let mut tried = HashSet::new();
        let mut last = None;
        let mut next = first.map(str::to_owned);
        loop {
            let Some(id) = next.take().or_else(|| self.next(&tried)) else { break };
            let outcome = match self.sessions.get(&id, APPEAR_TIMEOUT).await {
                Ok(session) => work(session).await,
                Err(error) => Err(error.into()),
            };
            match outcome {
                Ok(done) => return Ok(done),
                Err(error) => last = Some(error),
            }
            tried.insert(id);
        }
        Err(last.unwrap_or_else(|| Error::NoSessions.into()))
    }

    /// As [`any`](Self::any), for short answers: while a client keeps silent, say because its network is gone, the next
    /// one is asked as well, and the first answer counts.
    ///
    /// # Errors
    /// As [`any`](Self::any).
    ///
    /// # Cancel safety
    /// Dropping the future drops the questions.
    pub async fn soonest<T, E, F, Fut>(&self, work: F) -> Result<T, E>
    where
        F: Fn(Session) -> Fut,
        Fut: Future<Output = Result<T, E>>,
        E: From<Error>,
    {
        let work = &work;
        let mut tried = HashSet::new();
        let mut open = FuturesUnordered::new();
        let mut last = None;
        loop {
            if let Some(id) = self.next(&tried) {
                tried.insert(id.clone());
                open.push(async move { work(self.sessions.get(&id, APPEAR_TIMEOUT).await?).await });
            }
            tokio::select! {
                outcome = open.next() => match outcome {
                    Some(Ok(done)) => return Ok(done),
                    Some(Err(error)) => last = Some(error),
                    None => return Err(last.unwrap_or_else(|| Error::NoSessions.into())),
                },
                () = tokio::time::sleep(PATIENCE) => {}
            }
        }
    }

    /// The next to ask of those who wait now: the first whose session is open, else the first.
    pub fn next(&self, tried: &HashSet<String>) -> Option<String> {
        let ids = self.waiters.sessions();
        let left = || ids.iter().filter(|id| !id.is_empty() && !tried.contains(*id));
        left().find(|id| self.sessions.is_open(id)).or_else(|| left().next()).cloned()
    }
}
