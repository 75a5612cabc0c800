//! Cache keys, links and results as rows.

use kiln_solver::GoneWhy;
use rusqlite::{Connection, Transaction, params};

use crate::{RecordId, Result, memos};

/// A link between keys without its two ends.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Link {
    pub(crate) input: i64,
    pub(crate) output: i64,
    pub(crate) digest: String,
    /// Empty: none.
    pub(crate) selector: String,
}

/// Whether something was saved under this key, and there is still a use for it.
pub(crate) fn is_known(connection: &Connection, key: &str) -> Result<bool> {
    Ok(connection
        .prepare_cached("SELECT EXISTS (SELECT 1 FROM cache_keys WHERE id = ?1)")?
        .query_row([key], |row| row.get(0))?)
}

/// Makes a key known.
pub(crate) fn add_key(transaction: &Transaction<'_>, key: &str) -> Result<()> {
    transaction.prepare_cached("INSERT OR IGNORE INTO cache_keys (id) VALUES (?1)")?.execute([key])?;
    Ok(())
}

/// Whether a key leads anywhere.
fn leads_on(connection: &Connection, key: &str) -> Result<bool> {
    Ok(connection
        .prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM key_results WHERE key = ?1) OR EXISTS (SELECT 1 FROM key_links WHERE key = ?1)",
        )?
        .query_row([key], |row| row.get(0))?)
}

/// The results of a key: record id (empty for the empty result) and creation time in nanoseconds, newest first.
pub(crate) fn results(connection: &Connection, key: &str) -> Result<Vec<(String, i64)>> {
    let mut statement = connection.prepare_cached(
        "SELECT record, created_at FROM key_results WHERE key = ?1 ORDER BY created_at DESC, record",
    )?;
    let rows = statement.query_map([key], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Keys that hold this record, or the empty result for `""`.
pub(crate) fn keys_of(connection: &Connection, record: &str) -> Result<Vec<String>> {
    let mut statement =
        connection.prepare_cached("SELECT key FROM key_results WHERE record = ?1 AND record <> ''")?;
    let rows = statement.query_map([record], |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Where a link leads.
pub(crate) fn targets(connection: &Connection, key: &str, link: &Link) -> Result<Vec<String>> {
    let mut statement = connection.prepare_cached(
        "SELECT target FROM key_links
         WHERE key = ?1 AND input = ?2 AND digest = ?3 AND output = ?4 AND selector = ?5 ORDER BY target",
    )?;
    let rows = statement
        .query_map(params![key, link.input, link.digest, link.output, link.selector], |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The links that lead to a key, and where each comes from.
pub(crate) fn sources(connection: &Connection, target: &str) -> Result<Vec<(String, Link)>> {
    let mut statement = connection.prepare_cached(
        "SELECT key, input, digest, output, selector FROM key_links WHERE target = ?1
         ORDER BY input, key, selector, digest, output",
    )?;
    let rows = statement.query_map([target], |row| {
        let (input, digest) = (row.get(1)?, row.get(2)?);
        Ok((row.get(0)?, Link { input, digest, output: row.get(3)?, selector: row.get(4)? }))
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The other keys without inputs that share a result with this one.
pub(crate) fn root_siblings(connection: &Connection, key: &str) -> Result<Vec<String>> {
    let mut statement = connection.prepare_cached(
        "SELECT DISTINCT other.key FROM key_results AS own JOIN key_results AS other USING (record)
         WHERE own.key = ?1 AND own.record <> '' AND other.key <> ?1
           AND NOT EXISTS (SELECT 1 FROM key_links WHERE target = other.key) ORDER BY other.key",
    )?;
    let rows = statement.query_map([key], |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Adds a link; one that is there stays.
pub(crate) fn add_link(transaction: &Transaction<'_>, key: &str, link: &Link, target: &str) -> Result<()> {
    transaction
        .prepare_cached(
            "INSERT OR IGNORE INTO key_links (key, input, digest, output, selector, target) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute(params![key, link.input, link.digest, link.output, link.selector, target])?;
    Ok(())
}

/// Adds a result; one that is there gets the new time.
pub(crate) fn add_result(
    transaction: &Transaction<'_>,
    key: &str,
    record: &str,
    created_at: i64,
) -> Result<()> {
    transaction
        .prepare_cached(
            "INSERT INTO key_results (key, record, created_at) VALUES (?1, ?2, ?3)
             ON CONFLICT (key, record) DO UPDATE SET created_at = max(created_at, ?3)",
        )?
        .execute(params![key, record, created_at])?;
    Ok(())
}

/// Removes a record from all keys, and keys that lead nowhere any more.
pub(crate) fn release_results(transaction: &Transaction<'_>, record: &RecordId, why: GoneWhy) -> Result<()> {
    let keys = keys_of(transaction, record.as_str())?;
    for key in keys {
        release_result(transaction, &key, record.as_str())?;
        memos::result_gone(transaction, &key, why)?;
    }
    Ok(())
}

/// Removes one result, and keys that lead nowhere any more.
fn release_result(transaction: &Transaction<'_>, key: &str, record: &str) -> Result<()> {
    transaction
        .prepare_cached("DELETE FROM key_results WHERE key = ?1 AND record = ?2")?
        .execute(params![key, record])?;
    let mut empty = vec![key.to_owned()];
    while let Some(key) = empty.pop() {
        if leads_on(transaction, &key)? {
            continue;
        }
        let above: Vec<String> = {
            let mut statement =
                transaction.prepare_cached("SELECT DISTINCT key FROM key_links WHERE target = ?1")?;
            let rows = statement.query_map([&key], |row| row.get(0))?;
            rows.collect::<Result<_, _>>()?
        };
        transaction.prepare_cached("DELETE FROM key_links WHERE target = ?1")?.execute([&key])?;
        transaction.prepare_cached("DELETE FROM cache_keys WHERE id = ?1")?.execute([&key])?;
        empty.extend(above);
    }
    Ok(())
}

/// Removes keys that held only in an earlier run of the daemon.
pub(crate) fn drop_random(transaction: &Transaction<'_>) -> Result<()> {
    // A range instead of LIKE, which would not use the index: `;` follows `:`.
    transaction.execute("DELETE FROM cache_keys WHERE id >= 'random:' AND id < 'random;'", [])?;
    transaction.execute("DELETE FROM key_results WHERE key >= 'random:' AND key < 'random;'", [])?;
    transaction.execute("DELETE FROM key_links WHERE key >= 'random:' AND key < 'random;'", [])?;
    Ok(())
}
