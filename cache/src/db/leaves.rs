//! Records that nothing stands on, for the collector: read a part at a time, so that a catalogue of any size takes the
//! same memory.

use rusqlite::{Connection, params};

use crate::{RecordType, Result};

/// Where the reading of leaves stands.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cursor {
    used: i64,
    seq: i64,
}

/// Which leaves are read.
#[derive(Clone, Debug)]
pub(crate) struct Scope {
    /// Of these types only; of any, if absent.
    pub(crate) types: Option<Vec<RecordType>>,
    /// Last used then or before, in nanoseconds since 1970; never used counts as long ago.
    pub(crate) before: i64,
}

/// The numbers of the next leaves, the least recently used first; moves the cursor behind them.
pub(crate) fn next(
    connection: &Connection,
    scope: &Scope,
    cursor: &mut Cursor,
    most: usize,
) -> Result<Vec<i64>> {
    let types = scope.types.as_ref().map(|types| {
        let names: Vec<String> = types.iter().map(|kind| format!("'{}'", kind.as_str())).collect();
        // `regular` is in no index of types, which would only be another list of all records.
        let indexed = if types.contains(&RecordType::Regular) { "" } else { "AND record_type <> 'regular'" };
        format!("{indexed} AND record_type IN ({})", names.join(", "))
    });
    let sql = format!(
        "SELECT coalesce(last_used_at, 0), seq FROM records
         WHERE coalesce(last_used_at, 0) BETWEEN ?1 AND ?3 AND (coalesce(last_used_at, 0) > ?1 OR seq > ?2) {}
             AND NOT EXISTS (SELECT 1 FROM parents WHERE parent = records.seq)
         ORDER BY coalesce(last_used_at, 0), seq LIMIT ?4",
        types.unwrap_or_default()
    );
    let mut statement = connection.prepare_cached(&sql)?;
    let most = i64::try_from(most).unwrap_or(i64::MAX);
    let mut rows = statement.query(params![cursor.used, cursor.seq, scope.before, most])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        *cursor = Cursor { used: row.get(0)?, seq: row.get(1)? };
        found.push(cursor.seq);
    }
    Ok(found)
}
