//! What the tables say of themselves: rows that contradict each other.

use rusqlite::{Connection, Transaction, params};

use crate::Result;

/// Findings of one kind that are listed.
const LISTED: i64 = 1000;
/// Keys that lead nowhere: nothing was saved under them, and nothing stands on them.
const IDLE_KEYS: &str =
    "FROM cache_keys WHERE NOT EXISTS (SELECT 1 FROM key_results r WHERE r.key = cache_keys.id)
    AND NOT EXISTS (SELECT 1 FROM key_links l WHERE l.key = cache_keys.id)";
/// Links to keys that are not known.
const STRAY_LINKS: &str =
    "FROM key_links WHERE NOT EXISTS (SELECT 1 FROM cache_keys k WHERE k.id = key_links.target)";
/// Results whose records are not there.
const STRAY_RESULTS: &str = "FROM key_results WHERE record <> '' AND NOT EXISTS (SELECT 1 FROM records r WHERE r.id = key_results.record)";

/// What the database itself finds wrong, a line each.
pub(crate) fn damage(connection: &Connection) -> Result<Vec<String>> {
    let mut found = lines(connection, "PRAGMA quick_check(100)")?;
    found.retain(|line| line != "ok");
    let mut statement = connection.prepare("PRAGMA foreign_key_check")?;
    let rows = statement.query_map([], |row| {
        let (table, parent): (String, String) = (row.get(0)?, row.get(2)?);
        let row: Option<i64> = row.get(1)?;
        Ok(format!("row {} of {table} names a row of {parent} that is not there", row.unwrap_or(0)))
    })?;
    for row in rows.take(usize::try_from(LISTED).unwrap_or_default()) {
        found.push(row?);
    }
    Ok(found)
}

/// Bytes and inodes.
pub(crate) type Sum = (i64, i64);

/// The ledger where it is not the sum of what it is of: what it says, and what it should.
pub(crate) fn wrong_ledger(connection: &Connection) -> Result<Option<(Sum, Sum)>> {
    let says = super::ledger(connection)?;
    let is = connection.query_row(
        "SELECT coalesce(sum(size), 0), coalesce(sum(inodes), 0) FROM records",
        [],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    Ok((says != is).then_some((says, is)))
}

/// Adds the ledger up again.
pub(crate) fn mend_ledger(transaction: &Transaction<'_>) -> Result<()> {
    transaction.execute_batch(
        "UPDATE meta SET value = (SELECT coalesce(sum(size), 0) FROM records) WHERE key = 'bytes';
         UPDATE meta SET value = (SELECT coalesce(sum(inodes), 0) FROM records) WHERE key = 'inodes';",
    )?;
    Ok(())
}

/// Keys with results whose records are not there: key and record.
pub(crate) fn stray_results(connection: &Connection) -> Result<Vec<(String, String)>> {
    let mut statement = connection.prepare(&format!("SELECT key, record {STRAY_RESULTS} LIMIT {LISTED}"))?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Keys that links lead to, and that are not known.
pub(crate) fn stray_links(connection: &Connection) -> Result<Vec<String>> {
    lines(connection, &format!("SELECT DISTINCT target {STRAY_LINKS} LIMIT {LISTED}"))
}

/// Keys that lead nowhere.
pub(crate) fn idle_keys(connection: &Connection) -> Result<Vec<String>> {
    lines(connection, &format!("SELECT id {IDLE_KEYS} LIMIT {LISTED}"))
}

/// Removes what the three above find.
pub(crate) fn drop_strays(transaction: &Transaction<'_>) -> Result<()> {
    transaction.execute(&format!("DELETE {STRAY_RESULTS}"), [])?;
    transaction.execute(&format!("DELETE {STRAY_LINKS}"), [])?;
    // A key may have led to nothing but one that goes.
    while transaction.execute(&format!("DELETE {IDLE_KEYS}"), [])? > 0 {
        transaction.execute(&format!("DELETE {STRAY_LINKS}"), [])?;
    }
    Ok(())
}

/// A lease on a blob: owner, digest, and whether it has ended.
pub(crate) fn leases(connection: &Connection, now: i64) -> Result<Vec<(String, String, bool)>> {
    let mut statement = connection.prepare(
        "SELECT owner, digest, expires IS NOT NULL AND expires <= ?1 FROM blob_leases ORDER BY owner, digest",
    )?;
    let rows = statement.query_map([now], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Ends one lease.
pub(crate) fn drop_lease(transaction: &Transaction<'_>, owner: &str, digest: &str) -> Result<()> {
    transaction
        .prepare_cached("DELETE FROM blob_leases WHERE owner = ?1 AND digest = ?2")?
        .execute(params![owner, digest])?;
    Ok(())
}

fn lines(connection: &Connection, sql: &str) -> Result<Vec<String>> {
    let mut statement = connection.prepare(sql)?;
    let rows = statement.query_map([], |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}
