//! The sessions that are open at the daemon.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt as _};
use kiln_api::control::BytesMessage;
use tokio::sync::Notify;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tonic::Status;
use tonic::metadata::MetadataMap;

use crate::channel::Channel;
use crate::error::{Error, Result};
use crate::headers;
use crate::health::{self, HealthOptions};
use crate::pipe::Pipe;

/// Metadata of a session's stream: its id.
pub const ID_KEY: &str = "x-docker-expose-session-uuid";
/// Metadata of a session's stream: what local snapshots of the same client are found by.
pub const SHARED_KEY_KEY: &str = "x-docker-expose-session-sharedkey";
/// Metadata of a session's stream, repeated: full names of the methods that the client serves.
pub const METHOD_KEY: &str = "x-docker-expose-session-grpc-method";
/// Metadata of a session's stream: milliseconds between health checks, one failure being fatal.
const HEALTH_KEY: &str = "x-buildkit-session-health-custom-timeout";
/// How long an id and a shared key may be, in bytes.
const MAX_KEY: usize = 1024;
/// How many methods a client may list.
const MAX_METHODS: usize = 4096;
/// How long callers wait for a session to appear.
pub const APPEAR_TIMEOUT: Duration = Duration::from_secs(5);

/// The open sessions of a daemon. Cheap to clone; all clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Sessions {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    open: Mutex<HashMap<String, Session>>,
    appeared: Notify,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

/// One open session. Cheap to clone. Holding it does not keep it open.
#[derive(Clone, Debug)]
pub struct Session {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    id: String,
    shared_key: String,
    /// Lower case.
    methods: HashSet<String>,
    channel: Channel,
    closed: CancellationToken,
}

impl Session {
    /// The id that the client chose.
    pub fn id(&self) -> &str {
        &self.inner.id
    }

    /// What local snapshots of the same client are found by; may be empty.
    pub fn shared_key(&self) -> &str {
        &self.inner.shared_key
    }

    /// Whether the client serves this method, `/<package.Service>/<Method>` in any case.
    pub fn supports(&self, method: &str) -> bool {
        self.inner.methods.contains(&method.to_ascii_lowercase())
    }

    /// A transport for calls to the client. They end, at the latest, with the session.
    pub fn channel(&self) -> Channel {
        self.inner.channel.clone()
    }

    /// Cancelled once the session has ended. Cancelling it ends the session.
    pub fn closed(&self) -> &CancellationToken {
        &self.inner.closed
    }

    pub(crate) fn require(&self, method: &'static str) -> Result<()> {
        if self.inner.closed.is_cancelled() {
            return Err(Error::Closed { id: self.inner.id.clone() });
        }
        if !self.supports(method) {
            return Err(Error::Unsupported { method });
        }
        Ok(())
    }
}

impl Sessions {
    /// Starts without any session.
    pub fn new() -> Self {
        Self::default()
    }

    /// Opens the session of a client: `incoming` is what it sends on `Control.Session`, the returned stream what
    /// it is to be sent. The session ends when either ends, when the returned stream is dropped, or when the
    /// client stops answering.
    ///
    /// # Errors
    /// [`Error::InvalidSession`] without an id in `metadata`.
    pub fn accept<S>(&self, metadata: &MetadataMap, incoming: S) -> Result<SessionStream>
    where
        S: Stream<Item = std::result::Result<BytesMessage, Status>> + Send + 'static,
    {
        let head = Head::read(metadata)?;
        let closed = self.shared.shutdown.child_token();
        // The pipe belongs to tasks of the connection, which end only when it does.
        let incoming = incoming.take_until(closed.clone().cancelled_owned());
        let (pipe, outgoing) = Pipe::new(incoming.map(|item| item.map(|message| message.data)));
        let sessions = self.clone();
        self.shared.tasks.spawn({
            let closed = closed.clone();
            async move {
                let _ending = closed.clone().drop_guard();
                let id = head.id.clone();
                tokio::select! {
                    () = closed.cancelled() => {}
                    outcome = sessions.run(head, pipe, closed.clone()) => {
                        if let Err(error) = outcome {
                            tracing::debug!(session = id, error = error.chain(), "session failed");
                        }
                    }
                }
            }
        });
        let outgoing = ReceiverStream::new(outgoing).take_until(closed.clone().cancelled_owned());
        Ok(SessionStream { outgoing: outgoing.boxed(), _ending: closed.drop_guard() })
    }

