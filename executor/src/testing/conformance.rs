//! What every [`Executor`] keeps. Each check panics on a breach. They need what mounting needs, and a static
//! busybox to make a root filesystem of.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a suite for tests")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kiln_snapshot::Mount;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::error::Error;
use crate::port::{ContainerId, Executor, Exit, Output, ProcessIo};
use crate::process::{NetworkMode, ProcessSpec, SecurityMode, Ulimit};
use crate::step_mount::StepMount;

/// More than enough for any step of the suite; a hanging one fails instead.
const PATIENCE: Duration = Duration::from_secs(60);

/// An executor under test, and a base to run on.
#[derive(Debug)]
pub struct Suite {
    executor: Arc<dyn Executor>,
    dir: PathBuf,
}

/// How a step ended, and what it wrote.
#[derive(Debug)]
pub struct Outcome {
    /// Its end.
    pub exit: Result<Exit, Error>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
    /// The root filesystem's own difference.
    pub upper: PathBuf,
}

/// A step to run.
#[derive(Debug)]
pub struct Step {
    /// What to run; the environment has a `PATH`.
    pub process: ProcessSpec,
    /// Mounts besides the root.
    pub mounts: Vec<StepMount>,
    /// What it reads.
    pub stdin: Option<&'static str>,
}

impl Step {
    /// A shell script.
    pub fn shell(script: &str) -> Self {
        Self::args(&["/bin/sh", "-c", script])
    }

    /// A program.
    pub fn args(args: &[&str]) -> Self {
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        Self { process: ProcessSpec { args, ..ProcessSpec::default() }, mounts: Vec::new(), stdin: None }
    }

    /// With another mount.
    pub fn mount(mut self, mount: StepMount) -> Self {
        self.mounts.push(mount);
        self
    }

    /// With the process changed.
    pub fn with(mut self, change: impl FnOnce(&mut ProcessSpec)) -> Self {
        change(&mut self.process);
        self
    }
}

impl Suite {
    /// Makes a base in `dir` out of the static `busybox`.
    pub fn new(executor: Arc<dyn Executor>, dir: &Path, busybox: &Path) -> Self {
        let base = dir.join("base");
        for name in ["bin", "etc", "tmp"] {
            std::fs::create_dir_all(base.join(name)).unwrap();
        }
        std::fs::copy(busybox, base.join("bin/busybox")).unwrap();
        for applet in [
            "sh", "cat", "echo", "id", "pwd", "ls", "env", "sleep", "grep", "mount", "hostname", "touch",
            "stat", "mkdir", "mknod", "true", "wc", "kill", "setsid", "tr", "dd", "ulimit", "chroot",
            "unshare",
        ] {
            std::os::unix::fs::symlink("busybox", base.join("bin").join(applet)).unwrap();
        }
        let passwd = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:App:/home/app:/bin/sh\n";
        std::fs::write(base.join("etc/passwd"), passwd).unwrap();
        std::fs::write(base.join("etc/group"), "root:x:0:\napp:x:1001:\nextra:x:20:app\n").unwrap();
        Self { executor, dir: dir.to_owned() }
    }

    /// Runs everything.
    pub async fn check_all(&self) {
        self.output_and_exit_codes().await;
        self.environment_and_directory().await;
        self.users().await;
        self.mounts().await;
        self.isolation().await;
        self.network().await;
        self.files_left().await;
        self.cancel().await;
        self.exec().await;
    }

    /// Runs a step to its end.
    pub async fn run(&self, step: Step) -> Outcome {
        self.run_until(step, CancellationToken::new(), None).await
    }

