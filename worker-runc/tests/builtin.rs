//! What the built-in runtime promises beyond the conformance suite. Needs root.
#![expect(clippy::unwrap_used, reason = "tests")]

mod support;

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kiln_executor::spec::{self, Machine, Surroundings};
use kiln_executor::testing::conformance::{Step, Suite};
use kiln_executor::{ContainerId, Error, NetworkNamespace, Output, ProcessIo, ProcessSpec, StepMount, oci};
use kiln_runtime::cgroups::Hierarchies;
use kiln_runtime::{Options, Program, Runtime, Stdio};
use kiln_snapshot::Mount;
use kiln_worker_runc::RuncExecutor;
use rustix::process::{Pid, Signal};

const PATIENCE: Duration = Duration::from_secs(30);
const HELPER: &str = env!("CARGO_BIN_EXE_kiln-runtime-helper");

/// An executor with the built-in runtime, and the suite's root filesystem for it.
struct Place {
    dir: tempfile::TempDir,
    executor: RuncExecutor,
    suite: Suite,
    /// The helpers that were there before.
    before: BTreeSet<i32>,
}

impl Place {
    /// `None` where the runtime cannot be tested.
    fn new() -> Option<Self> {
        let busybox = support::ready("builtin")?;
        let dir = tempfile::tempdir().unwrap();
        let before = helpers();
        let executor = RuncExecutor::open(support::options(&dir.path().join("executor"), "builtin")).unwrap();
        let suite = Suite::new(Arc::new(executor.clone()), dir.path(), &busybox);
        Some(Self { dir, executor, suite, before })
    }

    /// The executor's helper, and those of other tests that were started beside this one.
    fn helpers(&self) -> Vec<i32> {
        helpers().difference(&self.before).copied().collect()
    }
}

