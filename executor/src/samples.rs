//! What a step uses of the machine, in the shape that provenance has it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Serialize, Serializer};

/// The time between the first samples.
const INTERVAL: Duration = Duration::from_secs(2);
/// At this many samples every second one is given up, and the time between them doubles.
const MOST: usize = 20;

/// What a step used, over time; the last one is from its end.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Samples {
    /// Oldest first, twenty at the most.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub samples: Vec<Sample>,
}

/// What a step had used by a point in time. What the machine does not count is not there.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "groups of counters, each described at its type")]
pub struct Sample {
    #[serde(serialize_with = "timestamp")]
    pub timestamp: SystemTime,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_stat: Option<CpuStat>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_stat: Option<MemoryStat>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io_stat: Option<IoStat>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids_stat: Option<PidsStat>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub net_stat: Option<NetStat>,
}

impl Sample {
    /// One that tells nothing yet.
    pub fn at(timestamp: SystemTime) -> Self {
        Self { timestamp, cpu_stat: None, memory_stat: None, io_stat: None, pids_stat: None, net_stat: None }
    }
}

/// Processor time, in nanoseconds, and how often a limit held it up.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "counters by the kernel's names")]
pub struct CpuStat {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage_nanos: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_nanos: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_nanos: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nr_periods: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nr_throttled: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub throttled_nanos: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pressure: Option<Pressure>,
}

/// Memory, in bytes, and what became of its limits.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "counters by the kernel's names")]
pub struct MemoryStat {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub anon: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel_stack: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub page_tables: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sock: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vmalloc: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shmem: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file_mapped: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file_dirty: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file_writeback: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slab: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pgscan: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pgsteal: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pgfault: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pgmajfault: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak: Option<u64>,
    #[serde(skip_serializing_if = "is_zero")]
    pub low_events: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub high_events: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub max_events: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub oom_events: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub oom_kill_events: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pressure: Option<Pressure>,
}

/// Traffic with block devices.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "counters by the kernel's names")]
pub struct IoStat {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub write_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub discard_bytes: Option<u64>,
    #[serde(rename = "readIOs", skip_serializing_if = "Option::is_none")]
    pub read_ios: Option<u64>,
    #[serde(rename = "writeIOs", skip_serializing_if = "Option::is_none")]
    pub write_ios: Option<u64>,
    #[serde(rename = "discardIOs", skip_serializing_if = "Option::is_none")]
    pub discard_ios: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pressure: Option<Pressure>,
}

/// Processes.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct PidsStat {
    /// How many there are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current: Option<u64>,
}

/// Traffic through the step's network devices, as the step sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "counters by the kernel's names")]
pub struct NetStat {
    #[serde(skip_serializing_if = "is_zero")]
    pub rx_bytes: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub rx_packets: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub rx_errors: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub rx_dropped: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub tx_bytes: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub tx_packets: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub tx_errors: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub tx_dropped: u64,
}

/// How much of the time some, or all, processes waited for a resource.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Pressure {
    /// At least one.
    pub some: Option<PressureValues>,
    /// All of them.
    pub full: Option<PressureValues>,
}

/// Averages in percent over so many seconds, and the sum in microseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[expect(missing_docs, reason = "counters by the kernel's names")]
pub struct PressureValues {
    pub avg10: Option<f64>,
    pub avg60: Option<f64>,
    pub avg300: Option<f64>,
    pub total: Option<u64>,
}

/// Samples as they come in: bounded, however long a step takes.
#[derive(Clone, Debug)]
pub struct Recording {
    samples: Vec<Sample>,
    interval: Duration,
}

impl Default for Recording {
    fn default() -> Self {
        Self { samples: Vec::new(), interval: INTERVAL }
    }
}

impl Recording {
    /// How long to wait before the next sample.
    pub fn interval(&self) -> Duration {
        self.interval
    }

    /// Takes a sample.
    pub fn add(&mut self, sample: Sample) {
        self.samples.push(sample);
        if self.samples.len() >= MOST {
            let mut keep = false;
            self.samples.retain(|_| {
                keep = !keep;
                keep
            });
            self.interval *= 2;
        }
    }

    /// All of it, with the sample from the end if there is one.
    pub fn finish(mut self, last: Option<Sample>) -> Samples {
        self.samples.extend(last);
        Samples { samples: self.samples }
    }
}

impl Samples {
    /// The sums: the sample from the end.
    pub fn last(&self) -> Option<&Sample> {
        self.samples.last()
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants a reference")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// A point in time as RFC 3339 in UTC.
fn timestamp<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    // Counted from 1 March of the year 0, in eras of 400 years: a leap day is the last of its year.
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let march = (5 * day + 2) / 153;
    let day = day - (153 * march + 2) / 5 + 1;
    let month = if march < 10 { march + 3 } else { march - 9 };
    let year = year + era * 400 + u64::from(month <= 2);
    let (hour, minute, second, nanos) = (second / 3600, second / 60 % 60, second % 60, since.subsec_nanos());
    serializer.collect_str(&format_args!(
        "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(seconds: u64) -> Sample {
        Sample { timestamp: UNIX_EPOCH + Duration::new(seconds, 5), ..Sample::at(UNIX_EPOCH) }
    }

    #[test]
    fn the_shape_is_that_of_provenance() {
        let mut sample = sample(951_782_399);
        sample.cpu_stat = Some(CpuStat { usage_nanos: Some(7), ..CpuStat::default() });
        sample.memory_stat = Some(MemoryStat { peak: Some(9), oom_kill_events: 1, ..MemoryStat::default() });
        sample.io_stat = Some(IoStat { read_ios: Some(0), ..IoStat::default() });
        sample.pids_stat = Some(PidsStat { current: Some(1) });
        sample.net_stat = Some(NetStat { rx_bytes: 3, ..NetStat::default() });
        let got = serde_json::to_string(&Recording::default().finish(Some(sample))).unwrap();
        let want = concat!(
            r#"{"samples":[{"timestamp":"2000-02-28T23:59:59.000000005Z","cpuStat":{"usageNanos":7},"#,
            r#""memoryStat":{"peak":9,"oomKillEvents":1},"ioStat":{"readIOs":0},"pidsStat":{"current":1},"#,
            r#""netStat":{"rxBytes":3}}]}"#
        );
        assert_eq!(got, want);
        for (seconds, want) in
            [(0, "1970-01-01T00"), (951_782_400, "2000-02-29T00"), (4_107_542_400, "2100-03-01T00")]
        {
            let got = serde_json::to_string(&self::sample(seconds)).unwrap();
            assert!(got.contains(want), "{got}");
        }
    }

    #[test]
    fn long_steps_have_few_samples() {
        let mut recording = Recording::default();
        let mut now = 0;
        for _ in 0..100 {
            now += recording.interval().as_secs();
            recording.add(sample(now));
            assert!(recording.samples.len() < MOST);
        }
        let samples = recording.clone().finish(Some(sample(now + 1))).samples;
        assert!(samples.len() > MOST / 2 && samples.is_sorted_by_key(|sample| sample.timestamp));
        assert!(recording.interval() > Duration::from_secs(60));
    }
}
