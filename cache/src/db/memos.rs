//! Memos as rows.

use kiln_solver::GoneWhy;
use rusqlite::{Connection, OptionalExtension, Transaction, params};

use crate::Result;

/// Memos kept; the oldest go.
const MAX_MEMOS: i64 = 100_000;
/// Memos kept of results that have gone; those gone longest go.
const MAX_GONE: i64 = 4096;
/// Listings kept; the oldest go.
const MAX_LISTINGS: i64 = 4096;

/// A memo, its listings apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) key: String,
    pub(crate) output: i64,
    pub(crate) created_at: i64,
    /// When and why its results went.
    pub(crate) gone: Option<(i64, GoneWhy)>,
    pub(crate) body: Vec<u8>,
}

/// A column that memos are found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hook {
    Name,
    Kin,
    Digest,
    Base,
}

const COLUMNS: &str = "seq, key, output, created_at, gone_at, gone_why, body";

/// Writes a memo in place of the one that its key has. `hooks` are in the order of [`Hook`].
pub(crate) fn put<'a>(
    transaction: &Transaction<'_>,
    row: &Row,
    hooks: [Option<i64>; 4],
    listings: impl IntoIterator<Item = (i64, &'a [u8])>,
) -> Result<()> {
    transaction.prepare_cached("DELETE FROM memos WHERE key = ?1")?.execute([&row.key])?;
    let [name, kin, digest, base] = hooks;
    transaction
        .prepare_cached(
            "INSERT INTO memos (key, output, created_at, name, kin, digest, base, body)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )?
        .execute(params![row.key, row.output, row.created_at, name, kin, digest, base, row.body])?;
    let seq = transaction.last_insert_rowid();
    transaction.prepare_cached("DELETE FROM memos WHERE seq <= ?1")?.execute([seq - MAX_MEMOS])?;
    for (input, body) in listings {
        transaction
            .prepare_cached("INSERT INTO memo_listings (memo, input, body) VALUES (?1, ?2, ?3)")?
            .execute(params![seq, input, body])?;
        let oldest = transaction.last_insert_rowid() - MAX_LISTINGS;
        transaction.prepare_cached("DELETE FROM memo_listings WHERE seq <= ?1")?.execute([oldest])?;
    }
    Ok(())
}

/// The memo of a key.
pub(crate) fn get(connection: &Connection, key: &str) -> Result<Option<(i64, Row)>> {
    Ok(connection
        .prepare_cached(&format!("SELECT {COLUMNS} FROM memos WHERE key = ?1"))?
        .query_row([key], read)
        .optional()?)
}

/// The newest memos that have this value in a column.
pub(crate) fn find(
    connection: &Connection,
    hook: Hook,
    value: i64,
    output: i64,
    limit: usize,
) -> Result<Vec<(i64, Row)>> {
    let column = match hook {
        Hook::Name => "name",
        Hook::Kin => "kin",
        Hook::Digest => "digest",
        Hook::Base => "base",
    };
    let sql =
        format!("SELECT {COLUMNS} FROM memos WHERE {column} = ?1 AND output = ?2 ORDER BY seq DESC LIMIT ?3");
    let mut statement = connection.prepare_cached(&sql)?;
    let rows = statement.query_map(params![value, output, i64::try_from(limit).unwrap_or(i64::MAX)], read)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<(i64, Row)> {
    let why = match row.get::<_, Option<i64>>("gone_why")? {
        Some(1) => GoneWhy::Lost,
        _ => GoneWhy::Pruned,
    };
    let memo = Row {
        key: row.get("key")?,
        output: row.get("output")?,
        created_at: row.get("created_at")?,
        gone: row.get::<_, Option<i64>>("gone_at")?.map(|at| (at, why)),
        body: row.get("body")?,
    };
    Ok((row.get("seq")?, memo))
}

/// The listing of one input of the memo of a key.
pub(crate) fn listing(connection: &Connection, key: &str, input: i64) -> Result<Option<Vec<u8>>> {
    Ok(connection
        .prepare_cached(
            "SELECT l.body FROM memos m JOIN memo_listings l ON l.memo = m.seq WHERE m.key = ?1 AND l.input = ?2",
        )?
        .query_row(params![key, input], |row| row.get(0))
        .optional()?)
}

/// Notes that the results of a key have gone; the first reason counts. Its listings go.
pub(crate) fn mark_gone(transaction: &Transaction<'_>, key: &str, why: GoneWhy, now: i64) -> Result<()> {
    let why = i64::from(why == GoneWhy::Lost);
    let marked = transaction
        .prepare_cached(
            "UPDATE memos SET gone = (SELECT coalesce(max(gone), 0) + 1 FROM memos WHERE gone IS NOT NULL),
                 gone_at = ?2, gone_why = ?3 WHERE key = ?1 AND gone IS NULL",
        )?
        .execute(params![key, now, why])?;
    if marked > 0 {
        transaction
            .prepare_cached("DELETE FROM memo_listings WHERE memo = (SELECT seq FROM memos WHERE key = ?1)")?
            .execute([key])?;
        transaction
            .prepare_cached(
                "DELETE FROM memos WHERE gone <= (SELECT max(gone) FROM memos WHERE gone IS NOT NULL) - ?1",
            )?
            .execute([MAX_GONE])?;
    }
    Ok(())
}
