//! The tables, version by version.

use std::path::Path;

use rusqlite::{Connection, TransactionBehavior};

use crate::{Error, Result};

/// Step `i` takes a database of version `i` to version `i + 1`. Released steps never change.
const MIGRATIONS: &[&str] = &[V1, V2, V3];

const V1: &str = "
-- Small facts: boot id, clean shutdown, checkpoint, and what other parts of the engine keep by name.
CREATE TABLE meta (
    key TEXT PRIMARY KEY,
    value NOT NULL
) WITHOUT ROWID;

INSERT INTO meta (key, value) VALUES ('epoch', 1), ('synced', 0);

-- kind: 0 layer, 1 merge, 2 diff, 3 diff found by comparing, which is a layer of its own.
-- snapshot: NULL when a layer is not unpacked, and for merge and diff.
-- size and inodes: NULL when not measured. dirty: a mutable record is being written to.
-- changed: the epoch in which its data was last written; epochs up to meta.synced are safe against a power loss.
-- Times are nanoseconds since 1970, UTC.
CREATE TABLE records (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    kind INTEGER NOT NULL,
    mutable INTEGER NOT NULL,
    dirty INTEGER NOT NULL DEFAULT 0,
    snapshot TEXT,
    size INTEGER,
    inodes INTEGER,
    description TEXT NOT NULL,
    record_type TEXT NOT NULL,
    retain INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    last_used_at INTEGER,
    usage_count INTEGER NOT NULL DEFAULT 0,
    changed INTEGER NOT NULL
);
CREATE INDEX records_by_changed ON records (changed);
CREATE INDEX records_by_snapshot ON records (snapshot) WHERE snapshot IS NOT NULL;

-- Layer: at most position 0. Merge: bottom first. Diff: 0 lower (may be absent), 1 upper (may be absent).
CREATE TABLE parents (
    record INTEGER NOT NULL REFERENCES records (seq) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    parent INTEGER NOT NULL REFERENCES records (seq) ON DELETE RESTRICT,
    PRIMARY KEY (record, position)
) WITHOUT ROWID;
CREATE INDEX parents_by_parent ON parents (parent);

-- A layer's blobs: several compressions of one tar. rank 0 is the one it was made from.
CREATE TABLE layer_blobs (
    record INTEGER NOT NULL REFERENCES records (seq) ON DELETE CASCADE,
    digest TEXT NOT NULL,
    rank INTEGER NOT NULL,
    size INTEGER NOT NULL,
    diff_id TEXT NOT NULL,
    source TEXT NOT NULL,
    descriptor TEXT NOT NULL,
    PRIMARY KEY (record, digest)
) WITHOUT ROWID;
CREATE INDEX layer_blobs_by_digest ON layer_blobs (digest);
CREATE INDEX layer_blobs_by_diff_id ON layer_blobs (diff_id);

-- Names under which records are found again: cache mounts, local sources, git and http sources.
CREATE TABLE record_names (
    name TEXT NOT NULL,
    record INTEGER NOT NULL REFERENCES records (seq) ON DELETE CASCADE,
    PRIMARY KEY (name, record)
) WITHOUT ROWID;
CREATE INDEX record_names_by_record ON record_names (record);

-- Cache keys under which something was saved. Content keys are only the source of links.
CREATE TABLE cache_keys (
    id TEXT PRIMARY KEY
) WITHOUT ROWID;

-- Results of cache keys. record: the id of a record, or '' for the empty result, which always exists.
CREATE TABLE key_results (
    key TEXT NOT NULL,
    record TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (key, record)
) WITHOUT ROWID;
CREATE INDEX key_results_by_record ON key_results (record) WHERE record <> '';

-- From an input's key to the key of what consumes it.
CREATE TABLE key_links (
    key TEXT NOT NULL,
    input INTEGER NOT NULL,
    digest TEXT NOT NULL,
    output INTEGER NOT NULL,
    selector TEXT NOT NULL,
    target TEXT NOT NULL,
    PRIMARY KEY (key, input, digest, output, selector, target)
) WITHOUT ROWID;
CREATE INDEX key_links_by_target ON key_links (target);

-- What results were made of, to tell why a later step misses. name, kin, digest and base are hashes to find them by:
-- of the vertex's name, of what it is a version of, of its op digest, of the key of its first input.
-- gone: its results have gone; a growing number, with time and reason (0 pruned, 1 lost).
CREATE TABLE memos (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT NOT NULL UNIQUE,
    output INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    gone INTEGER,
    gone_at INTEGER,
    gone_why INTEGER,
    name INTEGER,
    kin INTEGER,
    digest INTEGER,
    base INTEGER,
    body BLOB NOT NULL
);
CREATE INDEX memos_by_name ON memos (name) WHERE name IS NOT NULL;
CREATE INDEX memos_by_kin ON memos (kin) WHERE kin IS NOT NULL;
CREATE INDEX memos_by_digest ON memos (digest) WHERE digest IS NOT NULL;
CREATE INDEX memos_by_base ON memos (base) WHERE base IS NOT NULL;
CREATE INDEX memos_by_gone ON memos (gone) WHERE gone IS NOT NULL;

-- What of an input's content counted, file by file.
CREATE TABLE memo_listings (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    memo INTEGER NOT NULL REFERENCES memos (seq) ON DELETE CASCADE,
    input INTEGER NOT NULL,
    body BLOB NOT NULL
);
CREATE INDEX memo_listings_by_memo ON memo_listings (memo);

