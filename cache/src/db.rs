//! The database file: one writing thread, readers on connections of their own.
//!
//! A write is a closure that runs in one transaction on the writer's thread, in the order of submission. Once
//! submitted it runs to its end even when whoever asked for it has gone, so a transaction is never half done.

pub(crate) mod builds;
pub(crate) mod bulk;
pub(crate) mod check;
pub(crate) mod keys;
pub(crate) mod leaves;
pub(crate) mod memos;
mod reserve;
pub(crate) mod rows;
mod schema;

use std::{
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, SystemTime},
};

use kiln_digest::Digest;
use rusqlite::{
    Connection, OpenFlags, OptionalExtension, Transaction, TransactionBehavior, config::DbConfig, params,
};
use tokio::sync::oneshot;

use self::reserve::Reserve;
use crate::{Error, Result};

/// Writes waiting for the writer. At this bound, submitting blocks until the writer has caught up; a write takes tens
/// of microseconds, so this holds well under a second of work.
const QUEUE: usize = 4096;
/// Reader connections kept open between reads.
const IDLE_READERS: usize = 4;
/// How long a connection waits for a lock that another process (`fsck`, a backup) holds.
const BUSY: Duration = Duration::from_secs(10);

/// Bytes of the log that are kept once its content is in the database.
const LOG: i64 = 1 << 20;

type Job = Box<dyn FnOnce(&mut Connection) + Send>;

/// The catalogue's database.
#[derive(Debug)]
pub(crate) struct Database {
    path: PathBuf,
    jobs: Mutex<Option<SyncSender<Job>>>,
    writer: Mutex<Option<JoinHandle<()>>>,
    readers: Mutex<Vec<Connection>>,
    reserve: Reserve,
    /// Writes submitted so far, and how many of them the last checkpoint covers.
    writes: AtomicU64,
    synced: AtomicU64,
}

