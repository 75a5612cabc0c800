//! The garbage collector's rules when the configuration has none.

use std::time::Duration;

use crate::{Disk, GcPolicy, PruneOptions};

const GB: i64 = 1_000_000_000;
const HOUR: Duration = Duration::from_secs(3600);

/// What the configuration says of the cache's size. When any of the three is set, those that are not are zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GcLimits {
    /// Bytes that are never collected.
    pub reserved_space: Option<i64>,
    /// Bytes that the cache may take.
    pub max_used_space: Option<i64>,
    /// Bytes of the file system that stay free.
    pub min_free_space: Option<i64>,
}

impl GcPolicy {
    /// The default rules: first what is cheap to have again and large, then what was not used for 60 days, then
    /// anything above the limits, at last also what the engine keeps for itself.
    pub fn defaults(limits: GcLimits, disk: Option<Disk>) -> Vec<Self> {
        let set = limits.reserved_space.or(limits.max_used_space).or(limits.min_free_space).is_some();
        let limits = if set {
            limits
        } else {
            GcLimits {
                reserved_space: Some(percent(disk, 10).min(10 * GB)),
                max_used_space: Some(percent(disk, 80).min(100 * GB)),
                min_free_space: Some(percent(disk, 20)),
            }
        };
        let limited = PruneOptions {
            reserved_space: limits.reserved_space.unwrap_or(0),
            max_used_space: limits.max_used_space.unwrap_or(0),
            min_free_space: limits.min_free_space.unwrap_or(0),
            ..PruneOptions::default()
        };
        let filters = ["source.local", "exec.cachemount", "source.git.checkout"];
        vec![
            Self(PruneOptions {
                filters: filters.iter().map(|kind| format!("type=={kind}")).collect(),
                keep_duration: Some(48 * HOUR),
                max_used_space: 512_000_000,
                ..PruneOptions::default()
            }),
            Self(PruneOptions { keep_duration: Some(1440 * HOUR), ..limited.clone() }),
            Self(limited.clone()),
            Self(PruneOptions { all: true, ..limited }),
        ]
    }
}

/// A part of the disk in whole units, as the reference rounds it.
fn percent(disk: Option<Disk>, percent: i64) -> i64 {
    match disk {
        Some(disk) => (disk.total.saturating_mul(percent) / 100 / (1 << 30) + 1) * GB,
        None => 2 * GB,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_follow_the_disk() {
        let disk = Disk { total: 50 << 30, free: 0 };
        let policies = GcPolicy::defaults(GcLimits::default(), Some(disk));
        let sizes: Vec<_> = policies
            .iter()
            .map(|GcPolicy(p)| (p.reserved_space / GB, p.max_used_space / GB, p.min_free_space / GB, p.all))
            .collect();
        assert_eq!(sizes, [(0, 0, 0, false), (6, 41, 11, false), (6, 41, 11, false), (6, 41, 11, true)]);
        assert_eq!(policies[0].0.filters.len(), 3);
    }

    #[test]
    fn one_configured_limit_stands_alone() {
        let limits = GcLimits { max_used_space: Some(7), ..GcLimits::default() };
        let GcPolicy(last) = &GcPolicy::defaults(limits, None)[3];
        assert_eq!((last.reserved_space, last.max_used_space, last.min_free_space), (0, 7, 0));
    }
}
