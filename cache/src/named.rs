//! Immutable records that are found again by name, with what the name says of them.

use rusqlite::params;

use crate::db::rows;
use crate::{CacheManager, Error, NoProvider, RecordId, Ref, Result};

/// How many records of one prefix are looked at; older ones are not found.
const MAX_FOUND: i64 = 32;

impl CacheManager {
    /// Immutable records under names that begin with `prefix`, newest first, each with that name. A record whose data
    /// has gone is left out.
    pub async fn named(&self, prefix: &str) -> Result<Vec<(String, Ref)>> {
        // No character sorts behind this one.
        let end = format!("{prefix}{}", char::MAX);
        let rows: Vec<(String, String)> = self.0.db().read(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT n.name, r.id FROM record_names n JOIN records r ON r.seq = n.record
                 WHERE n.name >= ?1 AND n.name < ?2 AND r.mutable = 0 ORDER BY r.seq DESC LIMIT ?3",
            )?;
            let rows =
                statement.query_map(params![prefix, end, MAX_FOUND], |row| Ok((row.get(0)?, row.get(1)?)))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })?;
        let mut found = Vec::new();
        for (name, id) in rows {
            let id: RecordId = id.parse()?;
            let Some(record) = self.get(&id).await? else { continue };
            match record.mount(&NoProvider).await {
                Ok(_) => found.push((name, record)),
                Err(Error::Lost(_) | Error::Fetch { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }
}

impl Ref {
    /// Makes it one of those that [`CacheManager::named`] finds, until it is pruned.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a record that is not published yet.
    pub async fn add_name(&self, name: &str) -> Result<()> {
        if !self.is_published() {
            return Err(Error::Unsupported("naming a record that is pending".into()));
        }
        let (id, name) = (self.id().clone(), name.to_owned());
        self.0
            .inner()
            .db()
            .write(move |transaction| {
                let Some(seq) = rows::seq_of(transaction, &id)? else { return Ok(()) };
                transaction
                    .prepare_cached("INSERT OR IGNORE INTO record_names (name, record) VALUES (?1, ?2)")?
                    .execute(params![name, seq])?;
                Ok(())
            })
            .await
    }
}
