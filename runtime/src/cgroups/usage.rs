//! What a group's files count.

use std::fs;
use std::path::Path;

use kiln_executor::samples::{CpuStat, IoStat, MemoryStat, PidsStat, Pressure, PressureValues, Sample};

use super::Hierarchy;

/// Fills in what a group of version 2 counts.
pub(super) fn read_v2(dir: &Path, sample: &mut Sample) {
    let pressure = |name: &str| read(&dir.join(name)).map(|text| pressure(&text));
    if let Some(counts) = Counts::read(&dir.join("cpu.stat")) {
        let nanos = |key: &str| counts.get(key).map(|micros| micros.saturating_mul(1000));
        sample.cpu_stat = Some(CpuStat {
            usage_nanos: nanos("usage_usec"),
            user_nanos: nanos("user_usec"),
            system_nanos: nanos("system_usec"),
            nr_periods: counts.get("nr_periods"),
            nr_throttled: counts.get("nr_throttled"),
            throttled_nanos: nanos("throttled_usec"),
            pressure: pressure("cpu.pressure"),
        });
    }
    if let Some(counts) = Counts::read(&dir.join("memory.stat")) {
        let events = Counts::read(&dir.join("memory.events")).unwrap_or_default();
        let event = |key: &str| events.get(key).unwrap_or_default();
        sample.memory_stat = Some(MemoryStat {
            swap_bytes: number(&dir.join("memory.swap.current")),
            anon: counts.get("anon"),
            file: counts.get("file"),
            kernel: counts.get("kernel"),
            kernel_stack: counts.get("kernel_stack"),
            page_tables: counts.get("pagetables"),
            sock: counts.get("sock"),
            vmalloc: counts.get("vmalloc"),
            shmem: counts.get("shmem"),
            file_mapped: counts.get("file_mapped"),
            file_dirty: counts.get("file_dirty"),
            file_writeback: counts.get("file_writeback"),
            slab: counts.get("slab"),
            pgscan: counts.get("pgscan"),
            pgsteal: counts.get("pgsteal"),
            pgfault: counts.get("pgfault"),
            pgmajfault: counts.get("pgmajfault"),
            peak: number(&dir.join("memory.peak")),
            low_events: event("low"),
            high_events: event("high"),
            max_events: event("max"),
            oom_events: event("oom"),
            oom_kill_events: event("oom_kill"),
            pressure: pressure("memory.pressure"),
        });
    }
    if let Some(text) = read(&dir.join("io.stat")) {
        let sum = |key: &str| Some(sum_of(&text, key));
        sample.io_stat = Some(IoStat {
            read_bytes: sum("rbytes="),
            write_bytes: sum("wbytes="),
            discard_bytes: sum("dbytes="),
            read_ios: sum("rios="),
            write_ios: sum("wios="),
            discard_ios: sum("dios="),
            pressure: pressure("io.pressure"),
        });
    }
    if let Some(current) = number(&dir.join("pids.current")) {
        sample.pids_stat = Some(PidsStat { current: Some(current) });
    }
}

/// Fills in what a group of version 1 counts, under the names of version 2.
pub(super) fn read_v1(hierarchy: &Hierarchy, dir: &Path, sample: &mut Sample) {
    if hierarchy.has("cpuacct") {
        let cpu = sample.cpu_stat.get_or_insert_default();
        cpu.usage_nanos = number(&dir.join("cpuacct.usage"));
        cpu.user_nanos = number(&dir.join("cpuacct.usage_user"));
        cpu.system_nanos = number(&dir.join("cpuacct.usage_sys"));
    }
    if hierarchy.has("cpu")
        && let Some(counts) = Counts::read(&dir.join("cpu.stat"))
    {
        let cpu = sample.cpu_stat.get_or_insert_default();
        cpu.nr_periods = counts.get("nr_periods");
        cpu.nr_throttled = counts.get("nr_throttled");
        cpu.throttled_nanos = counts.get("throttled_time");
    }
    if hierarchy.has("memory")
        && let Some(counts) = Counts::read(&dir.join("memory.stat"))
    {
        let events = Counts::read(&dir.join("memory.oom_control")).unwrap_or_default();
        sample.memory_stat = Some(MemoryStat {
            swap_bytes: counts.get("total_swap"),
            anon: counts.get("total_rss"),
            file: counts.get("total_cache"),
            kernel: number(&dir.join("memory.kmem.usage_in_bytes")),
            shmem: counts.get("total_shmem"),
            file_mapped: counts.get("total_mapped_file"),
            file_dirty: counts.get("total_dirty"),
            file_writeback: counts.get("total_writeback"),
            pgfault: counts.get("total_pgfault"),
            pgmajfault: counts.get("total_pgmajfault"),
            peak: number(&dir.join("memory.max_usage_in_bytes")),
            max_events: number(&dir.join("memory.failcnt")).unwrap_or_default(),
            oom_kill_events: events.get("oom_kill").unwrap_or_default(),
            ..MemoryStat::default()
        });
    }
    if hierarchy.has("blkio") {
        let bytes = read(&dir.join("blkio.throttle.io_service_bytes_recursive")).unwrap_or_default();
        let ios = read(&dir.join("blkio.throttle.io_serviced_recursive")).unwrap_or_default();
        sample.io_stat = Some(IoStat {
            read_bytes: Some(sum_of_v1(&bytes, "Read")),
            write_bytes: Some(sum_of_v1(&bytes, "Write")),
            discard_bytes: Some(sum_of_v1(&bytes, "Discard")),
            read_ios: Some(sum_of_v1(&ios, "Read")),
            write_ios: Some(sum_of_v1(&ios, "Write")),
            discard_ios: Some(sum_of_v1(&ios, "Discard")),
            pressure: None,
        });
    }
    if hierarchy.has("pids") {
        sample.pids_stat = Some(PidsStat { current: number(&dir.join("pids.current")) });
    }
}

