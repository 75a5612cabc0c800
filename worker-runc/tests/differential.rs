//! What a step sees, under each runtime: all must show the same. Needs root.
#![expect(clippy::unwrap_used, reason = "tests")]

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use kiln_executor::testing::conformance::{Step, Suite};
use kiln_executor::{LinuxResources, NetworkMode, ProcessSpec, SecurityMode, StepMount, Ulimit};
use kiln_runtime::cgroups::Hierarchies;
use kiln_snapshot::Mount;
use kiln_worker_runc::RuncExecutor;

/// The parent control group of the steps that ask for one.
const PARENT: &str = "kiln-differential/deep";

/// A script, and what its output is cleared of before it is compared: numbers that no two runs share.
type Look = (&'static str, &'static str);

/// Printed by name; the scripts have nothing but busybox.
const LOOKS: &[Look] = &[
    ("processes", "set -- /proc/[0-9]*; echo $#; ps -o pgid,sid | sort -u"),
    ("ids", "id; cat /proc/self/uid_map /proc/self/gid_map /proc/self/setgroups | tr -s ' '"),
    (
        "status",
        "grep -E '^(Umask|Groups|NSpgid|NSsid|Sig(Pnd|Blk|Cgt)|ShdPnd|Cap...|NoNewPrivs|Seccomp|Speculation|Cpus_allowed_list|Mems_allowed_list|THP_enabled|CoreDumping)' /proc/self/status",
    ),
    ("limits", "cat /proc/self/limits; cat /proc/self/oom_score_adj /proc/self/sessionid; echo; umask"),
    (
        "environment",
        "env | grep -v SHLVL | sort; pwd; echo $$; echo $PPID; hostname; cat /proc/1/cmdline | tr '\\0' ' '",
    ),
    // Where mounts are and with which options; not the numbers of mounts and devices, nor where files of the host are.
    (
        "mounts",
        "awk '{ n = 0; for (i = 1; i <= NF; i++) if ($i == \"-\") n = i; root = ($(n+1) == \"overlay\") ? \"\" : $4; opts = ($(n+1) == \"overlay\") ? \"\" : $(n+3); print $5, $6, $(n+1), opts }' /proc/self/mountinfo | sort",
    ),
    ("dev", "find /dev | sort | while read f; do stat -c '%F %a %u %g %t:%T %N' $f; done"),
    (
        "links",
        "ls -l /dev | grep -- '->' | sed 's/.* \\([^ ]* -> .*\\)/\\1/'; ls -ld /proc/self/cwd /proc/self/root | sed 's/.*-> //'",
    ),
    (
        "descriptors",
        "ls -l /proc/self/fd | sed 's/.*[0-9][0-9]:[0-9][0-9] //; s/pipe:.*/pipe/'; stat -c '%F %a %u %g' /proc/self/fd/0 /proc/self/fd/1",
    ),
    (
        "groups v1",
        "sed 's/^[0-9]*://; s/t[0-9]*step[0-9]*/ID/; s/spare-.*/ID/' /proc/self/cgroup; ls -l /sys/fs/cgroup | awk '{ print $1, $9 }'",
    ),
    ("devices group", "sort /sys/fs/cgroup/devices/devices.list"),
    ("cpuset", "cat /sys/fs/cgroup/cpuset/cpuset.cpus /sys/fs/cgroup/cpuset/cpuset.mems"),
    (
        "memory group",
        "cd /sys/fs/cgroup/memory; cat memory.limit_in_bytes memory.memsw.limit_in_bytes; cd ../cpu; cat cpu.shares cpu.cfs_quota_us cpu.cfs_period_us",
    ),
    (
        "masks",
        "for f in /proc/acpi /proc/asound /proc/kcore /proc/keys /proc/latency_stats /proc/timer_list /proc/timer_stats /proc/sched_debug /proc/scsi /sys/firmware /sys/devices/virtual/powercap; do echo $f $(stat -c '%F %t %T %a' $f 2>&1) $(ls $f 2>/dev/null | wc -l) $([ $(wc -c < $f 2>/dev/null) = 0 ] && echo empty); done",
    ),
    ("keys", "cat /proc/keys | wc -l; cat /proc/key-users 2>/dev/null | wc -l"),
    (
        "attributes",
        "cat /proc/self/attr/current 2>&1; cat /proc/self/loginuid; echo; cat /proc/self/timerslack_ns /proc/self/coredump_filter /proc/self/autogroup 2>&1 | sed 's/autogroup-[0-9]*/autogroup/'; cat /proc/self/sched 2>/dev/null | grep -E 'policy|prio'",
    ),
    ("network", "cat /proc/net/dev | wc -l; cat /etc/hosts; ls /sys/class/net | wc -l"),
    (
        "namespaces",
        "for n in cgroup ipc mnt net pid user uts; do [ $(readlink /proc/self/ns/$n) = $(cat /host/$n) ] && echo $n of the host || echo $n own; done",
    ),
    ("std", "echo a > /dev/stdout; echo b > /dev/stderr; cat /dev/stdin | wc -c; [ -t 0 ] && echo tty; :"),
    (
        "shm",
        "stat -f -c '%T %s' /dev/shm /dev /sys/fs/cgroup /dev/mqueue; stat -c '%a %u %g' /dev/shm /dev /dev/pts /dev/mqueue /proc /sys /sys/fs/cgroup /tmp / /etc",
    ),
];

