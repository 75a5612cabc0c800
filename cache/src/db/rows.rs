//! Records as rows.

use std::{
    str::FromStr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use kiln_content::Descriptor;
use kiln_digest::Digest;
use kiln_snapshot::{SnapshotId, Usage};
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};

use crate::{
    Error, Result,
    record::{LayerBlob, RecordId, RecordType},
};

/// How a record is made up, as the database says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// One layer on its parent.
    Layer,
    /// The layers of its parents.
    Merge,
    /// Those layers of one parent that the other does not have.
    Diff,
    /// One layer on nothing, found by comparing its parents.
    Compared,
}

impl Kind {
    /// Whether it has a directory of its own.
    pub(crate) fn has_snapshot(self) -> bool {
        matches!(self, Self::Layer | Self::Compared)
    }

    fn code(self) -> i64 {
        match self {
            Self::Layer => 0,
            Self::Merge => 1,
            Self::Diff => 2,
            Self::Compared => 3,
        }
    }
}

/// One row of `records` with its parents and blobs.
#[derive(Clone, Debug)]
pub(crate) struct RecordRow {
    pub(crate) id: RecordId,
    pub(crate) kind: Kind,
    pub(crate) mutable: bool,
    pub(crate) dirty: bool,
    pub(crate) snapshot: Option<SnapshotId>,
    pub(crate) usage: Option<Usage>,
    pub(crate) description: String,
    pub(crate) record_type: RecordType,
    pub(crate) retain: bool,
    pub(crate) created_at: SystemTime,
    pub(crate) last_used_at: Option<SystemTime>,
    pub(crate) usage_count: i64,
    /// With positions, which count for a diff.
    pub(crate) parents: Vec<(i64, RecordId)>,
    pub(crate) blobs: Vec<LayerBlob>,
    pub(crate) names: Vec<String>,
}

pub(crate) fn nanos(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_nanos()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_nanos()).map_or(i64::MIN, |n| -n),
    }
}

pub(crate) fn time(nanos: i64) -> SystemTime {
    let span = Duration::from_nanos(nanos.unsigned_abs());
    if nanos >= 0 { UNIX_EPOCH + span } else { UNIX_EPOCH - span }
}

fn stored(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// Adds a record; its parents must be there. Adding one that is there already changes nothing.
pub(crate) fn insert(transaction: &Transaction<'_>, row: &RecordRow) -> Result<()> {
    let inserted = transaction
        .prepare_cached(
            "INSERT INTO records (id, kind, mutable, dirty, snapshot, size, inodes, description, record_type, retain,
                 created_at, last_used_at, usage_count, length, changed)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14,
                 (SELECT value FROM meta WHERE key = 'epoch')) ON CONFLICT (id) DO NOTHING",
        )?
        .execute(params![
            row.id.as_str(),
            row.kind.code(),
            row.mutable,
            row.dirty,
            row.snapshot.as_ref().map(SnapshotId::as_str),
            row.usage.map(|usage| stored(usage.bytes)),
            row.usage.map(|usage| stored(usage.inodes)),
            row.description,
            row.record_type.as_str(),
            row.retain,
            nanos(row.created_at),
            row.last_used_at.map(nanos),
            row.usage_count,
            row.usage.map(|usage| stored(usage.length)),
        ])?;
    if inserted == 0 {
        return Ok(());
    }
    let seq = transaction.last_insert_rowid();
    for (position, parent) in &row.parents {
        let parent_seq = seq_of(transaction, parent)?
            .ok_or_else(|| Error::damaged(row.id.as_str(), format!("parent `{parent}` is missing")))?;
        transaction
            .prepare_cached("INSERT INTO parents (record, position, parent) VALUES (?1, ?2, ?3)")?
            .execute(params![seq, position, parent_seq])?;
    }
    for (rank, blob) in (0_i64..).zip(&row.blobs) {
        insert_blob(transaction, seq, rank, blob)?;
    }
    for name in &row.names {
        transaction
            .prepare_cached("INSERT OR IGNORE INTO record_names (name, record) VALUES (?1, ?2)")?
            .execute(params![name, seq])?;
    }
    Ok(())
}

