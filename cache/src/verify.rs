//! Looking whether a snapshot that is about to be read is still all there.
//!
//! A snapshot that has gone is found by its name. One of which a part has gone would give a wrong result, so the first
//! who reads a record after it was found in the catalogue counts its files and their lengths. What is only looked up is
//! not counted, nor what this run has made itself.

use crate::{Ref, Result};

impl Ref {
    /// From now on its layers are not trusted until they were counted again.
    pub(crate) fn suspect(&self) {
        self.0.state().suspect = true;
    }

    /// Counts the snapshots of its layers that are not trusted. One that is not whole is as good as gone.
    ///
    /// # Errors
    /// [`Error::Lost`](crate::Error::Lost) when a layer cannot be had in another way.
    pub async fn verify(&self) -> Result<()> {
        let (mut suspects, mut snapshots) = (Vec::new(), Vec::new());
        for layer in self.top_down() {
            let state = layer.0.state();
            // What clients fill again and again is compared with what they send each time.
            if !state.suspect || state.borrowed {
                continue;
            }
            if let (Some(snapshot), Some(usage)) = (state.snapshot.clone(), state.usage) {
                suspects.push((layer, usage));
                snapshots.push(snapshot);
            }
        }
        if suspects.is_empty() {
            return Ok(());
        }
        let now = self.0.inner().snapshotter().usages(snapshots.clone()).await?;
        for (((layer, usage), now), snapshot) in suspects.into_iter().zip(now).zip(snapshots) {
            if now.is_some_and(|now| usage.is_still(&now)) {
                layer.0.state().suspect = false;
            } else {
                self.gone_from_store(&snapshot).await?;
            }
        }
        Ok(())
    }
}