/// Things tried that must come out alike. Not in insecure steps: there some would work, on the machine itself.
const TRIES: &[Look] = &[
    (
        "writes",
        "for f in /proc/sys/kernel/hostname /proc/sysrq-trigger /proc/irq/default_smp_affinity /proc/bus/x /proc/fs/x /sys/x /sys/kernel/x /dev/x /proc/self/oom_score_adj /proc/1/oom_score_adj /etc/x; do (echo 0 > $f) 2>/dev/null && echo $f yes || echo $f no; done; rm -f /dev/x /etc/x",
    ),
    (
        "nodes",
        "cd /tmp; for n in 'c 1 3' 'c 5 1' 'b 8 0' 'b 254 0' 'c 10 200' 'c 1 11' 'c 136 0'; do mknod n $n 2>/dev/null && echo made $n; (cat < n) >/dev/null 2>&1 & sleep 0.02; kill -9 $! 2>/dev/null; (: < n) 2>/dev/null && echo opened $n; rm -f n; done",
    ),
    ("setuid", "cp /bin/busybox /tmp/b; chmod 4755 /tmp/b; stat -c '%a' /tmp/b; rm /tmp/b"),
    (
        "calls",
        "for c in 'mount -t tmpfs x /tmp' 'umount /proc/bus' 'unshare -m true' 'unshare -U true' 'unshare -n true' 'chroot / /bin/true' 'hostname other' 'chown 1:1 /mnt/t' 'nice -n -5 true' 'setsid true' 'pivot_root / /' 'ionice -c 1 true'; do $c >/dev/null 2>&1; echo \"$c: $?\"; done",
    ),
];