fn insert_blob(transaction: &Transaction<'_>, seq: i64, rank: i64, blob: &LayerBlob) -> Result<()> {
    let descriptor = serde_json::to_string(&blob.descriptor)
        .map_err(|error| Error::damaged(blob.descriptor.digest.to_string(), error.to_string()))?;
    transaction
        .prepare_cached(
            "INSERT INTO layer_blobs (record, digest, rank, size, diff_id, source, descriptor)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
             ON CONFLICT (record, digest) DO UPDATE SET
                 source = CASE WHEN excluded.source = '' THEN source ELSE excluded.source END,
                 descriptor = excluded.descriptor",
        )?
        .execute(params![
            seq,
            blob.descriptor.digest.to_string(),
            rank,
            blob.descriptor.size,
            blob.diff_id.to_string(),
            blob.source,
            descriptor,
        ])?;
    Ok(())
}

/// Adds a blob to a record that may not be in the database (then nothing happens).
pub(crate) fn add_blob(transaction: &Transaction<'_>, id: &RecordId, blob: &LayerBlob) -> Result<()> {
    let Some(seq) = seq_of(transaction, id)? else { return Ok(()) };
    let rank: i64 = transaction
        .prepare_cached("SELECT coalesce(max(rank) + 1, 0) FROM layer_blobs WHERE record = ?1")?
        .query_row([seq], |row| row.get(0))?;
    insert_blob(transaction, seq, rank, blob)
}

/// The growing number of a record.
pub(crate) fn seq_of(connection: &Connection, id: &RecordId) -> Result<Option<i64>> {
    Ok(connection
        .prepare_cached("SELECT seq FROM records WHERE id = ?1")?
        .query_row([id.as_str()], |row| row.get(0))
        .optional()?)
}

pub(super) const COLUMNS: &str = "seq, id, kind, mutable, dirty, snapshot, size, inodes, description, record_type, retain, \
                       created_at, last_used_at, usage_count, length";

/// A record by its id.
pub(crate) fn load(connection: &Connection, id: &RecordId) -> Result<Option<RecordRow>> {
    let found = connection
        .prepare_cached(&format!("SELECT {COLUMNS} FROM records WHERE id = ?1"))?
        .query_row([id.as_str()], |row| Ok(read(row)))
        .optional()?;
    let Some(found) = found else { return Ok(None) };
    let (seq, mut row) = found?;
    complete(connection, seq, &mut row)?;
    Ok(Some(row))
}

/// Reads the columns of [`COLUMNS`], by position: looking names up costs more than the values.
pub(super) fn read(row: &Row<'_>) -> Result<(i64, RecordRow)> {
    let id: String = row.get(1)?;
    let kind = match row.get::<_, i64>(2)? {
        0 => Kind::Layer,
        1 => Kind::Merge,
        2 => Kind::Diff,
        3 => Kind::Compared,
        other => return Err(Error::damaged(id, format!("kind {other}"))),
    };
    let snapshot = row
        .get::<_, Option<String>>(5)?
        .map(|text| {
            SnapshotId::from_str(&text).map_err(|error| Error::damaged(id.as_str(), error.to_string()))
        })
        .transpose()?;
    let number = |at: usize| Ok::<_, Error>(row.get::<_, Option<i64>>(at)?.map(|n| n.max(0).unsigned_abs()));
    let usage = match (number(6)?, number(7)?, number(14)?) {
        (Some(bytes), Some(inodes), Some(length)) => Some(Usage { bytes, inodes, length }),
        _ => None,
    };
    let record = RecordRow {
        id: id.parse()?,
        kind,
        mutable: row.get(3)?,
        dirty: row.get(4)?,
        snapshot,
        usage,
        description: row.get(8)?,
        record_type: RecordType::parse(&row.get::<_, String>(9)?),
        retain: row.get(10)?,
        created_at: time(row.get(11)?),
        last_used_at: row.get::<_, Option<i64>>(12)?.map(time),
        usage_count: row.get(13)?,
        parents: Vec::new(),
        blobs: Vec::new(),
        names: Vec::new(),
    };
    Ok((row.get(0)?, record))
}

