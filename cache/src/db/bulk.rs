//! Many records with four statements, instead of four for each.

use std::collections::HashMap;

use rusqlite::Connection;

use super::rows::{COLUMNS, RecordRow, blob, read, seq_of};
use crate::{RecordId, Result};

/// The record of this id and everything below it.
const CHAIN: &str = "WITH RECURSIVE up (seq) AS (SELECT seq FROM records WHERE id = ?1
    UNION SELECT p.parent FROM parents p JOIN up ON p.record = up.seq)";
/// Every record.
const ALL: &str = "WITH up (seq) AS (SELECT seq FROM records WHERE ?1 IS NULL)";

/// Some of the records after a number.
const PAGE: &str =
    "WITH up (seq) AS (SELECT seq FROM records WHERE seq > CAST(?1 AS INTEGER) ORDER BY seq LIMIT 256)";

/// The next records after `seq`, oldest first, and the number of the last one; none when there are no more.
pub(crate) fn page(connection: &Connection, seq: i64) -> Result<Option<(i64, Vec<RecordRow>)>> {
    let rows = select(connection, PAGE, Some(&seq.to_string()))?;
    let Some(last) = rows.last() else { return Ok(None) };
    Ok(seq_of(connection, &last.id)?.map(|seq| (seq, rows)))
}

/// The records of these numbers, which are a list in JSON.
const LISTED: &str = "WITH up (seq) AS (SELECT value FROM json_each(?1))";

/// The records of these numbers that are there, oldest first.
pub(crate) fn listed(connection: &Connection, seqs: &[i64]) -> Result<Vec<RecordRow>> {
    select(connection, LISTED, Some(&format!("{seqs:?}")))
}

/// A record and everything below it; empty when it is not there.
pub(crate) fn chain(connection: &Connection, id: &RecordId) -> Result<HashMap<RecordId, RecordRow>> {
    Ok(select(connection, CHAIN, Some(id.as_str()))?.into_iter().map(|row| (row.id.clone(), row)).collect())
}

/// Every record, oldest first.
pub(crate) fn all(connection: &Connection) -> Result<Vec<RecordRow>> {
    select(connection, ALL, None)
}

fn select(connection: &Connection, with: &str, id: Option<&str>) -> Result<Vec<RecordRow>> {
    let mut found: Vec<RecordRow> = Vec::new();
    let mut places: HashMap<i64, usize> = HashMap::new();
    let sql = format!("{with} SELECT {COLUMNS} FROM records WHERE seq IN (SELECT seq FROM up) ORDER BY seq");
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query([id])?;
    while let Some(row) = rows.next()? {
        let (seq, record) = read(row)?;
        places.insert(seq, found.len());
        found.push(record);
    }
    // Which ones these are is found out once.
    let listed = format!("{:?}", places.keys().collect::<Vec<_>>());
    let (with, id) = if with == ALL { (ALL, None) } else { (LISTED, Some(listed.as_str())) };
    let sql = format!(
        "{with} SELECT p.record, p.position, p.parent FROM up CROSS JOIN parents p ON p.record = up.seq
             ORDER BY p.record, p.position"
    );
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query([id])?;
    while let Some(row) = rows.next()? {
        // What is below a record is always among those that were found.
        let parent = places.get(&row.get(2)?).and_then(|&place| found.get(place)).map(|row| row.id.clone());
        let record = places.get(&row.get(0)?).and_then(|&place| found.get_mut(place));
        if let (Some(record), Some(parent)) = (record, parent) {
            record.parents.push((row.get(1)?, parent));
        }
    }
    let sql = format!(
        "{with} SELECT b.descriptor, b.diff_id, b.source, b.record FROM up
             CROSS JOIN layer_blobs b ON b.record = up.seq ORDER BY b.record, b.rank, b.digest"
    );
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query([id])?;
    while let Some(row) = rows.next()? {
        if let Some(record) = places.get(&row.get(3)?).and_then(|&place| found.get_mut(place)) {
            let blob = blob(&record.id, row)?;
            record.blobs.push(blob);
        }
    }
    let sql = format!(
        "{with} SELECT n.record, n.name FROM up CROSS JOIN record_names n ON n.record = up.seq
             ORDER BY n.record, n.name"
    );
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query([id])?;
    while let Some(row) = rows.next()? {
        if let Some(record) = places.get(&row.get(0)?).and_then(|&place| found.get_mut(place)) {
            record.names.push(row.get(1)?);
        }
    }
    Ok(found)
}
