//! Caches that jobs of a simulation have imported: what others once made, whole or in parts, some of it not to be had.

use std::sync::Arc;

use futures::FutureExt as _;

use crate::driver::{find, find_everywhere};
use crate::error::{Error, OpError, Result};
use crate::keys::{Origin, RecordId};
use crate::scheduler::{Found, JobId, Query};
use crate::testing::memory_keys::MemoryKeys;
use crate::testing::memory_source::MemorySource;
use crate::testing::oracle::Oracle;
use crate::testing::script::Value;
use crate::testing::simulation::Simulation;
use crate::vertex::{Edge, OutputIndex, VertexIndex};

/// Added to the number of a session, so that caches come from sessions of their own.
const ELSEWHERE: usize = 1000;
/// How rarely an imported cache answers when it is slow, in percent.
const SLOW_PACE: u64 = 20;

impl Simulation {
    /// Some jobs import caches of what is planned to be built, by them or by others.
    pub(super) fn import(&mut self) {
        let jobs: Vec<JobId> = self.jobs.keys().copied().collect();
        for job in jobs {
            if !self.rng.chance(self.disturbances.imports) {
                continue;
            }
            for _ in 0..1 + self.rng.below(2) {
                let cache = self.cache();
                if let Some(client) = self.jobs.get_mut(&job) {
                    client.caches.push(cache);
                }
            }
            self.offer_caches(job);
        }
    }

    /// Lets a job look into the caches of its client.
    pub(super) fn offer_caches(&mut self, job: JobId) {
        let Some(watched) = self.state.jobs.get_mut(&job) else { return };
        for cache in self.jobs.get(&job).into_iter().flat_map(|client| &client.caches) {
            watched.imports.get_or_insert_default().add(cache.clone());
        }
    }

    /// Makes a cache out of a few vertices of one of the planned graphs, with holes in it. One that could not be opened
    /// is one without anything in it.
    fn cache(&mut self) -> Arc<MemorySource> {
        let keys = Arc::new(MemoryKeys::new());
        let next = self.rng.below(self.planned.len());
        let spec = Arc::clone(&self.planned[next].1);
        if let Ok(graph) = spec.graph(ELSEWHERE, &Arc::default())
            && !self.rng.chance(10)
        {
            for _ in 0..1 + self.rng.below(3) {
                let vertex = VertexIndex(self.rng.below(graph.vertices().len()) as u32);
                // What fails is not in it.
                let _ = Oracle::new(&keys, &graph).complete(Edge { vertex, output: OutputIndex(0) });
            }
            let (dropped, broken) = (10 * self.rng.below(6) as u64, 10 * self.rng.below(3) as u64);
            // No export has results of sources.
            keys.drop_results(|result| Value::text(result).ends_with("()") || self.rng.chance(dropped));
            keys.break_results(|_| self.rng.chance(broken));
        }
        self.last_id += 1;
        Arc::new(MemorySource::new(&format!("cache{}", self.last_id), keys))
    }

    /// Whether a look-up has to wait for a cache.
    pub(super) fn is_held_up(&mut self, query: usize) -> bool {
        self.disturbances.slow > 0
            && !self.state.imports_of(&self.queries[query].jobs).is_empty()
            && !self.rng.chance(SLOW_PACE)
    }

    /// Answers a look-up out of all stores.
    pub(super) fn found(&self, query: &Query) -> Result<Found> {
        let imports = self.state.imports_of(&query.jobs);
        if imports.is_empty() {
            return find(&self.keys, query);
        }
        let found = find_everywhere(&self.keys, &imports, query).now_or_never();
        found.unwrap_or_else(|| Err(Error::keys("look-up", OpError::failed("these caches are all open"))))
    }

    /// The results of imported caches in an answer that can be had.
    pub(super) fn offered(&self, found: &Found) -> Vec<RecordId> {
        let records = found.keys.iter().flat_map(|(_, records)| records);
        let imported = records.filter(|record| matches!(record.origin, Origin::Imported(_)));
        imported.map(|record| record.id.clone()).filter(|record| self.has(record)).collect()
    }

    /// Whether a result can be had, here or in a cache that somebody imports.
    pub(super) fn has(&self, record: &RecordId) -> bool {
        self.keys.has(record)
            || self.jobs.values().flat_map(|client| &client.caches).any(|cache| cache.has(record))
    }
}
