use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use async_trait::async_trait;
use kiln_executor::samples::NetStat;
use kiln_executor::{Network, NetworkLease, NetworkNamespace, NetworkRequest};
use rand::Rng as _;
use rand::distr::Alphanumeric;
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::config::NetworkList;
use crate::counters;
use crate::error::{Error, Result};
use crate::namespaces::Namespaces;
use crate::plugins::{Attachment, Plugins};
use crate::pool::Pool;
use crate::record::{Record, Records};

/// How many namespaces are connected or disconnected at the same time. Plugins wait for each other anyway, at the
/// lock of the packet filter.
const AT_ONCE: usize = 4;
const ID_LENGTH: usize = 25;

/// What a [`CniNetwork`] is made from.
#[derive(Clone, Debug)]
pub struct CniOptions {
    /// The directory of namespaces and what is known of them; made if missing. One network at a time may use it.
    pub state: PathBuf,
    /// What plugins are to do.
    pub list: NetworkList,
    /// Where they are.
    pub plugins: Plugins,
    /// How many namespaces are to be ready before anybody asks.
    pub ready: usize,
}

/// Networks by CNI plugins.
#[derive(Debug)]
pub struct CniNetwork {
    inner: Arc<Inner>,
    _closes: DropGuard,
}

#[derive(Debug)]
struct Inner {
    list: NetworkList,
    plugins: Plugins,
    records: Records,
    namespaces: Arc<dyn Namespaces>,
    pool: Mutex<Pool<Connected>>,
    /// The pool has changed.
    changed: Notify,
    gate: Semaphore,
    tasks: TaskTracker,
    handle: Handle,
    closing: CancellationToken,
}

/// A namespace that plugins have connected.
#[derive(Debug)]
struct Connected {
    id: String,
    record: Record,
    namespace: NetworkNamespace,
    /// What it had counted when nobody used it last.
    before: Option<NetStat>,
}

impl CniNetwork {
    /// Checks that the plugins are there, and begins to remove what an earlier process left and to make namespaces. To be
    /// called in a tokio runtime. Blocks.
    ///
    /// # Errors
    /// [`Error::PluginMissing`]; [`Error::Io`] for the directory.
    pub fn open(options: CniOptions, namespaces: Arc<dyn Namespaces>) -> Result<Self> {
        let CniOptions { state, list, plugins, ready } = options;
        plugins.check(&list)?;
        let records = Records::open(state)?;
        let left = records.ids()?;
        let closing = CancellationToken::new();
        let inner = Arc::new(Inner {
            list,
            plugins,
            records,
            namespaces,
            pool: Mutex::new(Pool::new(ready)),
            changed: Notify::new(),
            gate: Semaphore::new(AT_ONCE),
            tasks: TaskTracker::new(),
            handle: Handle::current(),
            closing: closing.clone(),
        });
        inner.tasks.spawn_on(inner.clone().keep(left), &inner.handle);
        Ok(Self { inner, _closes: closing.drop_guard() })
    }
}

#[async_trait]
impl Network for CniNetwork {
    fn name(&self) -> &'static str {
        "cni"
    }

    async fn lease(&self, request: NetworkRequest<'_>) -> kiln_executor::Result<Box<dyn NetworkLease>> {
        let lease = self.inner.lease(request).await;
        let lease = lease.map_err(|error| kiln_executor::Error::Network { source: Box::new(error) })?;
        Ok(Box::new(lease))
    }

    async fn close(&self) {
        self.inner.closing.cancel();
        for connected in self.inner.pool().drain() {
            self.inner.dispose(connected);
        }
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }
}

impl Inner {
    async fn lease(self: &Arc<Self>, request: NetworkRequest<'_>) -> Result<Lease> {
        if self.closing.is_cancelled() {
            return Err(Error::Closed);
        }
        let again = !request.privileged && request.hostname.is_none();
        if request.hostname.is_none() {
            let ready = self.pool().take();
            self.changed.notify_one();
            if let Some(connected) = ready {
                return Ok(Lease { inner: self.clone(), connected: Some(connected), again });
            }
        }
        let (inner, hostname) = (self.clone(), request.hostname.map(str::to_owned));
        let (reply, made) = oneshot::channel();
        // A task of its own: a caller that goes away leaves no namespace half connected. What it does not take is given
        // back before the task ends, so that nobody waits for its end too early.
        let connecting = async move {
            let connected = inner.connect(hostname).await;
            let lease = connected.map(|connected| Lease { inner, connected: Some(connected), again });
            drop(reply.send(lease));
        };
        self.tasks.spawn_on(connecting, &self.handle);
        made.await.map_err(|_| Error::Closed)?
    }