impl Database {
    /// Opens or makes the database and brings its schema up to date.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let connection = match connect(path) {
            Err(Error::Database(error)) if is_damaged(&error) => {
                set_aside(path, &error)?;
                connect(path)?
            }
            outcome => outcome?,
        };
        let (jobs, queue) = sync_channel::<Job>(QUEUE);
        let writer = std::thread::Builder::new()
            .name("catalogue".into())
            .spawn(move || run_writer(connection, &queue))
            .map_err(Error::io("start the catalogue's writer"))?;
        Ok(Self {
            path: path.to_owned(),
            jobs: Mutex::new(Some(jobs)),
            writer: Mutex::new(Some(writer)),
            readers: Mutex::default(),
            reserve: Reserve::take(path),
            writes: AtomicU64::new(0),
            synced: AtomicU64::new(0),
        })
    }

    /// Runs `f` in one transaction and returns once it is committed.
    ///
    /// # Cancel safety
    /// A dropped future does not stop the transaction.
    pub(crate) async fn write<T: Send + 'static>(
        &self,
        f: impl FnOnce(&Transaction<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.submit(f, |_| ())?.await.map_err(|_closed| Error::Closed)?
    }

    /// The same, and `after` runs on the writer's thread once the transaction is committed, before any later write and
    /// whether or not the caller still waits.
    pub(crate) async fn write_then<T: Send + 'static>(
        &self,
        f: impl FnOnce(&Transaction<'_>) -> Result<T> + Send + 'static,
        after: impl FnOnce(&T) + Send + 'static,
    ) -> Result<T> {
        self.submit(f, after)?.await.map_err(|_closed| Error::Closed)?
    }

    fn submit<T: Send + 'static>(
        &self,
        f: impl FnOnce(&Transaction<'_>) -> Result<T> + Send + 'static,
        after: impl FnOnce(&T) + Send + 'static,
    ) -> Result<oneshot::Receiver<Result<T>>> {
        let (reply, answer) = oneshot::channel();
        self.send(Box::new(move |connection| {
            let outcome = transact(connection, f);
            if let Ok(value) = &outcome {
                after(value);
            }
            // Whoever asked may have gone; the transaction counts all the same.
            let _ = reply.send(outcome);
        }))?;
        Ok(answer)
    }

    /// Takes back what the database may use on a full disk, when there is room for it again.
    pub(crate) fn restock(&self) {
        self.reserve.restock();
    }

    /// Makes everything written so far safe against a power loss, and the log short.
    pub(crate) async fn flush(&self) -> Result<()> {
        let (reply, answer) = oneshot::channel();
        self.send(Box::new(move |connection| {
            // A reader that is in the way only keeps the log long.
            let flushed = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
            let _ = reply.send(flushed);
        }))?;
        Ok(answer.await.map_err(|_closed| Error::Closed)??)
    }

    /// Writes submitted so far.
    pub(crate) fn writes(&self) -> u64 {
        self.writes.load(Ordering::Relaxed)
    }

    /// Of those, how many the last checkpoint covers.
    pub(crate) fn synced_writes(&self) -> u64 {
        self.synced.load(Ordering::Relaxed)
    }

    pub(crate) fn note_synced(&self, writes: u64) {
        self.synced.store(writes, Ordering::Relaxed);
    }

    fn send(&self, job: Job) -> Result<()> {
        self.reserve.release_if_full();
        self.writes.fetch_add(1, Ordering::Relaxed);
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner).clone().ok_or(Error::Closed)?;
        jobs.send(job).map_err(|_closed| Error::Closed)
    }

    /// Runs a short read at once on the calling thread.
    pub(crate) fn read<T>(&self, f: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        let idle = self.readers.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let connection = match idle {
            Some(connection) => connection,
            None => self.reader()?,
        };
        let answer = f(&connection);
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        if readers.len() < IDLE_READERS {
            readers.push(connection);
        }
        answer
    }

    fn reader(&self) -> Result<Connection> {
        let connection = Connection::open_with_flags(
            &self.path,
            OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI,
        )?;
        configure(&connection)?;
        Ok(connection)
    }

    /// Lets the queued writes finish and closes the file.
    pub(crate) fn close(&self) {
        drop(self.jobs.lock().unwrap_or_else(PoisonError::into_inner).take());
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer
            && writer.join().is_err()
        {
            tracing::error!("the catalogue's writer has panicked");
        }
        self.readers.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // The last owner may be a closure on the writer's own thread, which cannot wait for itself.
        drop(self.jobs.lock().unwrap_or_else(PoisonError::into_inner).take());
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer
            && writer.thread().id() != std::thread::current().id()
        {
            let _ = writer.join();
        }
    }
}

/// The connection that writes.
fn connect(path: &Path) -> Result<Connection> {
    let mut connection = Connection::open(path)?;
    configure(&connection)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    // The log gets as long as the longest time without a checkpoint takes; afterwards it need not stay so.
    connection.pragma_update(None, "journal_size_limit", LOG)?;
    schema::migrate(&mut connection, path)?;
    schema::touch(&connection)?;
    Ok(connection)
}

fn is_damaged(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    matches!(error.sqlite_error_code(), Some(DatabaseCorrupt | NotADatabase))
}

/// Moves a database that cannot be used out of the way: without one everything is a miss, with it nothing works.
fn set_aside(path: &Path, error: &rusqlite::Error) -> Result<()> {
    let mark = crate::RecordId::random();
    for suffix in ["", "-wal", "-shm"] {
        let mut from = path.as_os_str().to_owned();
        from.push(suffix);
        let mut to = from.clone();
        to.push(format!(".{mark}.bak"));
        match std::fs::rename(&from, &to) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io(format!("set the damaged catalogue `{}` aside", path.display()))(
                    error,
                ));
            }
            _ => {}
        }
    }
    let path = path.display();
    tracing::error!(%path, %error, kept = %format!("{path}.{mark}.bak"), "the catalogue is damaged and begins anew");
    Ok(())
}

