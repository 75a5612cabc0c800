//! Between wire messages and our own types.

use std::time::{Duration, SystemTime};

use kiln_api::types::{BuildkitVersion, CdiDevice, GcPolicy, WorkerRecord};
use kiln_cache::UsageRecord;
use kiln_engine::Worker;

/// A point in time on the wire.
pub(crate) fn timestamp(time: SystemTime) -> prost_types::Timestamp {
    prost_types::Timestamp::from(time)
}

/// A record of the catalogue on the wire.
pub(crate) fn usage(record: &UsageRecord) -> kiln_api::control::UsageRecord {
    kiln_api::control::UsageRecord {
        id: record.id.to_string(),
        mutable: record.mutable,
        in_use: record.in_use,
        size: record.size,
        parent: String::new(),
        created_at: Some(timestamp(record.created_at)),
        last_used_at: record.last_used_at.map(timestamp),
        usage_count: record.usage_count,
        description: record.description.clone(),
        record_type: record.record_type.as_str().to_owned(),
        shared: record.shared,
        parents: record.parents.iter().map(ToString::to_string).collect(),
    }
}

/// What the worker says of itself.
pub(crate) async fn worker(
    worker: &Worker,
    policies: &[kiln_cache::GcPolicy],
    version: &BuildkitVersion,
) -> WorkerRecord {
    let devices = worker.list_devices().await.into_iter().map(|device| CdiDevice {
        name: device.name,
        auto_allow: device.auto_allow,
        annotations: device.annotations.into_iter().collect(),
        on_demand: false,
    });
    WorkerRecord {
        id: worker.id.clone(),
        labels: worker.labels.clone(),
        platforms: worker.platforms.clone(),
        gc_policy: policies.iter().map(policy).collect(),
        buildkit_version: Some(version.clone()),
        cdi_devices: devices.collect(),
    }
}

fn policy(kiln_cache::GcPolicy(policy): &kiln_cache::GcPolicy) -> GcPolicy {
    GcPolicy {
        all: policy.all,
        keep_duration: policy.keep_duration.map_or(0, |d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX)),
        reserved_space: policy.reserved_space,
        filters: policy.filters.clone(),
        max_used_space: policy.max_used_space,
        min_free_space: policy.min_free_space,
    }
}

/// What the stores have lost.
pub(crate) fn losses(losses: kiln_cache::Losses) -> kiln_api::kiln::Losses {
    let kiln_cache::Losses { snapshots, blobs, records } = losses;
    kiln_api::kiln::Losses { snapshots, blobs, records }
}

/// Nanoseconds of the wire; none if zero or below.
pub(crate) fn duration(nanoseconds: i64) -> Option<Duration> {
    u64::try_from(nanoseconds).ok().filter(|n| *n > 0).map(Duration::from_nanos)
}
