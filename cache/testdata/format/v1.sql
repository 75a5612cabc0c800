-- A catalogue of format 1, as the first program that wrote it left it.

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

PRAGMA foreign_keys = OFF;
INSERT INTO meta (key, value) VALUES ('fact:etag', CAST('"abc"' AS BLOB));
UPDATE meta SET value = 3 WHERE key IN ('epoch', 'synced');
INSERT INTO records (seq, id, kind, mutable, dirty, snapshot, size, inodes, description, record_type, retain, created_at, last_used_at, usage_count, changed) VALUES
    (1, 'base', 0, 0, 0, 'base', 4096, 1, 'pulled from example.org/image:1', 'regular', 0, 1700000000000000000, 1700000001000000000, 2, 1),
    (2, 'top', 0, 0, 0, 'top', 4096, 1, 'mount / from exec make', 'regular', 0, 1700000002000000000, NULL, 0, 2),
    (3, 'merged', 1, 0, 0, NULL, NULL, NULL, 'merge', 'regular', 0, 1700000003000000000, NULL, 0, 2),
    (4, 'mount', 0, 1, 0, 'mount', 4096, 1, 'cached mount /c from exec make', 'exec.cachemount', 1, 1700000004000000000, NULL, 1, 2),
    (5, 'cutoff', 0, 1, 1, 'cutoff', NULL, NULL, 'local source for context', 'source.local', 1, 1700000005000000000, NULL, 1, 2);
INSERT INTO parents (record, position, parent) VALUES (2, 0, 1), (3, 0, 1), (3, 1, 2);
INSERT INTO layer_blobs (record, digest, rank, size, diff_id, source, descriptor) VALUES
    (1, 'sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824', 0, 5, 'sha256:486ea46224d1bb4fb680f34f7c9ad96a8f24ec88be73ea8e5a6c65260e9cb8a7', 'example.org/image:1',
     '{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824","size":5}');
INSERT INTO record_names (name, record) VALUES ('cache-dir:/c', 4), ('local:context', 5);
INSERT INTO cache_keys (id) VALUES ('sha256:f02edd59496c7a3e5d5915a20147c0baa10851f7f0ab990e84dedde430660487'), ('child'), ('random:1');
INSERT INTO key_results (key, record, created_at) VALUES ('sha256:f02edd59496c7a3e5d5915a20147c0baa10851f7f0ab990e84dedde430660487', 'top', 1700000002000000000), ('child', 'merged', 1700000003000000000), ('random:1', 'top', 1);
INSERT INTO key_links (key, input, digest, output, selector, target) VALUES ('sha256:f02edd59496c7a3e5d5915a20147c0baa10851f7f0ab990e84dedde430660487', 0, 'sha256:ddc9e669194254cef019a29d3619a2c16592e5d52e1a81e98b01bd52319149a3', 0, '', 'child');
INSERT INTO memos (seq, key, output, created_at, name, kin, digest, base, body) VALUES (1, 'child', 0, 1700000003000000000, 1, 2, 3, 4, x'00');
INSERT INTO memo_listings (seq, memo, input, body) VALUES (1, 1, 0, x'00');
INSERT INTO content_entries (record, path, kind, digest, link) VALUES (2, CAST('f' AS BLOB), 0, x'2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824', '');
INSERT INTO content_answers (record, request, digest) VALUES (2, x'00', 'sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824');
INSERT INTO blob_leases (owner, digest, expires) VALUES ('history', 'sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824', NULL);
PRAGMA user_version = 1;