fn complete(connection: &Connection, seq: i64, record: &mut RecordRow) -> Result<()> {
    let mut parents = connection.prepare_cached(
        "SELECT p.position, r.id FROM parents p JOIN records r ON r.seq = p.parent WHERE p.record = ?1 ORDER BY p.position",
    )?;
    let mut rows = parents.query([seq])?;
    while let Some(row) = rows.next()? {
        record.parents.push((row.get(0)?, row.get::<_, String>(1)?.parse()?));
    }
    let mut blobs = connection.prepare_cached(
        "SELECT descriptor, diff_id, source FROM layer_blobs WHERE record = ?1 ORDER BY rank, digest",
    )?;
    let mut rows = blobs.query([seq])?;
    while let Some(row) = rows.next()? {
        record.blobs.push(blob(&record.id, row)?);
    }
    let mut names =
        connection.prepare_cached("SELECT name FROM record_names WHERE record = ?1 ORDER BY name")?;
    let mut rows = names.query([seq])?;
    while let Some(row) = rows.next()? {
        record.names.push(row.get(0)?);
    }
    Ok(())
}

pub(super) fn blob(id: &RecordId, row: &Row<'_>) -> Result<LayerBlob> {
    let damaged = |what: String| Error::damaged(id.as_str(), what);
    let descriptor: Descriptor =
        serde_json::from_str(&row.get::<_, String>(0)?).map_err(|error| damaged(error.to_string()))?;
    let diff_id = Digest::from_str(&row.get::<_, String>(1)?).map_err(|error| damaged(error.to_string()))?;
    Ok(LayerBlob { descriptor, diff_id, source: row.get(2)? })
}

/// Layer records on `parent` (or on nothing) whose tar has this diff ID.
pub(crate) fn by_diff_id(
    connection: &Connection,
    parent: Option<&RecordId>,
    diff_id: &Digest,
) -> Result<Vec<RecordId>> {
    let mut statement = connection.prepare_cached(
        "SELECT DISTINCT r.id FROM layer_blobs b JOIN records r ON r.seq = b.record
             LEFT JOIN parents p ON p.record = r.seq LEFT JOIN records q ON q.seq = p.parent
         WHERE b.diff_id = ?1 AND r.kind = 0 AND r.mutable = 0 AND q.id IS ?2 ORDER BY r.seq",
    )?;
    ids(statement.query(params![diff_id.to_string(), parent.map(RecordId::as_str)])?)
}

/// Records found by one of their names, newest use first.
pub(crate) fn by_name(connection: &Connection, name: &str) -> Result<Vec<(RecordId, bool, bool)>> {
    let mut statement = connection.prepare_cached(
        "SELECT r.id, r.mutable, r.dirty FROM record_names n JOIN records r ON r.seq = n.record
         WHERE n.name = ?1 ORDER BY coalesce(r.last_used_at, r.created_at) DESC, r.seq DESC",
    )?;
    let mut rows = statement.query([name])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push((row.get::<_, String>(0)?.parse()?, row.get(1)?, row.get(2)?));
    }
    Ok(found)
}

/// Names that are this prefix, which ends in `:`, and the id of a record.
pub(crate) fn names_below(connection: &Connection, prefix: &str) -> Result<Vec<String>> {
    let mut statement = connection.prepare_cached(
        "SELECT DISTINCT name FROM record_names WHERE name >= ?1 AND substr(name, 1, length(?1)) = ?1",
    )?;
    let found = statement.query_map([prefix], |row| row.get::<_, String>(0))?;
    let names: Vec<String> = found.collect::<Result<_, _>>()?;
    Ok(names
        .into_iter()
        .filter(|name| !name.get(prefix.len()..).is_none_or(|rest| rest.contains(':')))
        .collect())
}

fn ids(mut rows: rusqlite::Rows<'_>) -> Result<Vec<RecordId>> {
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(row.get::<_, String>(0)?.parse()?);
    }
    Ok(found)
}

/// What was freed by forgetting a record.
#[derive(Debug, Default)]
pub(crate) struct Forgotten {
    pub(crate) snapshot: Option<SnapshotId>,
    /// Blobs that no row names any more.
    pub(crate) blobs: Vec<Digest>,
}