/// One kind of step.
type Kind = (&'static str, fn(&mut ProcessSpec));

const KINDS: &[Kind] = &[
    ("plain", |_| {}),
    ("user", |process| {
        process.user = "app".into();
        process.cwd = "/made/for/app".into();
        process.env = vec!["A=1".into(), "A=2".into(), "B=".into()];
        process.hostname = Some("named".into());
    }),
    ("read-only", |process| process.read_only_root = true),
    ("limited", |process| {
        process.resources = LinuxResources {
            memory: 64 << 20,
            memory_swap: 64 << 20,
            cpu_shares: 512,
            cpu_quota: 50_000,
            cpu_period: 100_000,
            cpuset_cpus: "0".into(),
            cpuset_mems: "0".into(),
        };
        process.ulimits = vec![
            Ulimit { name: "nofile".into(), soft: 77, hard: 99 },
            Ulimit { name: "core".into(), soft: 0, hard: 10 },
            Ulimit { name: "nproc".into(), soft: 500, hard: 600 },
        ];
        process.cgroup_parent = Some(PARENT.into());
    }),
    ("without network", |process| process.network = NetworkMode::None),
    ("insecure", |process| process.security = SecurityMode::Insecure),
    ("insecure user", |process| {
        process.security = SecurityMode::Insecure;
        process.user = "app:extra".into();
    }),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn steps_see_the_same() {
    let Some(busybox) = support::ready("runc") else { return };
    let mut seen: BTreeMap<&str, String> = BTreeMap::new();
    for runtime in ["builtin", "runc"] {
        let dir = tempfile::tempdir().unwrap();
        let options = support::options(&dir.path().join("executor"), runtime);
        let executor = RuncExecutor::open(options).unwrap();
        let suite = Suite::new(Arc::new(executor.clone()), dir.path(), &busybox);
        for applet in [
            "awk",
            "sort",
            "sed",
            "readlink",
            "rm",
            "cp",
            "chmod",
            "chown",
            "umount",
            "nice",
            "pivot_root",
            "ionice",
            "ps",
            "head",
            "find",
        ] {
            let link = dir.path().join("base/bin").join(applet);
            std::os::unix::fs::symlink("busybox", link).unwrap();
        }
        host_namespaces(&dir.path().join("host"));
        let mut all = String::new();
        for (kind, change) in KINDS {
            let mut process = ProcessSpec::default();
            change(&mut process);
            let tries = if process.security == SecurityMode::Sandbox { TRIES } else { &[] };
            let script: String = LOOKS
                .iter()
                .chain(tries)
                .map(|(name, script)| format!("echo '== {name}'; ({script}) 2>&1; cd /\n"))
                .collect();
            let mount = |name: &str| Mount::Bind { source: dir.path().join(name), read_only: false };
            let step = Step::shell(&format!("exec 2>/dev/null; {script}"))
                .with(change)
                .mount(StepMount::snapshot("/host", mount("host")).read_only())
                .mount(StepMount::tmpfs("/mnt/t", 65536))
                .mount(StepMount::tmpfs("/mnt/ro", 0).read_only());
            let outcome = suite.run(step).await;
            // What a step uses is no two times the same.
            let exit = outcome.exit.map(|exit| (exit.code, exit.oom));
            all.push_str(&format!("==== {kind}: {exit:?}\n{}{}\n", outcome.stdout, outcome.stderr));
        }
        executor.close().await;
        seen.insert(runtime, all);
    }
    remove_parents();
    similar(&seen["builtin"], &seen["runc"]);
}

/// What is above the groups of steps stays with the machine; this parent is the test's own.
fn remove_parents() {
    let hierarchies = Hierarchies::detect();
    for root in hierarchies.v1.into_iter().map(|hierarchy| hierarchy.path).chain(hierarchies.v2) {
        let lowest = root.join(PARENT).join("buildkit");
        for dir in lowest.ancestors().take_while(|dir| *dir != root) {
            let _ = std::fs::remove_dir(dir);
        }
    }
}

/// Files that say which namespaces are those of the host.
fn host_namespaces(dir: &Path) {
    std::fs::create_dir(dir).unwrap();
    for name in ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"] {
        let link = std::fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        std::fs::write(dir.join(name), link.to_str().unwrap()).unwrap();
    }
}

/// Lines that differ for a reason.
fn expected(line: &str) -> bool {
    // Old versions of runc allow the tunnel device, newer ones do not either.
    line.contains("c 10:200")
        || line.contains("opened c 10 200")
        // Where everything is allowed, runc lists some things twice.
        || line.starts_with("insecure") && line.contains("devices group: c ")
        // Ours cannot be written to.
        || line.contains(": /sys/fs/cgroup r") && line.contains("tmpfs rw,mode=755")
}

/// Fails with the lines that differ, each with what it is part of.
fn similar(ours: &str, theirs: &str) {
    let place = |text: &str| {
        let (mut kind, mut look) = (String::new(), String::new());
        let mut lines: Vec<String> = Vec::new();
        for line in text.lines() {
            if let Some(name) = line.strip_prefix("==== ") {
                kind = name.split(':').next().unwrap_or_default().to_owned();
            } else if let Some(name) = line.strip_prefix("== ") {
                look = name.to_owned();
            }
            lines.push(format!("{kind}, {look}: {line}"));
        }
        lines
    };
    let (ours, theirs) = (place(ours), place(theirs));
    let only = |some: &[String], others: &[String]| -> String {
        some.iter()
            .filter(|line| !others.contains(line) && !expected(line))
            .map(|line| format!("{line}\n"))
            .collect()
    };
    let (only_ours, only_theirs) = (only(&ours, &theirs), only(&theirs, &ours));
    assert!(
        only_ours.is_empty() && only_theirs.is_empty(),
        "only built-in:\n{only_ours}\nonly runc:\n{only_theirs}"
    );
}
