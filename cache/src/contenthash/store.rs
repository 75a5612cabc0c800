//! Trees of received contexts, and answers to requests, as rows.

use kiln_digest::Digest;
use rusqlite::{Connection, OptionalExtension, Transaction, params};

use super::tree::{Entry, Key, Tree};
use crate::{Error, RecordId, Result, db::rows};

const FILE: i64 = 0;
const DIR: i64 = 1;
const DIR_HEADER: i64 = 2;
const SYMLINK: i64 = 3;

/// Rows of one entry: key, kind, digest, link. Of a directory two, the header's key with one more NUL.
type Stored = (Key, i64, Option<[u8; 32]>, Vec<u8>);

/// What of a tree has to be written.
#[derive(Debug, Default)]
pub(super) struct Delta {
    gone: Vec<Key>,
    rows: Vec<Stored>,
}

impl Tree {
    /// Takes what has changed since it was last taken.
    pub(super) fn delta(&mut self) -> Delta {
        let mut delta = Delta::default();
        for key in std::mem::take(&mut self.stale) {
            delta.gone.push(header_key(&key));
            match self.entries.get(&key) {
                None => delta.gone.push(key),
                Some(Entry::File { digest }) => {
                    delta.rows.push((key, FILE, digest.map(|digest| *digest.as_bytes()), Vec::new()));
                }
                Some(Entry::Symlink { digest, target }) => {
                    delta.rows.push((key, SYMLINK, Some(*digest.as_bytes()), target.clone()));
                }
                Some(Entry::Dir { header, contents, .. }) => {
                    delta.gone.pop();
                    delta.rows.push((header_key(&key), DIR_HEADER, Some(*header.as_bytes()), Vec::new()));
                    delta.rows.push((key, DIR, contents.map(|digest| *digest.as_bytes()), Vec::new()));
                }
            }
        }
        delta
    }
}

fn header_key(key: &[u8]) -> Key {
    [key, b"\0"].concat()
}

pub(super) fn write(transaction: &Transaction<'_>, id: &RecordId, delta: &Delta) -> Result<()> {
    let Some(seq) = rows::seq_of(transaction, id)? else { return Ok(()) };
    let mut delete =
        transaction.prepare_cached("DELETE FROM content_entries WHERE record = ?1 AND path = ?2")?;
    for key in &delta.gone {
        delete.execute(params![seq, key])?;
    }
    let mut insert = transaction.prepare_cached(
        "INSERT INTO content_entries (record, path, kind, digest, link) VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT (record, path) DO UPDATE SET kind = ?3, digest = ?4, link = ?5",
    )?;
    for (key, kind, digest, link) in &delta.rows {
        insert.execute(params![seq, key, kind, digest.as_ref().map(<[u8; 32]>::as_slice), link])?;
    }
    Ok(())
}

/// Drops all that is stored of a record's content.
pub(super) fn clear(transaction: &Transaction<'_>, id: &RecordId) -> Result<()> {
    let Some(seq) = rows::seq_of(transaction, id)? else { return Ok(()) };
    transaction.prepare_cached("DELETE FROM content_entries WHERE record = ?1")?.execute([seq])?;
    transaction.prepare_cached("DELETE FROM content_answers WHERE record = ?1")?.execute([seq])?;
    Ok(())
}

/// The stored tree of a received context, complete; `None` when nothing is stored.
pub(super) fn read(connection: &Connection, id: &RecordId) -> Result<Option<Tree>> {
    let Some(seq) = rows::seq_of(connection, id)? else { return Ok(None) };
    let damaged = || Error::damaged(id.as_str(), "content checksums");
    let mut tree = Tree::default();
    let mut statement = connection.prepare_cached(
        "SELECT path, kind, digest, link FROM content_entries WHERE record = ?1 ORDER BY path",
    )?;
    let mut found = statement.query([seq])?;
    while let Some(row) = found.next()? {
        let mut key: Key = row.get(0)?;
        let digest = match row.get::<_, Option<Vec<u8>>>(2)? {
            Some(bytes) => Some(Digest::from_bytes(bytes.try_into().map_err(|_| damaged())?)),
            None => None,
        };
        let entry = match row.get::<_, i64>(1)? {
            FILE => Entry::File { digest },
            SYMLINK => Entry::Symlink { digest: digest.ok_or_else(damaged)?, target: row.get(3)? },
            // Its header is the next row.
            DIR => Entry::Dir { header: Digest::of(""), contents: digest, listed: true },
            DIR_HEADER => {
                key.pop();
                match tree.entries.get_mut(&key) {
                    Some(Entry::Dir { header, .. }) => *header = digest.ok_or_else(damaged)?,
                    _ => return Err(damaged()),
                }
                continue;
            }
            _ => return Err(damaged()),
        };
        tree.entries.insert(key, entry);
    }
    Ok((!tree.entries.is_empty()).then_some(tree))
}

pub(super) fn answer(connection: &Connection, id: &RecordId, request: &[u8]) -> Result<Option<Digest>> {
    let found: Option<String> = connection
        .prepare_cached(
            "SELECT a.digest FROM content_answers a JOIN records r ON r.seq = a.record
             WHERE r.id = ?1 AND a.request = ?2",
        )?
        .query_row(params![id.as_str(), request], |row| row.get(0))
        .optional()?;
    Ok(found.and_then(|text| text.parse().ok()))
}

pub(super) fn set_answer(
    transaction: &Transaction<'_>,
    id: &RecordId,
    request: &[u8],
    digest: &Digest,
) -> Result<()> {
    let Some(seq) = rows::seq_of(transaction, id)? else { return Ok(()) };
    transaction
        .prepare_cached(
            "INSERT OR REPLACE INTO content_answers (record, request, digest) VALUES (?1, ?2, ?3)",
        )?
        .execute(params![seq, request, digest.to_string()])?;
    Ok(())
}