/// Forgets a record that has no children, with its names, checksums and results. `None`: it has children, or is not there.
pub(crate) fn forget(transaction: &Transaction<'_>, id: &RecordId) -> Result<Option<Forgotten>> {
    let Some(seq) = seq_of(transaction, id)? else { return Ok(None) };
    let children: i64 = transaction
        .prepare_cached("SELECT count(*) FROM parents WHERE parent = ?1")?
        .query_row([seq], |row| row.get(0))?;
    if children > 0 {
        return Ok(None);
    }
    let snapshot = transaction
        .prepare_cached("SELECT snapshot FROM records WHERE seq = ?1")?
        .query_row([seq], |row| row.get::<_, Option<String>>(0))?
        .and_then(|text| SnapshotId::from_str(&text).ok());
    let mut digests = Vec::new();
    {
        let mut statement = transaction.prepare_cached("SELECT digest FROM layer_blobs WHERE record = ?1")?;
        let mut rows = statement.query([seq])?;
        while let Some(row) = rows.next()? {
            digests.extend(Digest::from_str(&row.get::<_, String>(0)?));
        }
    }
    super::keys::release_results(transaction, id, kiln_solver::GoneWhy::Pruned)?;
    transaction.prepare_cached("DELETE FROM records WHERE seq = ?1")?.execute([seq])?;
    let mut blobs = Vec::new();
    for digest in digests {
        if !blob_is_named(transaction, &digest)? {
            blobs.push(digest);
        }
    }
    Ok(Some(Forgotten { snapshot, blobs }))
}

/// Whether any row wants this blob.
pub(crate) fn blob_is_named(connection: &Connection, digest: &Digest) -> Result<bool> {
    Ok(connection
        .prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM layer_blobs WHERE digest = ?1)
                 OR EXISTS (SELECT 1 FROM blob_leases WHERE digest = ?1 AND (expires IS NULL OR expires > ?2))",
        )?
        .query_row(params![digest.to_string(), nanos(SystemTime::now())], |row| row.get(0))?)
}

/// Whether only one row wants this blob.
pub(crate) fn blob_is_of_one(connection: &Connection, digest: &Digest) -> Result<bool> {
    Ok(connection
        .prepare_cached(
            "SELECT (SELECT count(*) FROM layer_blobs WHERE digest = ?1) <= 1
                 AND NOT EXISTS (SELECT 1 FROM blob_leases WHERE digest = ?1 AND (expires IS NULL OR expires > ?2))",
        )?
        .query_row(params![digest.to_string(), nanos(SystemTime::now())], |row| row.get(0))?)
}

/// The size that a blob should have, if it is a layer.
pub(crate) fn blob_size(connection: &Connection, digest: &Digest) -> Result<Option<u64>> {
    let size: Option<i64> = connection
        .prepare_cached("SELECT size FROM layer_blobs WHERE digest = ?1 LIMIT 1")?
        .query_row([digest.to_string()], |row| row.get(0))
        .optional()?;
    Ok(size.map(|size| size.max(0).unsigned_abs()))
}

/// Records directly above `id`.
pub(crate) fn children(connection: &Connection, id: &RecordId) -> Result<Vec<RecordId>> {
    let mut statement = connection.prepare_cached(
        "SELECT DISTINCT r.id FROM parents p JOIN records q ON q.seq = p.parent JOIN records r ON r.seq = p.record
         WHERE q.id = ?1 ORDER BY r.seq",
    )?;
    ids(statement.query([id.as_str()])?)
}

/// Whether a row has this snapshot.
pub(crate) fn snapshot_is_named(connection: &Connection, id: &SnapshotId) -> Result<bool> {
    Ok(connection
        .prepare_cached("SELECT EXISTS (SELECT 1 FROM records WHERE snapshot = ?1)")?
        .query_row([id.as_str()], |row| row.get(0))?)
}

/// Sets or clears a layer's snapshot with its measured size.
pub(crate) fn set_snapshot(
    transaction: &Transaction<'_>,
    id: &RecordId,
    snapshot: Option<&SnapshotId>,
    usage: Option<Usage>,
) -> Result<()> {
    transaction
        .prepare_cached(
            "UPDATE records SET snapshot = ?2, size = ?3, inodes = ?4, length = ?5,
                 changed = (SELECT value FROM meta WHERE key = 'epoch') WHERE id = ?1",
        )?
        .execute(params![
            id.as_str(),
            snapshot.map(SnapshotId::as_str),
            usage.map(|usage| stored(usage.bytes)),
            usage.map(|usage| stored(usage.inodes)),
            usage.map(|usage| stored(usage.length)),
        ])?;
    Ok(())
}