    async fn run_until(
        &self,
        step: Step,
        cancel: CancellationToken,
        started: Option<oneshot::Sender<std::time::SystemTime>>,
    ) -> Outcome {
        let (id, root, upper) = self.root();
        let (sender, receiver) = mpsc::channel(4);
        let mut io = ProcessIo::new(sender);
        io.stdin = step.stdin.map(|text| Box::pin(text.as_bytes()) as _);
        let run = self.executor.run(&id, root, step.mounts, step.process, io, started, cancel);
        let both = async { tokio::join!(run, collect(receiver)) };
        let (exit, (stdout, stderr)) = tokio::time::timeout(PATIENCE, both).await.expect("a step hangs");
        Outcome { exit, stdout, stderr, upper }
    }

    /// A root filesystem of its own: an empty upper over the base.
    fn root(&self) -> (ContainerId, StepMount, PathBuf) {
        // Control groups are the machine's, so names must be unlike those of any other suite.
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let home = self.dir.join(format!("step-{number}"));
        let (upper, work) = (home.join("upper"), home.join("work"));
        std::fs::create_dir_all(&upper).unwrap();
        std::fs::create_dir_all(&work).unwrap();
        let mount =
            Mount::Overlay { lowers: vec![self.dir.join("base")], upper: Some((upper.clone(), work)) };
        (
            ContainerId::new(format!("t{}step{number}", std::process::id())).unwrap(),
            StepMount::snapshot("/", mount),
            upper,
        )
    }