    async fn run(&self, head: Head, pipe: Pipe, closed: CancellationToken) -> Result<()> {
        let (channel, connection) = Channel::open(pipe, self.shared.tasks.clone()).await?;
        let session = Session {
            inner: Arc::new(Inner {
                id: head.id,
                shared_key: head.shared_key,
                methods: head.methods,
                channel,
                closed: closed.clone(),
            }),
        };
        let _registered = self.register(session.clone());
        tracing::debug!(session = session.id(), methods = session.inner.methods.len(), "session started");
        let mut connection = connection;
        let watch = health::watch(session.channel(), head.health);
        tokio::select! {
            ended = &mut connection => {
                tracing::debug!(session = session.id(), error = ?ended.err(), "session ended");
            }
            failure = watch => {
                tracing::warn!(session = session.id(), %failure, "session does not answer");
            }
        }
        Ok(())
    }

    fn register(&self, session: Session) -> Registered {
        // An older session of the same id lives on, but is not found any more.
        self.shared.lock().insert(session.inner.id.clone(), session.clone());
        self.shared.appeared.notify_waiters();
        Registered { shared: self.shared.clone(), session }
    }

    /// Finds a session by its id, or by `<anything>:<id>`, waiting for it to appear.
    ///
    /// # Errors
    /// [`Error::NoSession`] after `wait`.
    pub async fn get(&self, id: &str, wait: Duration) -> Result<Session> {
        let id = id.split_once(':').map_or(id, |(_, id)| id);
        let appear = async {
            loop {
                let mut appeared = std::pin::pin!(self.shared.appeared.notified());
                // Listening from before the look, so that nothing is missed.
                appeared.as_mut().enable();
                if let Some(session) = self.find(id) {
                    return session;
                }
                appeared.await;
            }
        };
        tokio::time::timeout(wait, appear).await.map_err(|_| Error::NoSession { id: id.to_owned() })
    }

    fn find(&self, id: &str) -> Option<Session> {
        self.shared.lock().get(id).filter(|session| !session.inner.closed.is_cancelled()).cloned()
    }

    /// Whether a session of this id, or of `<anything>:<id>`, is open at this moment.
    pub fn is_open(&self, id: &str) -> bool {
        self.find(id.split_once(':').map_or(id, |(_, id)| id)).is_some()
    }

    /// How many sessions are open.
    pub fn len(&self) -> usize {
        self.shared.lock().len()
    }

    /// Whether no session is open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Ends all sessions and waits until their tasks are over.
    pub async fn shutdown(&self) {
        self.shared.shutdown.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Session>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes the session off the list when it ends, whatever ends it.
struct Registered {
    shared: Arc<Shared>,
    session: Session,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.session.inner.closed.cancel();
        tracing::debug!(session = self.session.id(), "session is over");
        let mut open = self.shared.lock();
        let id = &self.session.inner.id;
        // It may have been replaced by now.
        if open.get(id).is_some_and(|found| Arc::ptr_eq(&found.inner, &self.session.inner)) {
            open.remove(id);
        }
    }
}

/// What a client is to be sent on `Control.Session`. Dropping it ends the session.
pub struct SessionStream {
    outgoing: BoxStream<'static, Bytes>,
    _ending: DropGuard,
}

impl fmt::Debug for SessionStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionStream").finish_non_exhaustive()
    }
}

impl Stream for SessionStream {
    type Item = std::result::Result<BytesMessage, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.outgoing.as_mut().poll_next(cx).map(|data| data.map(|data| Ok(BytesMessage { data })))
    }
}

struct Head {
    id: String,
    shared_key: String,
    methods: HashSet<String>,
    health: HealthOptions,
}

impl Head {
    fn read(metadata: &MetadataMap) -> Result<Self> {
        let invalid = |reason: &str| Error::InvalidSession { reason: reason.to_owned() };
        let id = headers::first(metadata, ID_KEY).unwrap_or_default();
        let shared_key = headers::first(metadata, SHARED_KEY_KEY).unwrap_or_default();
        if id.is_empty() {
            return Err(invalid("no session id"));
        }
        if id.len() > MAX_KEY || shared_key.len() > MAX_KEY {
            return Err(invalid("session id or shared key is too long"));
        }
        let methods = metadata.get_all(METHOD_KEY).iter();
        let methods: HashSet<String> = methods
            .take(MAX_METHODS)
            .map(|method| String::from_utf8_lossy(method.as_encoded_bytes()).to_ascii_lowercase())
            .collect();
        let custom = headers::first(metadata, HEALTH_KEY).and_then(|value| value.parse().ok());
        Ok(Self { id, shared_key, methods, health: HealthOptions::new(custom) })
    }
}
