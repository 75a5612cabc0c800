//! Rows of builds that have ended.

use std::time::SystemTime;

use kiln_digest::Digest;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};

use super::{lease_blob, release_blobs, rows::nanos, rows::time};
use crate::{BuildRecord, Result};

/// Who leases the blobs of a build.
fn owner(id: &str) -> String {
    format!("build {id}")
}

/// Inserts or replaces a record; returns the blobs that nobody wants any more.
pub(crate) fn save(
    transaction: &Transaction<'_>,
    build: &BuildRecord,
    blobs: &[Digest],
) -> Result<Vec<Digest>> {
    let before = release_blobs(transaction, &owner(&build.id))?;
    transaction
        .prepare_cached(
            "INSERT OR REPLACE INTO builds (id, created_at, completed_at, generation, pinned, body)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute(params![
            build.id,
            nanos(build.created_at),
            nanos(build.completed_at),
            build.generation,
            build.pinned,
            build.body,
        ])?;
    for blob in blobs {
        lease_blob(transaction, &owner(&build.id), blob, None)?;
    }
    Ok(before.into_iter().filter(|freed| !blobs.contains(freed)).collect())
}

pub(crate) fn find(connection: &Connection, id: &str) -> Result<Option<BuildRecord>> {
    let mut statement = connection.prepare_cached(
        "SELECT id, created_at, completed_at, generation, pinned, body FROM builds WHERE id = ?1",
    )?;
    Ok(statement.query_row([id], record).optional()?)
}

fn record(row: &Row<'_>) -> rusqlite::Result<BuildRecord> {
    Ok(BuildRecord {
        id: row.get(0)?,
        created_at: time(row.get(1)?),
        completed_at: time(row.get(2)?),
        generation: row.get(3)?,
        pinned: row.get(4)?,
        body: row.get(5)?,
    })
}

pub(crate) fn ids(connection: &Connection, newest_first: bool) -> Result<Vec<String>> {
    let mut statement = connection.prepare_cached(if newest_first {
        "SELECT id FROM builds ORDER BY created_at DESC, id"
    } else {
        "SELECT id FROM builds ORDER BY id"
    })?;
    Ok(statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?)
}

pub(crate) fn pin(transaction: &Transaction<'_>, id: &str, pinned: bool) -> Result<Option<BuildRecord>> {
    transaction
        .prepare_cached("UPDATE builds SET pinned = ?2, generation = generation + 1 WHERE id = ?1")?
        .execute(params![id, pinned])?;
    find(transaction, id)
}

/// Removes a record; returns the blobs that nobody wants any more, or `None` if there was no record.
pub(crate) fn remove(transaction: &Transaction<'_>, id: &str) -> Result<Option<Vec<Digest>>> {
    if transaction.prepare_cached("DELETE FROM builds WHERE id = ?1")?.execute([id])? == 0 {
        return Ok(None);
    }
    release_blobs(transaction, &owner(id)).map(Some)
}

/// Those that ended before `oldest` and are beyond the newest `count`, pinned ones aside.
pub(crate) fn expired(connection: &Connection, oldest: SystemTime, count: usize) -> Result<Vec<String>> {
    let mut statement = connection.prepare_cached(
        "SELECT id FROM (SELECT id, completed_at FROM builds WHERE pinned = 0
             ORDER BY completed_at DESC, id LIMIT -1 OFFSET ?2) WHERE completed_at < ?1",
    )?;
    let count = i64::try_from(count).unwrap_or(i64::MAX);
    Ok(statement.query_map(params![nanos(oldest), count], |row| row.get(0))?.collect::<Result<_, _>>()?)
}