    async fn connect(self: &Arc<Self>, hostname: Option<String>) -> Result<Connected> {
        if let Some(hostname) = &hostname
            && !hostname.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte))
        {
            return Err(Error::Hostname { hostname: hostname.clone() });
        }
        let _permit = self.gate.acquire().await.map_err(|_| Error::Closed)?;
        let id: String = rand::rng().sample_iter(Alphanumeric).take(ID_LENGTH).map(char::from).collect();
        let path = self.records.namespace(&id);
        let record = Record { list: self.list.clone(), hostname, result: None };
        let mut connected =
            Connected { id, record, namespace: NetworkNamespace::At(path.clone()), before: None };
        let made = self
            .blocking({
                let (path, id, record) = (path.clone(), connected.id.clone(), connected.record.clone());
                move |inner| {
                    inner.records.write(&id, &record)?;
                    inner.namespaces.make(&path).inspect_err(|_| inner.records.remove(&id))
                }
            })
            .await;
        made?;
        let attachment = Attachment {
            id: &connected.id,
            namespace: Some(&path),
            hostname: connected.record.hostname.as_deref(),
        };
        match self.plugins.attach(&self.list, attachment).await {
            Ok(result) => connected.record.result = Some(result),
            Err(error) => {
                self.disconnect(&connected.id, &connected.record, Left::Nothing).await;
                return Err(error);
            }
        }
        let (id, record) = (connected.id.clone(), connected.record.clone());
        let written = self.blocking(move |inner| {
            inner.records.write(&id, &record)?;
            Ok(counters::read(&record))
        });
        match written.await {
            Ok(counted) => connected.before = counted,
            Err(error) => {
                self.disconnect(&connected.id, &connected.record, Left::Nothing).await;
                return Err(error);
            }
        }
        Ok(connected)
    }

    async fn disconnect(self: &Arc<Self>, id: &str, record: &Record, left: Left) {
        let path = self.records.namespace(id);
        let exists = {
            let path = path.clone();
            self.blocking(move |inner| Ok(inner.namespaces.exists(&path))).await.unwrap_or(false)
        };
        let attachment = Attachment {
            id,
            namespace: exists.then_some(path.as_path()),
            hostname: record.hostname.as_deref(),
        };
        let detached = self.plugins.detach(&record.list, record.result.as_ref(), attachment).await;
        if let Err(error) = &detached {
            tracing::warn!(id, error = %error, "a network could not be taken down whole");
        }
        let forget = detached.is_ok() || matches!(left, Left::Nothing);
        let id = id.to_owned();
        let removed = self.blocking(move |inner| {
            inner.namespaces.remove(&path)?;
            if forget {
                inner.records.remove(&id);
            }
            Ok(())
        });
        if let Err(error) = removed.await {
            tracing::warn!(error = &error as &dyn std::error::Error, "a network namespace is left");
        }
    }

    /// Removes a namespace in a task of its own.
    fn dispose(self: &Arc<Self>, connected: Connected) {
        let inner = self.clone();
        let removing = async move {
            let Ok(_permit) = inner.gate.acquire().await else { return };
            inner.disconnect(&connected.id, &connected.record, Left::ForNextStart).await;
        };
        self.tasks.spawn_on(removing, &self.handle);
    }

    /// Keeps the pool as it is to be, until the end. First removes what an earlier process left.
    async fn keep(self: Arc<Self>, left: Vec<String>) {
        for id in left {
            if self.closing.is_cancelled() {
                return;
            }
            let name = id.clone();
            let known = self.blocking(move |inner| Ok(inner.records.read(&name))).await.ok().flatten();
            let unknown = || Record { list: self.list.clone(), hostname: None, result: None };
            self.disconnect(&id, &known.unwrap_or_else(unknown), Left::Nothing).await;
        }
        loop {
            let expired = self.pool().expired(Instant::now());
            for connected in expired {
                self.dispose(connected);
            }
            let wants_more = self.pool().wants_more() && !self.closing.is_cancelled();
            let failed = wants_more && !self.make_one().await;
            if wants_more && !failed {
                continue;
            }
            let expiry = self.pool().next_expiry();
            let expires = async {
                match expiry {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.closing.cancelled() => return,
                () = self.changed.notified() => {}
                () = expires => {}
            }
        }
    }

    /// Whether there is one more in the pool.
    async fn make_one(self: &Arc<Self>) -> bool {
        match self.connect(None).await {
            Ok(connected) => {
                drop(Lease { inner: self.clone(), connected: Some(connected), again: true });
                true
            }
            Err(error) => {
                // The next step that asks tries again, and is told.
                tracing::warn!(error = &error as &dyn std::error::Error, "no network can be held ready");
                false
            }
        }
    }

    async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let inner = self.clone();
        tokio::task::spawn_blocking(move || work(&inner)).await.map_err(|_| Error::Closed)?
    }

    fn pool(&self) -> MutexGuard<'_, Pool<Connected>> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What stays on disk of a namespace that could not be disconnected.
enum Left {
    /// Nothing: this was the last try.
    Nothing,
    /// What the next start needs to try again.
    ForNextStart,
}

/// A namespace in use.
#[derive(Debug)]
struct Lease {
    inner: Arc<Inner>,
    /// There until this is dropped.
    connected: Option<Connected>,
    /// Whether somebody else may have the namespace afterwards.
    again: bool,
}

impl NetworkLease for Lease {
    fn namespace(&self) -> &NetworkNamespace {
        self.connected.as_ref().map_or(&NetworkNamespace::Empty, |connected| &connected.namespace)
    }

    fn usage(&self) -> Option<NetStat> {
        let connected = self.connected.as_ref()?;
        let now = counters::read(&connected.record)?;
        Some(counters::difference(&now, connected.before.as_ref()?))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(mut connected) = self.connected.take() else { return };
        let mut pool = self.inner.pool();
        // Looked at under the lock: what comes into the pool before it is drained is drained.
        if !self.again || self.inner.closing.is_cancelled() {
            drop(pool);
            self.inner.dispose(connected);
            return;
        }
        // A few small files of the kernel's, at the end of a step.
        connected.before = counters::read(&connected.record);
        pool.put(connected, Instant::now());
        drop(pool);
        self.inner.changed.notify_one();
    }
}