/// Lines of a name and a number.
#[derive(Default)]
struct Counts(String);

impl Counts {
    fn read(path: &Path) -> Option<Self> {
        read(path).map(Self)
    }

    fn get(&self, key: &str) -> Option<u64> {
        let value = self.0.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))?;
        value.trim().parse().ok()
    }
}

/// `8:0 rbytes=1 wbytes=2`, a line for each device.
fn sum_of(text: &str, key: &str) -> u64 {
    text.split_whitespace().filter_map(|field| field.strip_prefix(key)?.parse::<u64>().ok()).sum()
}

/// `8:0 Read 1`, a line for each device and kind, and the sum of all at the end.
fn sum_of_v1(text: &str, kind: &str) -> u64 {
    let lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let counts = lines.filter_map(|fields| match fields.as_slice() {
        [_, known, count] if *known == kind => count.parse::<u64>().ok(),
        _ => None,
    });
    counts.sum()
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`, and the same with `full`.
fn pressure(text: &str) -> Pressure {
    let values = |kind: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(kind)?.strip_prefix(' '))?;
        let value = |key: &str| line.split(' ').find_map(|field| field.strip_prefix(key)?.strip_prefix('='));
        let average = |key: &str| value(key)?.parse().ok();
        Some(PressureValues {
            avg10: average("avg10"),
            avg60: average("avg60"),
            avg300: average("avg300"),
            total: value("total").and_then(|total| total.parse().ok()),
        })
    };
    Pressure { some: values("some"), full: values("full") }
}

fn number(path: &Path) -> Option<u64> {
    read(path)?.trim().parse().ok()
}

/// The files are the kernel's, and short. What cannot be read is not counted.
fn read(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok()
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[track_caller]
    fn check(files: &[(&str, &str)], read: impl FnOnce(&Path, &mut Sample), want: &str) {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let mut sample = Sample::at(SystemTime::UNIX_EPOCH);
        read(dir.path(), &mut sample);
        let got = serde_json::to_string(&sample).unwrap();
        assert_eq!(got.replace(r#""timestamp":"1970-01-01T00:00:00.000000000Z","#, ""), want);
    }

    #[test]
    fn version_2() {
        check(
            &[
                ("cpu.stat", "usage_usec 12\nuser_usec 8\nnr_periods 1\n"),
                ("cpu.pressure", "some avg10=1.50 avg60=0.00 avg300=0.00 total=77\n"),
                ("memory.stat", "anon 5\nfile_mapped 2\nfile 3\n"),
                ("memory.peak", "9\n"),
                ("memory.events", "low 0\noom_kill 2\n"),
                ("io.stat", "8:0 rbytes=1 wbytes=2 rios=3 wios=4\n8:16 rbytes=10 wbytes=20\nbroken\n"),
                ("pids.current", "6\n"),
            ],
            read_v2,
            concat!(
                r#"{"cpuStat":{"usageNanos":12000,"userNanos":8000,"nrPeriods":1,"pressure":{"some":{"avg10":1.5,"#,
                r#""avg60":0.0,"avg300":0.0,"total":77},"full":null}},"memoryStat":{"anon":5,"file":3,"fileMapped":2,"#,
                r#""peak":9,"oomKillEvents":2},"ioStat":{"readBytes":11,"writeBytes":22,"discardBytes":0,"readIOs":3,"#,
                r#""writeIOs":4,"discardIOs":0},"pidsStat":{"current":6}}"#
            ),
        );
        check(&[], read_v2, r#"{"timestamp":"1970-01-01T00:00:00.000000000Z"}"#);
    }

    #[test]
    fn version_1() {
        let controllers = ["cpu", "cpuacct", "memory", "blkio", "pids"].map(str::to_owned).into();
        let hierarchy = Hierarchy { path: "/".into(), controllers };
        check(
            &[
                ("cpuacct.usage", "12\n"),
                ("cpu.stat", "nr_throttled 3\n"),
                ("memory.stat", "rss 1\ntotal_rss 5\n"),
                ("memory.max_usage_in_bytes", "9\n"),
                (
                    "blkio.throttle.io_service_bytes_recursive",
                    "8:0 Read 4\n8:0 Write 5\n8:16 Read 6\nTotal 15\n",
                ),
                ("pids.current", "6\n"),
            ],
            |dir, sample| read_v1(&hierarchy, dir, sample),
            concat!(
                r#"{"cpuStat":{"usageNanos":12,"nrThrottled":3},"memoryStat":{"anon":5,"peak":9},"ioStat":{"readBytes":10,"#,
                r#""writeBytes":5,"discardBytes":0,"readIOs":0,"writeIOs":0,"discardIOs":0},"pidsStat":{"current":6}}"#
            ),
        );
    }
}