/// Marks a mutable record as being written (its checksums and results are dropped) or as at rest.
pub(crate) fn set_dirty(transaction: &Transaction<'_>, id: &RecordId, dirty: bool) -> Result<()> {
    transaction
        .prepare_cached("UPDATE records SET dirty = ?2 WHERE id = ?1")?
        .execute(params![id.as_str(), dirty])?;
    Ok(())
}

/// Turns a mutable record into an ordinary layer.
pub(crate) fn make_immutable(transaction: &Transaction<'_>, id: &RecordId) -> Result<()> {
    transaction
        .prepare_cached("UPDATE records SET mutable = 0, dirty = 0 WHERE id = ?1")?
        .execute([id.as_str()])?;
    transaction
        .prepare_cached("DELETE FROM record_names WHERE record = (SELECT seq FROM records WHERE id = ?1)")?
        .execute([id.as_str()])?;
    Ok(())
}

/// Keeps a record although no key names it.
pub(crate) fn retain(transaction: &Transaction<'_>, id: &RecordId) -> Result<()> {
    transaction.prepare_cached("UPDATE records SET retain = 1 WHERE id = ?1")?.execute([id.as_str()])?;
    Ok(())
}

/// Drops the answers to content requests: the record is going to change. The entries stay; whoever changes it
/// brings them up to date before it is at rest again.
pub(crate) fn drop_answers(transaction: &Transaction<'_>, id: &RecordId) -> Result<()> {
    let Some(seq) = seq_of(transaction, id)? else { return Ok(()) };
    transaction.prepare_cached("DELETE FROM content_answers WHERE record = ?1")?.execute([seq])?;
    Ok(())
}

/// Counts uses.
pub(crate) fn touch(
    transaction: &Transaction<'_>,
    id: &RecordId,
    times: i64,
    last: SystemTime,
) -> Result<()> {
    transaction
        .prepare_cached("UPDATE records SET usage_count = usage_count + ?2, last_used_at = ?3 WHERE id = ?1")?
        .execute(params![id.as_str(), times, nanos(last)])?;
    Ok(())
}

/// Notes the size of a mutable record.
pub(crate) fn measure(transaction: &Transaction<'_>, id: &RecordId, usage: Option<Usage>) -> Result<()> {
    transaction
        .prepare_cached(
            "UPDATE records SET size = ?2, inodes = ?3, length = ?4, changed = (SELECT value FROM meta WHERE key = 'epoch')
             WHERE id = ?1",
        )?
        .execute(params![
            id.as_str(),
            usage.map(|u| stored(u.bytes)),
            usage.map(|u| stored(u.inodes)),
            usage.map(|u| stored(u.length)),
        ])?;
    Ok(())
}

/// Records whose data was written after the last checkpoint.
pub(crate) fn unsynced(connection: &Connection) -> Result<Vec<RecordId>> {
    let mut statement = connection.prepare(
        "SELECT id FROM records WHERE changed > (SELECT value FROM meta WHERE key = 'synced') ORDER BY seq DESC",
    )?;
    ids(statement.query([])?)
}

/// All received contexts that can still change.
pub(crate) fn contexts(connection: &Connection) -> Result<Vec<RecordId>> {
    let mut statement = connection.prepare(
        "SELECT id FROM records WHERE mutable = 1 AND record_type <> 'exec.cachemount' ORDER BY seq",
    )?;
    ids(statement.query([])?)
}

/// Received contexts that were being written when the daemon ended.
pub(crate) fn cut_off(connection: &Connection) -> Result<Vec<RecordId>> {
    let mut statement = connection.prepare(
        "SELECT id FROM records WHERE mutable = 1 AND dirty = 1 AND record_type <> 'exec.cachemount' ORDER BY seq",
    )?;
    ids(statement.query([])?)
}