/// The helpers that this process has started.
fn helpers() -> BTreeSet<i32> {
    let own = format!("PPid:\t{}\n", std::process::id());
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        // What it has cloned has its command line, and namespaces of its own.
        let own_namespace = std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        read("cmdline").starts_with("kiln-runtime\0")
            && read("status").contains(&own)
            && own_namespace == std::fs::read_link("/proc/self/ns/pid").ok()
    })
    .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_helper_that_dies_harms_nobody() {
    let Some(place) = Place::new() else { return };
    let Place { dir, executor, suite, .. } = &place;
    let host = dir.path().join("host");
    std::fs::create_dir(&host).unwrap();
    let whole = Mount::Bind { source: host.clone(), read_only: false };
    let long = Step::shell("touch /host/up; while [ ! -e /host/enough ]; do sleep 0.01; done; exit 5");
    let run = suite.run(long.mount(StepMount::snapshot("/host", whole)));
    let others = async {
        wait_for(|| host.join("up").exists()).await;
        for round in 0..2 {
            for pid in place.helpers() {
                rustix::process::kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
            }
            assert_eq!(suite.run(Step::shell("exit 4")).await.exit.unwrap().code, 4, "{round}");
        }
        std::fs::write(host.join("enough"), "").unwrap();
    };
    let (outcome, ()) = tokio::join!(run, others);
    assert_eq!(outcome.exit.unwrap().code, 5);
    executor.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_helpers_program_cannot_be_written_or_run_by_steps() {
    let Some(place) = Place::new() else { return };
    let own = place.helpers();
    let Place { executor, suite, .. } = place;
    assert!(!own.is_empty());
    for pid in own {
        let exe = rustix::fs::statvfs(format!("/proc/{pid}/exe")).unwrap();
        assert!(exe.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY), "{pid}");
    }
    // The program needs a loader that the root filesystem has not, so it does not even start.
    let exit = suite.run(Step::args(&["/proc/self/exe"])).await.exit;
    assert!(matches!(exit, Err(Error::Start { .. })), "{exit:?}");
    executor.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminal_is_one() {
    let Some(Place { dir, executor, suite, .. }) = Place::new() else { return };
    let script = "for f in 0 1 2; do [ -t $f ] && echo tty $f; done; [ -c /dev/console ] && echo console > /dev/console; ls -l /proc/self/fd/0 | sed 's/.*-> //'; echo to-stderr >&2";
    std::os::unix::fs::symlink("busybox", dir.path().join("base/bin").join("sed")).unwrap();
    let got = suite.run(Step::shell(script).with(|process| process.tty = true)).await;
    assert_eq!(got.exit.unwrap().code, 0);
    let want = "tty 0\r\ntty 1\r\ntty 2\r\nconsole\r\n/dev/pts/0\r\nto-stderr\r\n";
    assert_eq!((got.stdout.as_str(), got.stderr.as_str()), (want, ""));
    let mut ask = Step::shell("read line; echo got $line").with(|process| process.tty = true);
    ask.stdin = Some("typed\n");
    let got = suite.run(ask).await;
    assert_eq!(got.stdout, "typed\r\ngot typed\r\n");
    executor.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signals_arrive_by_number() {
    let Some(Place { dir, executor, .. }) = Place::new() else { return };
    let root = Mount::Bind { source: dir.path().join("base"), read_only: false };
    let (output, mut lines) = tokio::sync::mpsc::channel(4);
    let (signals, receiver) = tokio::sync::mpsc::channel(1);
    let mut io = ProcessIo::new(output);
    io.signals = Some(receiver);
    let step = Step::shell("trap 'echo usr1; exit 7' USR1; echo up; while :; do sleep 0.05; done");
    let id = ContainerId::new("signals1").unwrap();
    let root = StepMount::snapshot("/", root);
    let run = kiln_executor::Executor::run(
        &executor,
        &id,
        root,
        vec![],
        step.process,
        io,
        None,
        tokio_util::sync::CancellationToken::new(),
    );
    let send = async {
        let up = lines.recv().await;
        signals.send(10).await.unwrap();
        let all = [up, lines.recv().await];
        all.map(|line| match line {
            Some(Output::Stdout(bytes)) => String::from_utf8_lossy(&bytes).into_owned(),
            other => format!("{other:?}"),
        })
    };
    let (exit, said) = tokio::time::timeout(PATIENCE, async { tokio::join!(run, send) }).await.unwrap();
    assert_eq!((exit.unwrap().code, said), (7, ["up\n".to_owned(), "usr1\n".to_owned()]));
    executor.close().await;
}

/// A spec as a step has it, for a script on the suite's root filesystem.
fn made(dir: &Path, id: &ContainerId, script: &str) -> oci::Spec {
    let process =
        ProcessSpec { args: ["/bin/sh", "-c", script].map(str::to_owned).into(), ..ProcessSpec::default() };
    let file = dir.join("file");
    std::fs::write(&file, "").unwrap();
    let machine = Machine { cgroup_parent: Some(parent(dir)), ..Machine::detect() };
    let around = Surroundings {
        id,
        rootfs: &dir.join("base"),
        user: oci::User::default(),
        mounts: Vec::new(),
        hosts: &file,
        resolv_conf: &file,
        network: &NetworkNamespace::Empty,
        machine: &machine,
    };
    spec::make(&process, around).unwrap()
}

/// A parent group that no other test has.
fn parent(dir: &Path) -> String {
    let name = dir.file_name().unwrap().to_string_lossy();
    format!("kiln-test{}", name.trim_start_matches('.'))
}

fn runtime(dir: &Path) -> Runtime {
    let mut options = Options::default();
    options.program = Program::At(HELPER.into());
    options.hierarchies = Hierarchies::detect();
    options.parent_group = format!("/{}/buildkit", parent(dir));
    Runtime::start(options).unwrap()
}

/// Runs a spec to its end: its exit code and output.
fn run(runtime: &Runtime, id: &ContainerId, spec: &oci::Spec) -> (i32, String) {
    use std::io::Read as _;
    let null = || OwnedFd::from(File::options().read(true).write(true).open("/dev/null").unwrap());
    let (mut read, write) = std::io::pipe().unwrap();
    let stderr = OwnedFd::from(write.try_clone().unwrap());
    let stdio = Stdio { stdin: null(), stdout: write.into(), stderr };
    let container = runtime.run(id.as_str(), spec, &stdio).unwrap();
    drop(stdio);
    container.process.started().unwrap();
    let mut output = String::new();
    read.read_to_string(&mut output).unwrap();
    let since = Instant::now();
    let code = loop {
        if let Some(code) = container.process.exit_code().unwrap() {
            break code;
        }
        assert!(since.elapsed() < PATIENCE);
        std::thread::yield_now();
    };
    container.groups.remove();
    (code, output)
}

/// The groups below this test's own parent, in all hierarchies.
fn groups_left(dir: &Path) -> Vec<PathBuf> {
    let hierarchies = Hierarchies::detect();
    let roots = hierarchies.v1.iter().map(|hierarchy| hierarchy.path.clone()).chain(hierarchies.v2);
    let parents = roots.map(|root| root.join(parent(dir)).join("buildkit"));
    let entries = parents.filter_map(|parent| std::fs::read_dir(parent).ok()).flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

fn remove_parents(dir: &Path) {
    let hierarchies = Hierarchies::detect();
    for root in hierarchies.v1.iter().map(|hierarchy| hierarchy.path.clone()).chain(hierarchies.v2) {
        let _ = std::fs::remove_dir(root.join(parent(dir)).join("buildkit"));
        let _ = std::fs::remove_dir(root.join(parent(dir)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_of_a_user_namespace_are_mapped() {
    let Some(Place { dir, executor, .. }) = Place::new() else { return };
    // Others pass through on the way to the root filesystem.
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    executor.close().await;
    for file in ["base", "base/dev", "base/proc", "base/sys", "base/etc"] {
        let path = dir.path().join(file);
        let _ = std::fs::create_dir(&path);
        std::os::unix::fs::chown(&path, Some(100_000), Some(100_000)).unwrap();
    }
    let id = ContainerId::new(parent(dir.path()).replace('-', "")).unwrap();
    let script = "id -u; cat /proc/self/uid_map; stat -c '%u' / /bin; : > /dev/null && echo null; touch /made && stat -c %u /made; grep CapEff /proc/self/status";
    let mut spec = made(dir.path(), &id, script);
    spec.linux.namespaces.push(oci::Namespace { kind: "user".to_owned(), path: None });
    let mapping = oci::IdMapping { container_id: 0, host_id: 100_000, size: 1000 };
    spec.linux.uid_mappings = vec![mapping];
    spec.linux.gid_mappings = vec![mapping];
    let runtime = runtime(dir.path());
    let (code, output) = run(&runtime, &id, &spec);
    runtime.close();
    let words: Vec<&str> = output.split_whitespace().collect();
    let want = "0 0 100000 1000 0 65534 null 0 CapEff: 00000000a80425fb";
    assert_eq!((code, words.join(" ").as_str()), (0, want));
    let outside = std::os::unix::fs::MetadataExt::uid(&dir.path().join("base/made").metadata().unwrap());
    assert_eq!(outside, 100_000);
    remove_parents(dir.path());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_spares_nothing_is_left() {
    let Some(Place { dir, executor, .. }) = Place::new() else { return };
    executor.close().await;
    let runtime = runtime(dir.path());
    for round in 0..20 {
        let id = ContainerId::new(format!("r{round}")).unwrap();
        let script = format!("grep -c /r{round}$ /proc/self/cgroup || echo none");
        let (code, output) = run(&runtime, &id, &made(dir.path(), &id, &script));
        assert_eq!(code, 0);
        // In version 2 alone, a step does not see what its group is called outside.
        let groups: usize = output.trim().parse().unwrap_or_default();
        assert!(groups >= Hierarchies::detect().v1.len(), "{output}");
    }
    runtime.close();
    assert_eq!(groups_left(dir.path()), Vec::<PathBuf>::new());
    remove_parents(dir.path());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mount_points_stay_inside() {
    let Some(Place { dir, executor, suite, .. }) = Place::new() else { return };
    let outside = dir.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    let link = |name: &str, target: &Path| {
        std::os::unix::fs::symlink(target, dir.path().join("base").join(name)).unwrap();
    };
    link("absolute", &outside);
    link("upwards", Path::new("../../../../../../../../../../tmp"));
    link("in-proc", Path::new("/proc/sys"));
    let script =
        "for f in /absolute/x /upwards/y; do grep -c \" $(readlink -f $f) tmpfs\" /proc/mounts; done";
    link("bin/readlink", Path::new("busybox"));
    let step = Step::shell(script)
        .mount(StepMount::tmpfs("/absolute/x", 0))
        .mount(StepMount::tmpfs("/upwards/y", 0));
    let got = suite.run(step).await;
    assert_eq!((got.exit.unwrap().code, got.stdout.as_str()), (0, "1\n1\n"));
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    assert!(!Path::new("/tmp/y").exists());
    for dest in ["/proc/sys/kernel", "/in-proc/kernel", "/proc/self"] {
        let error = suite.run(Step::shell("true").mount(StepMount::tmpfs(dest, 0))).await.exit.unwrap_err();
        assert!(error.to_string().contains("because it is inside /proc"), "{dest}: {error}");
    }
    // Where the kernel's files are to be shown, a link is refused.
    std::os::unix::fs::symlink("tmp", dir.path().join("base/sys")).unwrap();
    let error = suite.run(Step::shell("true")).await.exit.unwrap_err().to_string();
    assert!(error.contains("sysfs must be mounted on an ordinary directory"), "{error}");
    executor.close().await;
}

async fn wait_for(mut condition: impl FnMut() -> bool) {
    let since = Instant::now();
    while !condition() {
        assert!(since.elapsed() < PATIENCE, "it does not come");
        tokio::task::yield_now().await;
    }
}
