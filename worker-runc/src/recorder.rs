//! What a container uses, looked at from time to time.

use std::sync::{Arc, Mutex, PoisonError};

use kiln_executor::NetworkLease;
use kiln_executor::samples::{Recording, Sample, Samples};
use kiln_runtime::cgroups::ContainerGroups;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

/// Takes samples until it is told to finish, or dropped.
#[derive(Debug)]
pub(crate) struct Recorder {
    source: Arc<Source>,
    recording: Arc<Mutex<Recording>>,
    _looking: AbortOnDropHandle<()>,
}

#[derive(Debug)]
struct Source {
    groups: ContainerGroups,
    network: Arc<dyn NetworkLease>,
}

impl Recorder {
    pub(crate) fn start(
        tasks: &TaskTracker,
        groups: ContainerGroups,
        network: Arc<dyn NetworkLease>,
    ) -> Self {
        let source = Arc::new(Source { groups, network });
        let recording = Arc::new(Mutex::new(Recording::default()));
        let looking = tasks.spawn(look(source.clone(), recording.clone()));
        Self { source, recording, _looking: AbortOnDropHandle::new(looking) }
    }

    /// All samples and one more, from now: before the control groups are removed. Blocks.
    pub(crate) fn finish(self) -> Samples {
        let recording = self.recording.lock().unwrap_or_else(PoisonError::into_inner).clone();
        recording.finish(Some(self.source.sample()).filter(tells_something))
    }
}

async fn look(source: Arc<Source>, recording: Arc<Mutex<Recording>>) {
    loop {
        let interval = recording.lock().unwrap_or_else(PoisonError::into_inner).interval();
        tokio::time::sleep(interval).await;
        let source = source.clone();
        let Ok(sample) = tokio::task::spawn_blocking(move || source.sample()).await else { return };
        if tells_something(&sample) {
            recording.lock().unwrap_or_else(PoisonError::into_inner).add(sample);
        }
    }
}

impl Source {
    fn sample(&self) -> Sample {
        Sample { net_stat: self.network.usage(), ..self.groups.sample() }
    }
}

/// A runtime may have removed the groups by now.
fn tells_something(sample: &Sample) -> bool {
    *sample != Sample::at(sample.timestamp)
}