fn configure(connection: &Connection) -> Result<()> {
    connection.busy_timeout(BUSY)?;
    connection.pragma_update(None, "foreign_keys", "ON")?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    // Values bound to a statement do not change its plan, or every use would prepare it anew for the partial indexes.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(())
}

fn run_writer(mut connection: Connection, queue: &Receiver<Job>) {
    while let Ok(job) = queue.recv() {
        job(&mut connection);
    }
}

fn transact<T>(connection: &mut Connection, f: impl FnOnce(&Transaction<'_>) -> Result<T>) -> Result<T> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let value = f(&transaction)?;
    transaction.commit()?;
    Ok(value)
}

/// A small fact by name.
pub(crate) fn meta(connection: &Connection, key: &str) -> Result<Option<Vec<u8>>> {
    Ok(connection
        .prepare_cached("SELECT value FROM meta WHERE key = ?1")?
        .query_row([key], |row| row.get(0))
        .optional()?)
}

/// What the ledger says that the snapshots of all records take: bytes and inodes.
pub(crate) fn ledger(connection: &Connection) -> Result<(i64, i64)> {
    let value = |key: &str| {
        let mut statement = connection.prepare_cached("SELECT value FROM meta WHERE key = ?1")?;
        Ok::<i64, Error>(statement.query_row([key], |row| row.get(0))?)
    };
    Ok((value("bytes")?, value("inodes")?))
}

/// Sets or removes a small fact.
pub(crate) fn set_meta(transaction: &Transaction<'_>, key: &str, value: Option<&[u8]>) -> Result<()> {
    match value {
        Some(value) => transaction
            .prepare_cached(
                "INSERT INTO meta (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = ?2",
            )?
            .execute(params![key, value])?,
        None => transaction.prepare_cached("DELETE FROM meta WHERE key = ?1")?.execute([key])?,
    };
    Ok(())
}

/// Adds or renews a lease on a blob.
pub(crate) fn lease_blob(
    transaction: &Transaction<'_>,
    owner: &str,
    digest: &Digest,
    expires: Option<SystemTime>,
) -> Result<()> {
    transaction
        .prepare_cached(
            "INSERT INTO blob_leases (owner, digest, expires) VALUES (?1, ?2, ?3)
             ON CONFLICT (owner, digest) DO UPDATE SET expires = ?3",
        )?
        .execute(params![owner, digest.to_string(), expires.map(rows::nanos)])?;
    Ok(())
}

/// Ends an owner's leases and returns the blobs that no row names any more.
pub(crate) fn release_blobs(transaction: &Transaction<'_>, owner: &str) -> Result<Vec<Digest>> {
    let mut digests: Vec<Digest> = Vec::new();
    {
        let mut statement = transaction.prepare_cached("SELECT digest FROM blob_leases WHERE owner = ?1")?;
        let mut rows = statement.query([owner])?;
        while let Some(row) = rows.next()? {
            digests.extend(row.get::<_, String>(0)?.parse::<Digest>());
        }
    }
    transaction.prepare_cached("DELETE FROM blob_leases WHERE owner = ?1")?.execute([owner])?;
    let mut freed = Vec::new();
    for digest in digests {
        if !rows::blob_is_named(transaction, &digest)? {
            freed.push(digest);
        }
    }
    Ok(freed)
}

/// Begins a new epoch and returns the one that ended: data of later transactions is not in it.
pub(crate) fn next_epoch(transaction: &Transaction<'_>) -> Result<i64> {
    let ended: i64 =
        transaction.query_row("SELECT value FROM meta WHERE key = 'epoch'", [], |row| row.get(0))?;
    transaction.execute("UPDATE meta SET value = ?1 WHERE key = 'epoch'", [ended + 1])?;
    Ok(ended)
}

/// Notes up to which epoch all data is safe.
pub(crate) fn set_synced(transaction: &Transaction<'_>, epoch: i64) -> Result<()> {
    transaction.execute("UPDATE meta SET value = ?1 WHERE key = 'synced'", [epoch])?;
    Ok(())
}