    fn dir(&self, name: &str) -> PathBuf {
        let dir = self.dir.join(name);
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    async fn stdout(&self, step: Step) -> String {
        let outcome = self.run(step).await;
        match &outcome.exit {
            Ok(Exit { code: 0, .. }) => outcome.stdout,
            _ => panic!("{outcome:?}"),
        }
    }

    async fn output_and_exit_codes(&self) {
        let got = self.run(Step::shell("echo out; echo err >&2; exit 7")).await;
        assert_eq!((got.stdout.as_str(), got.stderr.as_str()), ("out\n", "err\n"));
        let exit = got.exit.unwrap();
        assert_eq!((exit.code, exit.oom), (7, false));
        let missing = self.run(Step::args(&["/bin/missing"])).await;
        match missing.exit {
            Err(Error::Start { message, .. }) => assert!(message.contains("/bin/missing"), "{message}"),
            other => panic!("{other:?}"),
        }
        let mut step = Step::shell("cat");
        step.stdin = Some("from outside");
        assert_eq!(self.stdout(step).await, "from outside");
        assert_eq!(self.stdout(Step::shell("cat; echo done")).await, "done\n", "no input ends at once");
        // More than a pipe and the channel hold.
        let much =
            self.stdout(Step::shell("dd if=/dev/zero bs=1024 count=3000 2>/dev/null | tr '\\0' x")).await;
        assert_eq!(much.len(), 3000 * 1024);
        let (sender, receiver) = oneshot::channel();
        self.run_until(Step::shell("true"), CancellationToken::new(), Some(sender)).await.exit.unwrap();
        receiver.await.expect("a step that ran had started");
        let (sender, receiver) = oneshot::channel();
        let missing = Step::args(&["/bin/missing"]);
        self.run_until(missing, CancellationToken::new(), Some(sender)).await.exit.unwrap_err();
        receiver.await.expect_err("a step that never ran had not started");
    }

    async fn environment_and_directory(&self) {
        let step = Step::shell("echo $A $PATH; pwd; hostname; ulimit -n").with(|process| {
            process.env = vec!["A=1".into()];
            process.cwd = "/new/dir".into();
            process.hostname = Some("named".into());
            process.extra_hosts = vec![("db".into(), "10.1.2.3".into())];
            process.ulimits = vec![Ulimit { name: "nofile".into(), soft: 77, hard: 99 }];
        });
        let want = "1 /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n/new/dir\nnamed\n77\n";
        assert_eq!(self.stdout(step).await, want);
        assert_eq!(self.stdout(Step::shell("hostname; pwd")).await, "buildkitsandbox\n/\n");
        let hosts = self.stdout(Step::shell("cat /etc/hosts; grep -c nameserver /etc/resolv.conf >&2")).await;
        assert!(hosts.starts_with("127.0.0.1\tlocalhost buildkitsandbox\n"), "{hosts}");
    }

    async fn users(&self) {
        for (user, want) in [
            ("", "0 0 0"),
            ("app", "1000 1001 1001 20"),
            ("app:extra", "1000 20 20"),
            ("5:6", "5 6 6"),
            ("1000", "1000 1001 1001 20"),
        ] {
            let step =
                Step::shell("echo $(id -u) $(id -g) $(id -G)").with(|process| process.user = user.into());
            assert_eq!(self.stdout(step).await, format!("{want}\n"), "{user}");
        }
        let step = Step::shell("stat -c '%u %g %a' /made").with(|process| {
            process.user = "app".into();
            process.cwd = "/made".into();
        });
        assert_eq!(self.stdout(step).await, "1000 1001 755\n");
        let ghost = self.run(Step::shell("true").with(|process| process.user = "ghost".into())).await;
        let text = ghost.exit.unwrap_err().to_string();
        assert_eq!(text, "unable to find user ghost: no matching entries in passwd file");
    }

    async fn mounts(&self) {
        let host = self.dir("host");
        std::fs::create_dir_all(host.join("sub")).unwrap();
        std::fs::write(host.join("sub/file"), "content").unwrap();
        let _ = std::os::unix::fs::symlink("/sub/file", host.join("link"));
        let whole = || Mount::Bind { source: host.clone(), read_only: false };
        let step = Step::shell(
            "cat /ro/sub/file; touch /ro/x 2>/dev/null && echo written; touch /rw/made && echo ok; \
             cat /picked; ls /sub; grep ' /t ' /proc/mounts; cat /hostfile; touch /rootfile",
        )
        .mount(StepMount::snapshot("/ro", whole()).read_only())
        .mount(StepMount::snapshot("/rw", whole()))
        .mount(StepMount::snapshot("/picked", whole()).select("link"))
        .mount(StepMount::snapshot("/sub", whole()).select("/sub"))
        .mount(StepMount::tmpfs("/t", 65536))
        .mount(StepMount::host("/hostfile", host.join("sub/file"), &["ro", "nosuid"]));
        let got = self.stdout(step).await;
        let lines: Vec<&str> = got.lines().collect();
        assert_eq!(lines[..2], ["contentok", "contentfile"], "{got}");
        assert!(lines[2].starts_with("tmpfs /t tmpfs rw,nosuid") && lines[2].contains("size=64k"), "{got}");
        assert_eq!(lines[3], "content");
        assert!(host.join("made").exists());
        let missing = Step::shell("true").mount(StepMount::snapshot("/x", whole()).select("nowhere"));
        assert!(matches!(self.run(missing).await.exit, Err(Error::StepMount { .. })));
        let read_only = Step::shell("touch /x 2>/dev/null || echo refused").with(|p| p.read_only_root = true);
        assert_eq!(self.stdout(read_only).await, "refused\n");
    }

    async fn isolation(&self) {
        let script =
            "grep -E '^(Cap(Inh|Prm|Eff|Bnd|Amb)|NoNewPrivs|Seccomp):' /proc/self/status | tr '\\t' ' '";
        let got = self.stdout(Step::shell(script)).await;
        let want = "CapInh: 0000000000000000\nCapPrm: 00000000a80425fb\nCapEff: 00000000a80425fb\n\
            CapBnd: 00000000a80425fb\nCapAmb: 0000000000000000\nNoNewPrivs: 0\nSeccomp: 2\n";
        assert_eq!(got, want);
        let got = self
            .stdout(Step::shell("echo $$; cat /proc/keys /proc/kcore | wc -c; ls -d /proc/[0-9]* | wc -l"))
            .await;
        let lines: Vec<&str> = got.lines().map(str::trim).collect();
        assert_eq!(lines[..2], ["1", "0"], "{got}");
        assert!(lines[2].parse::<u32>().unwrap() < 8, "{got}");
        let refused = [
            "echo 1 > /proc/sys/kernel/panic",
            "touch /sys/x",
            "d=/sys/fs/cgroup; [ -d $d/pids ] && d=$d/pids; mkdir $d/x",
            "mount -t tmpfs x /tmp",
            "unshare -m true",
            "mknod /tmp/disk b 8 0 && cat /tmp/disk",
        ];
        for script in refused {
            let got = self.run(Step::shell(&format!("{script} 2>/dev/null"))).await;
            assert_ne!(got.exit.unwrap().code, 0, "{script}");
        }
        let insecure = |process: &mut ProcessSpec| process.security = SecurityMode::Insecure;
        let script = "mount -t tmpfs x /tmp && ls /dev/fuse /dev/loop0 && grep Seccomp: /proc/self/status";
        let got = self.stdout(Step::shell(script).with(insecure)).await;
        assert_eq!(got, "/dev/fuse\n/dev/loop0\nSeccomp:\t0\n");
    }

    async fn network(&self) {
        let devices = "ls /sys/class/net | tr '\\n' ' '";
        let none = Step::shell(devices).with(|process| process.network = NetworkMode::None);
        assert_eq!(self.stdout(none).await, "lo ");
        let host =
            self.stdout(Step::shell("cat /proc/net/dev").with(|p| p.network = NetworkMode::Host)).await;
        let outside = std::fs::read_to_string("/proc/net/dev").unwrap();
        assert_eq!(host.lines().count(), outside.lines().count());
    }

    async fn files_left(&self) {
        let step = Step::shell("echo x > /tmp/made").mount(StepMount::tmpfs("/deep/point", 0));
        let got = self.run(step).await;
        got.exit.unwrap();
        let mut left: Vec<String> = std::fs::read_dir(&got.upper)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["deep", "dev", "etc", "proc", "sys", "tmp"]);
        assert_eq!(std::fs::read_dir(got.upper.join("deep")).unwrap().count(), 0);
        assert_eq!(
            std::fs::read_dir(got.upper.join("etc"))
                .unwrap()
                .filter(|entry| {
                    let kind = entry.as_ref().unwrap().file_type().unwrap();
                    kind.is_file()
                })
                .count(),
            0
        );
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!table.contains(got.upper.to_str().unwrap()), "the root is still mounted");
    }

    async fn cancel(&self) {
        // A process that cannot be asked, with children that left it.
        let mark = format!("9{}", std::process::id());
        let script = format!(
            "trap '' TERM INT HUP; (setsid sleep {mark} & ) ; sleep {mark} & echo up; while :; do sleep {mark}; done"
        );
        let (id, root, _) = self.root();
        let (sender, mut receiver) = mpsc::channel(4);
        let cancel = CancellationToken::new();
        let step = Step::shell(&script);
        let run =
            self.executor.run(&id, root, vec![], step.process, ProcessIo::new(sender), None, cancel.clone());
        let stop = async {
            receiver.recv().await.unwrap();
            cancel.cancel();
        };
        let (exit, ()) =
            tokio::time::timeout(PATIENCE, async { tokio::join!(run, stop) }).await.expect("hangs");
        assert!(matches!(exit, Err(Error::Cancelled)), "{exit:?}");
        assert_eq!(processes_with(&mark), Vec::<String>::new());

        // Cancelled while it starts.
        for _ in 0..5 {
            let cancel = CancellationToken::new();
            cancel.cancel();
            let got = self.run_until(Step::args(&["/bin/sleep", &mark]), cancel, None).await;
            assert!(matches!(got.exit, Err(Error::Cancelled)), "{got:?}");
        }
        for delay in [1, 5, 10, 20, 40] {
            let cancel = CancellationToken::new();
            let run = self.run_until(Step::args(&["/bin/sleep", &mark]), cancel.clone(), None);
            let stop = async {
                tokio::time::sleep(Duration::from_millis(delay)).await;
                cancel.cancel();
            };
            let (got, ()) = tokio::join!(run, stop);
            assert!(matches!(got.exit, Err(Error::Cancelled)), "{got:?}");
            assert_eq!(processes_with(&mark), Vec::<String>::new(), "after {delay} ms");
        }

        // Dropped.
        let (id, root, _) = self.root();
        let (sender, mut receiver) = mpsc::channel(4);
        {
            let step = Step::shell(&script);
            let run = self.executor.run(
                &id,
                root,
                vec![],
                step.process,
                ProcessIo::new(sender),
                None,
                CancellationToken::new(),
            );
            tokio::select! {
                exit = run => panic!("{exit:?}"),
                _ = receiver.recv() => {}
            }
        }
        while receiver.recv().await.is_some() {}
        let deadline = Instant::now() + PATIENCE;
        while !processes_with(&mark).is_empty() {
            assert!(Instant::now() < deadline, "a dropped run goes on");
            tokio::task::yield_now().await;
        }
    }

    async fn exec(&self) {
        let (id, root, _) = self.root();
        let (sender, receiver) = mpsc::channel(4);
        let cancel = CancellationToken::new();
        let step =
            Step::shell("echo of-container > /tmp/file; sleep 600").with(|p| p.env = vec!["A=1".into()]);
        let run =
            self.executor.run(&id, root, vec![], step.process, ProcessIo::new(sender), None, cancel.clone());
        let others = async {
            let see = Step::shell("while ! cat /tmp/file 2>/dev/null; do :; done; echo $A; id -u; exit 3")
                .with(|process| process.user = "app".into());
            let (exit, stdout) = self.exec_in(&id, see, CancellationToken::new()).await;
            assert_eq!((exit.unwrap().code, stdout.as_str()), (3, "of-container\n1\n1000\n"));
            let stop = CancellationToken::new();
            stop.cancel();
            let (exit, _) = self.exec_in(&id, Step::shell("sleep 600"), stop).await;
            assert!(matches!(exit, Err(Error::Cancelled)), "{exit:?}");
            cancel.cancel();
        };
        let all = async { tokio::join!(run, others, collect(receiver)) };
        let (exit, (), _) = tokio::time::timeout(PATIENCE, all).await.expect("exec hangs");
        assert!(matches!(exit, Err(Error::Cancelled)));
        let (exit, _) = self.exec_in(&id, Step::shell("true"), CancellationToken::new()).await;
        assert!(
            matches!(exit, Err(Error::ContainerStopped { .. } | Error::ContainerFailed { .. })),
            "{exit:?}"
        );
        let other = ContainerId::new("nobody").unwrap();
        let (exit, _) = self.exec_in(&other, Step::shell("true"), CancellationToken::new()).await;
        assert_eq!(exit.unwrap_err().to_string(), "container nobody not found");
    }

    async fn exec_in(
        &self,
        id: &ContainerId,
        step: Step,
        cancel: CancellationToken,
    ) -> (crate::Result<Exit>, String) {
        let (sender, receiver) = mpsc::channel(4);
        let exec = self.executor.exec(id, step.process, ProcessIo::new(sender), cancel);
        let (exit, (stdout, _)) = tokio::join!(exec, collect(receiver));
        (exit, stdout)
    }
}

async fn collect(mut receiver: mpsc::Receiver<Output>) -> (String, String) {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    while let Some(output) = receiver.recv().await {
        match output {
            Output::Stdout(bytes) => stdout.extend(bytes),
            Output::Stderr(bytes) => stderr.extend(bytes),
        }
    }
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (text(stdout), text(stderr))
}

/// The command lines on this machine that are a `sleep` with `mark`.
fn processes_with(mark: &str) -> Vec<String> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.contains("sleep") && line.contains(mark))
        .collect()
}
