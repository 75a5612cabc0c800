//! Limits of a process that several builds wait for.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use kiln_llb::pb::LinuxResources;

/// The loosest of the limits that the waiters set, so that none is held by another's; a waiter that sets none at all
/// has no say.
pub(crate) fn loosest(all: impl IntoIterator<Item = LinuxResources>) -> Option<LinuxResources> {
    all.into_iter().reduce(|a, b| {
        let (cpu_period, cpu_quota) = looser_cpu((a.cpu_period, a.cpu_quota), (b.cpu_period, b.cpu_quota));
        LinuxResources {
            // Zero is no limit.
            memory: if a.memory == 0 || b.memory == 0 { 0 } else { a.memory.max(b.memory) },
            memory_swap: looser_swap(a.memory_swap, b.memory_swap),
            // Zero is the kernel's default, which says nothing.
            cpu_shares: a.cpu_shares.max(b.cpu_shares),
            cpu_period,
            cpu_quota,
            cpuset_cpus: union(&a.cpuset_cpus, &b.cpuset_cpus),
            cpuset_mems: union(&a.cpuset_mems, &b.cpuset_mems),
        }
    })
}

/// Zero is unset, -1 is no limit.
fn looser_swap(a: i64, b: i64) -> i64 {
    match (a, b) {
        (0, other) | (other, 0) => other,
        (-1, _) | (_, -1) => -1,
        (a, b) => a.max(b),
    }
}

/// The pair of period and quota that gives more time; of equal ones, the one that gives it more often. A quota of zero
/// is no limit.
fn looser_cpu(a: (u64, i64), b: (u64, i64)) -> (u64, i64) {
    match (a, b) {
        ((_, 0), (_, 0)) => return (0, 0),
        ((_, 0), _) => return a,
        (_, (_, 0)) => return b,
        _ => {}
    }
    let order = if a.0 != 0 && b.0 != 0 {
        let cap = |quota: i64, period: u64| i128::from(quota) * i128::from(period);
        cap(a.1, b.0).cmp(&cap(b.1, a.0)).then(b.0.cmp(&a.0))
    } else {
        // Of two equal quotas the one with a period says more.
        a.1.cmp(&b.1).then(a.0.cmp(&b.0))
    };
    if order == Ordering::Less { b } else { a }
}

/// All processors of both lists; an empty list is every one. One that does not parse gives way to the other.
fn union(a: &str, b: &str) -> String {
    if a.is_empty() || b.is_empty() {
        return String::new();
    }
    match (parse(a), parse(b)) {
        (_, None) => a.to_owned(),
        (None, _) => b.to_owned(),
        (Some(mut all), Some(more)) => {
            all.extend(more);
            render(&all)
        }
    }
}

/// More processors than any machine has; a list is bounded by it.
const MAX_CPU: u32 = 8192;

fn parse(list: &str) -> Option<BTreeSet<u32>> {
    let mut set = BTreeSet::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if first > last || last > MAX_CPU {
            return None;
        }
        set.extend(first..=last);
    }
    Some(set)
}

fn render(set: &BTreeSet<u32>) -> String {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for &cpu in set {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == cpu => *last = cpu,
            _ => ranges.push((cpu, cpu)),
        }
    }
    let shown = ranges.iter().map(|(a, b)| if a == b { a.to_string() } else { format!("{a}-{b}") });
    shown.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_limits_the_loosest_wins() {
        let memory = |memory| LinuxResources { memory, ..LinuxResources::default() };
        let swap = |memory_swap| LinuxResources { memory_swap, ..LinuxResources::default() };
        let cpu =
            |cpu_period, cpu_quota| LinuxResources { cpu_period, cpu_quota, ..LinuxResources::default() };
        let shares = |cpu_shares| LinuxResources { cpu_shares, ..LinuxResources::default() };
        let set = |cpus: &str| LinuxResources { cpuset_cpus: cpus.to_owned(), ..LinuxResources::default() };
        for (a, b, want) in [
            (memory(5), memory(7), memory(7)),
            (memory(5), memory(0), memory(0)),
            (swap(5), swap(0), swap(5)),
            (swap(5), swap(-1), swap(-1)),
            (swap(5), swap(6), swap(6)),
            (shares(0), shares(3), shares(3)),
            (cpu(100, 50), cpu(10, 9), cpu(10, 9)),
            (cpu(100, 50), cpu(10, 5), cpu(10, 5)),
            (cpu(100, 50), cpu(10, 0), cpu(10, 0)),
            (cpu(7, 0), cpu(8, 0), cpu(0, 0)),
            (cpu(0, 50), cpu(9, 50), cpu(9, 50)),
            (set("0-2,5"), set("3,7"), set("0-3,5,7")),
            (set("0"), set(""), set("")),
            (set("nonsense"), set("1-0"), set("nonsense")),
            (set("nonsense"), set("1"), set("1")),
        ] {
            assert_eq!(loosest([a.clone(), b.clone()]), Some(want.clone()), "{a:?} {b:?}");
            if parse(&a.cpuset_cpus).is_some() || a.cpuset_cpus.is_empty() {
                assert_eq!(loosest([b, a]), Some(want));
            }
        }
        assert_eq!(loosest([]), None);
        assert_eq!(loosest([memory(4)]), Some(memory(4)));
    }
}