-- Content checksums of a record's tree, path components separated by NUL.
CREATE TABLE content_entries (
    record INTEGER NOT NULL REFERENCES records (seq) ON DELETE CASCADE,
    path BLOB NOT NULL,
    kind INTEGER NOT NULL,
    digest BLOB,
    link TEXT NOT NULL,
    PRIMARY KEY (record, path)
) WITHOUT ROWID;

-- Answers to whole content requests, valid as long as the record does not change.
CREATE TABLE content_answers (
    record INTEGER NOT NULL REFERENCES records (seq) ON DELETE CASCADE,
    request BLOB NOT NULL,
    digest TEXT NOT NULL,
    PRIMARY KEY (record, request)
) WITHOUT ROWID;

-- Blobs that are no layers (manifests, configs, logs) and who wants them. expires: NULL means until released.
CREATE TABLE blob_leases (
    owner TEXT NOT NULL,
    digest TEXT NOT NULL,
    expires INTEGER,
    PRIMARY KEY (owner, digest)
) WITHOUT ROWID;
CREATE INDEX blob_leases_by_digest ON blob_leases (digest);
";

const V2: &str = "
-- Sum of the lengths of a snapshot's files: tells whether all of it is there. NULL when not measured.
ALTER TABLE records ADD COLUMN length INTEGER;

-- What was being written when the daemon ended, so that the next start need not look at every record.
CREATE INDEX records_in_writing ON records (seq) WHERE mutable = 1 AND dirty = 1;

-- For the collector: the least used first, or those of some types.
CREATE INDEX records_by_use ON records (coalesce(last_used_at, 0));
CREATE INDEX records_by_type ON records (record_type) WHERE record_type <> 'regular';

-- The ledger: what the snapshots of all records take.
INSERT INTO meta (key, value) SELECT 'bytes', coalesce(sum(size), 0) FROM records;
INSERT INTO meta (key, value) SELECT 'inodes', coalesce(sum(inodes), 0) FROM records;
CREATE TRIGGER ledger_add AFTER INSERT ON records WHEN new.size IS NOT NULL BEGIN
    UPDATE meta SET value = value + new.size WHERE key = 'bytes';
    UPDATE meta SET value = value + coalesce(new.inodes, 0) WHERE key = 'inodes';
END;
CREATE TRIGGER ledger_change AFTER UPDATE OF size, inodes ON records BEGIN
    UPDATE meta SET value = value + coalesce(new.size, 0) - coalesce(old.size, 0) WHERE key = 'bytes';
    UPDATE meta SET value = value + coalesce(new.inodes, 0) - coalesce(old.inodes, 0) WHERE key = 'inodes';
END;
CREATE TRIGGER ledger_remove AFTER DELETE ON records WHEN old.size IS NOT NULL BEGIN
    UPDATE meta SET value = value - old.size WHERE key = 'bytes';
    UPDATE meta SET value = value - coalesce(old.inodes, 0) WHERE key = 'inodes';
END;
";

const V3: &str = "
-- Builds that have ended. body is its writer's; blobs of a build are leased by `build ` and its id.
CREATE TABLE builds (
    id TEXT PRIMARY KEY,
    created_at INTEGER NOT NULL,
    completed_at INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    pinned INTEGER NOT NULL,
    body BLOB NOT NULL
);
CREATE INDEX builds_by_start ON builds (created_at);
CREATE INDEX builds_by_end ON builds (completed_at) WHERE pinned = 0;
";

/// Brings the database to the newest version; refuses one from the future.
pub(super) fn migrate(connection: &mut Connection, path: &Path) -> Result<()> {
    let known = u32::try_from(MIGRATIONS.len()).unwrap_or(u32::MAX);
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let found: u32 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if found > known {
        return Err(Error::NewerFormat { path: path.to_owned(), found, known });
    }
    for step in MIGRATIONS.iter().skip(found as usize) {
        transaction.execute_batch(step)?;
    }
    if found < known {
        transaction.pragma_update(None, "user_version", known)?;
    }
    transaction.commit()?;
    Ok(())
}

/// Looks at the top of every table, so that a damaged one shows at the start.
pub(super) fn touch(connection: &Connection) -> Result<()> {
    let mut statement = connection.prepare("SELECT name FROM sqlite_master WHERE type = 'table'")?;
    let tables: Vec<String> = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    for table in tables {
        connection.query_row(&format!("SELECT EXISTS (SELECT 1 FROM \"{table}\")"), [], |_| Ok(()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_format_is_refused_and_left_alone() {
        let mut connection = Connection::open_in_memory().unwrap();
        connection.pragma_update(None, "user_version", 99).unwrap();
        let error = migrate(&mut connection, Path::new("/x/catalogue.db")).unwrap_err();
        assert!(matches!(error, Error::NewerFormat { found: 99, .. }), "{error}");
        let tables: i64 =
            connection.query_row("SELECT count(*) FROM sqlite_master", [], |r| r.get(0)).unwrap();
        assert_eq!(tables, 0);
    }

    #[test]
    fn migrating_twice_changes_nothing() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection, Path::new("")).unwrap();
        migrate(&mut connection, Path::new("")).unwrap();
        let version: u32 = connection.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
        assert_eq!(version as usize, MIGRATIONS.len());
    }
}
