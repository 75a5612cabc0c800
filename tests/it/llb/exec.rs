//! What a process gets, and what becomes of its mounts.

use anyhow::Result;
use expect_test::expect;
use kiln_llb::pb;
use kiln_llb::state::{Exec, FileActions, MountOptions, State, VertexMeta};
use kiln_tests::DaemonOptions;

use super::{Raw, base, file, out, output, shell, uncached};
use crate::support::{LIMIT, Site, check_contains, mounts_below, processes_with, unique};

fn exec_op(script: &str, mounts: Vec<pb::Mount>) -> pb::op::Op {
    let args = ["/bin/sh", "-ec", script].map(String::from).to_vec();
    let meta = pb::Meta { args, cwd: "/".into(), remove_mount_stubs_recursive: true, ..pb::Meta::default() };
    pb::op::Op::Exec(Box::new(pb::ExecOp { meta: Some(meta), mounts, ..pb::ExecOp::default() }))
}

fn mount(dest: &str, input: i64, output: i64) -> pb::Mount {
    pb::Mount { dest: dest.into(), input, output, ..pb::Mount::default() }
}

#[test]
fn every_mount_gives_the_output_that_its_type_says() -> Result<()> {
    let site = Site::new(&[])?;
    let (mut raw, inputs) = Raw::new(&[&base()?, &file("given", "given\n")])?;
    let cache = pb::CacheOpt { id: super::super::support::unique()?, sharing: 0 };
    let mounts = vec![
        mount("/", 0, 0),
        pb::Mount { mount_type: pb::MountType::Tmpfs as i32, ..mount("/tmp", -1, 9) },
        mount("/made", -1, 1),
        mount("/dropped", 1, -1),
        pb::Mount { readonly: true, ..mount("/kept", 1, 2) },
        pb::Mount {
            mount_type: pb::MountType::Cache as i32,
            cache_opt: Some(cache),
            ..mount("/cache", 1, 3)
        },
        mount("relative", 1, 4),
    ];
    let script = "echo root > /at-root; echo made > /made/m; echo x > /dropped/x; ! echo x 2>/dev/null > /kept/x; \
                  echo x > /cache/x; cat /cache/given > /relative/copy; rm /relative/given; touch /tmp/t";
    let ran = raw.add(&inputs, exec_op(script, mounts))?;
    let definition = |index| -> Result<pb::Definition> {
        Raw { definition: raw.definition.clone() }.finish(&output(&ran, index))
    };
    let names = |index| -> Result<String> {
        let built = site.definition(&definition(index)?, &[])?;
        let mut names: Vec<String> = Vec::new();
        for entry in std::fs::read_dir(built.path())? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        names.retain(|name| {
            !["bin", "etc", "dev", "proc", "sys", "root", "tmp", "mnt"].contains(&name.as_str())
        });
        Ok(names.join(" "))
    };
    // A mount that gives nothing takes no place; one that is shown again gives its input.
    for (index, want) in [(0, "at-root"), (1, "m"), (2, "given"), (3, "given"), (4, "copy")] {
        let got = names(index)?;
        assert!(got.split(' ').any(|name| name == want) && !got.contains('x'), "output {index}: {got}");
    }
    let failed = site.solve(&definition(5)?, &[])?.failure()?;
    check_contains(&failed.stderr, &["error: failed to solve", "5"]);
    Ok(())
}

#[test]
fn cache_mounts_start_from_an_input_and_are_shared_by_id() -> Result<()> {
    let site = Site::new(&[])?;
    let id = unique()?;
    let cached = |sharing| MountOptions { cache: Some((id.clone(), sharing)), ..MountOptions::default() };
    let from = file("start", "from the input\n");
    let step = |n: &str, sharing| {
        shell(&format!("echo {n} >> /c/start; cat /c/start > /out")).mount("/c", &from, cached(sharing))
    };
    assert_eq!(out(&site, step("1", pb::CacheSharingOpt::Shared), &[])?, "from the input\n1\n");
    assert_eq!(out(&site, step("2", pb::CacheSharingOpt::Locked), &[])?, "from the input\n1\n2\n");
    assert_eq!(out(&site, step("3", pb::CacheSharingOpt::Private), &[])?, "from the input\n1\n2\n3\n");
    // Without an input it is another one.
    let empty = shell("ls /c > /out").mount("/c", &State::scratch(), cached(pb::CacheSharingOpt::Shared));
    assert_eq!(out(&site, empty, &[])?, "");
    // Two mounts of one id in one step are one directory.
    let twice = shell("echo x > /a/new; cat /b/new > /out")
        .mount("/a", &State::scratch(), cached(pb::CacheSharingOpt::Private))
        .mount("/b", &State::scratch(), cached(pb::CacheSharingOpt::Private));
    assert_eq!(out(&site, twice, &[])?, "x\n");
    Ok(())
}

#[test]
fn steps_that_ignore_the_cache_start_with_empty_cache_mounts() -> Result<()> {
    let site = Site::new(&[])?;
    let id = unique()?;
    let options = MountOptions { cache: Some((id, pb::CacheSharingOpt::Shared)), ..MountOptions::default() };
    let step = |n: &str| {
        let script = format!("echo {n} >> /c/all; cat /c/all > /out");
        shell(&script).mount("/c", &State::scratch(), options.clone()).meta(uncached())
    };
    let build = || -> Result<String> {
        let both = base()?.run(step("1")).root().run(step("2")).root();
        site.llb(&both, &[])?.read("out")
    };
    // Thrown away once, not before each of the steps.
    assert_eq!(build()?, "1\n2\n");
    assert_eq!(build()?, "1\n2\n");
    Ok(())
}

#[test]
fn the_process_is_what_its_options_say() -> Result<()> {
    let site = Site::new(&[])?;
    let script =
        "hostname; ulimit -n; grep extra /etc/hosts; echo $HTTP_PROXY $http_proxy; pwd; id -u; exit 3";
    let exec = shell(&format!("({script}) > /work/out; exit 3")).process(|meta| {
        meta.hostname = "box".into();
        meta.ulimit.push(pb::Ulimit { name: "nofile".into(), soft: 111, hard: 222 });
        meta.extra_hosts.push(pb::HostIp { host: "extra".into(), ip: "10.1.2.3".into() });
        meta.proxy_env = Some(pb::ProxyEnv { http_proxy: "p:1".into(), ..pb::ProxyEnv::default() });
        meta.valid_exit_codes = vec![3, 4];
    });
    let ran = base()?.dir("/work").user("1234:99").run(exec.clone()).root();
    expect![[r#"
        box
        111
        10.1.2.3	extra
        p:1 p:1
        /work
        1234
    "#]]
    .assert_eq(&site.llb(&ran, &[])?.read("work/out")?);
    // With a list of its own, zero has to be in it.
    let failed =
        site.fails(&base()?.run(shell("exit 0").process(|m| m.valid_exit_codes = vec![3])).root(), &[])?;
    check_contains(&failed, &["did not complete successfully: exit code: 0"]);
    Ok(())
}

#[test]
fn limits_hold_the_control_group() -> Result<()> {
    let site = Site::new(&[])?;
    let resources = pb::LinuxResources { memory: 64 << 20, cpu_shares: 512, ..pb::LinuxResources::default() };
    let meta = VertexMeta { linux_resources: Some(resources), ..uncached() };
    let script = "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null > /out || true; \
                  cat /proc/self/cgroup >> /out";
    let exec = shell(script).meta(meta).process(|meta| meta.cgroup_parent = "some/where".into());
    let got = out(&site, exec, &[])?;
    check_contains(&got, &["67108864"]);
    Ok(())
}

/// A daemon that may grant both, and what the build asks for.
fn granting() -> Result<Site> {
    let allow = |what: &str| format!("--allow-insecure-entitlement={what}");
    let args = vec![allow("network.host"), allow("security.insecure")];
    Site::with_options(&[], DaemonOptions { args, ..DaemonOptions::default() })
}

#[test]
fn rights_are_granted_by_daemon_and_client_together() -> Result<()> {
    let host = shell("readlink /proc/self/ns/net > /out")
        .confine(pb::NetMode::Host, pb::SecurityMode::Sandbox)
        .meta(uncached());
    let insecure = shell("true").confine(pb::NetMode::Unset, pb::SecurityMode::Insecure);
    let (plain, granting) = (Site::new(&[])?, granting()?);
    let own = std::fs::read_link("/proc/self/ns/net")?.display().to_string();
    for site in [&plain, &granting] {
        check_contains(
            &site.fails(&base()?.run(host.clone()).root(), &[])?,
            &["network.host is not allowed"],
        );
        let failed = site.fails(&base()?.run(insecure.clone()).root(), &["--allow=network.host"]);
        check_contains(&failed?, &["is not allowed"]);
    }
    let refused = plain.fails(&base()?.run(host.clone()).root(), &["--allow=network.host"])?;
    check_contains(
        &refused,
        &["granting entitlement network.host is not allowed by build daemon configuration"],
    );
    assert_eq!(out(&granting, host, &["--allow=network.host"])?.trim(), own);
    let none = shell("cut -d: -f1 /proc/net/dev | grep -v '|' | tr -d ' ' > /out")
        .confine(pb::NetMode::None, pb::SecurityMode::Sandbox);
    assert_eq!(out(&plain, none, &[])?, "lo\n");
    Ok(())
}

#[test]
fn an_insecure_step_may_do_what_the_daemon_may() -> Result<()> {
    let site = granting()?;
    let script = "grep -E 'CapEff|Seccomp:' /proc/self/status; mkdir /m; mount -t tmpfs t /m && echo mounted; umount /m; \
                  grep -c ' /sys sysfs rw' /proc/mounts; [ -c /dev/loop-control ] && echo loop; \
                  [ -w /proc/sys/kernel/hostname ] && echo proc; \
                  mknod /n c 1 9 && dd if=/n of=/dev/null bs=1 count=1 2>/dev/null && echo device";
    let exec = shell(&format!("({script}) > /out")).confine(pb::NetMode::Unset, pb::SecurityMode::Insecure);
    let status = std::fs::read_to_string("/proc/self/status")?;
    let caps = status.lines().find(|line| line.starts_with("CapEff")).unwrap_or_default();
    let want = format!("{caps}\nSeccomp:\t0\nmounted\n1\nloop\nproc\ndevice\n");
    assert_eq!(out(&site, exec.clone(), &["--allow=security.insecure"])?, want);
    Ok(())
}

#[test]
fn what_a_step_cannot_have_is_said_with_its_name() -> Result<()> {
    let site = Site::new(&[])?;
    let base = base()?;
    let from = file("here", "");
    let selector = MountOptions { selector: "/not/here".into(), ..MountOptions::default() };
    let cases: Vec<(Exec, &[&str])> = vec![
        (shell("true").mount("/at", &from, selector), &["/at", "No such file or directory"]),
        (shell("true").device("vendor.com/class=dev0", false), &["vendor.com/class=dev0"]),
        (shell("true").process(|m| m.user = String::new()), &[]),
        (Exec::new(["/no/such/program"]), &["/no/such/program"]),
        (
            shell("true")
                .process(|m| m.ulimit = vec![pb::Ulimit { name: "nonsense".into(), soft: 1, hard: 1 }]),
            &["RLIMIT_NONSENSE"],
        ),
    ];
    for (exec, want) in cases {
        let finished = site.solve(&super::marshal(&base.run(exec).root())?, &[])?;
        assert_eq!(finished.code == 0, want.is_empty(), "{}", finished.stderr);
        check_contains(&finished.stderr, want);
    }
    let unknown = site.fails(&base.clone().user("nobody-here").run(shell("true")).root(), &[])?;
    check_contains(&unknown, &["nobody-here"]);

    for (mounts, want) in [
        (vec![mount("/", 3, 0)], "invalid mountinput"),
        (vec![mount("/", -1, -1)], "mount / has no input"),
        (vec![pb::Mount { mount_type: 4, ..mount("/", 0, 0) }], "invalid mount type TMPFS for /"),
        (
            vec![mount("/", 0, 0), pb::Mount { mount_type: 1, ..mount("/s", -1, 0) }],
            "invalid secret mount options",
        ),
        (
            vec![mount("/", 0, 0), pb::Mount { mount_type: 2, ..mount("/s", -1, 0) }],
            "invalid ssh mount options",
        ),
        (
            vec![mount("/", 0, 0), pb::Mount { mount_type: 77, ..mount("/s", -1, 0) }],
            "mount type 77 not implemented",
        ),
        (vec![mount("/x", 0, 0)], "failed to load LLB: invalid exec op with no rootfs"),
    ] {
        let (mut raw, inputs) = Raw::new(&[&base])?;
        let ran = raw.add(&inputs, exec_op("true", mounts))?;
        let failed = site.solve(&raw.finish(&ran)?, &[])?.failure()?;
        check_contains(&failed.stderr, &[want]);
    }
    Ok(())
}

#[test]
fn stubs_of_mounts_go_with_the_step() -> Result<()> {
    let site = Site::new(&[])?;
    for (recursive, want) in [(true, ""), (false, "deep\n")] {
        let exec = shell("true")
            .mount(
                "/deep/inside/it",
                &file("x", ""),
                MountOptions { readonly: true, ..MountOptions::default() },
            )
            .process(|meta| meta.remove_mount_stubs_recursive = recursive);
        let after = base()?.run(exec).root();
        let listed = after.run(shell("ls / | grep deep > /out || true")).root();
        let only =
            State::scratch().file(FileActions::new().copy(&listed, "/out", "/out", Default::default()));
        assert_eq!(site.llb(&only, &[])?.read("out")?, want, "recursive: {recursive}");
    }
    Ok(())
}

#[test]
fn of_a_cancelled_step_nothing_is_left() -> Result<()> {
    let site = Site::new(&[])?;
    let mark = unique()?;
    let secret = tempfile::NamedTempFile::new()?;
    std::fs::write(secret.path(), "hush")?;
    let exec = shell(&format!("echo be''gun; trap '' TERM INT; while :; do sleep 1; : {mark}; done"))
        .mount(
            "/c",
            &State::scratch(),
            MountOptions {
                cache: Some((mark.clone(), pb::CacheSharingOpt::Locked)),
                ..MountOptions::default()
            },
        )
        .mount("/b", &file("x", ""), MountOptions::default())
        .secret(kiln_llb::state::SecretFile {
            id: "s".into(),
            target: Some("/s".into()),
            ..Default::default()
        });
    let client = site
        .start_llb(&base()?.run(exec).root(), &[&format!("--secret=id=s,src={}", secret.path().display())])?;
    client.wait_for("begun")?;
    let in_steps = || -> Result<usize> {
        let clients = client.id();
        Ok(processes_with(&mark)?.into_iter().filter(|pid| *pid != clients).count())
    };
    assert!(in_steps()? > 0);
    kiln_tests::Finished::run(std::process::Command::new("kill").arg("-INT").arg(client.id().to_string()))?
        .success()?;
    let since = std::time::Instant::now();
    kiln_tests::wait_for("the step's processes to end", LIMIT, None, || in_steps().is_ok_and(|n| n == 0))?;
    assert!(since.elapsed() < std::time::Duration::from_secs(2), "{:?}", since.elapsed());
    client.finish()?;
    let root = site.daemon.root();
    kiln_tests::wait_for("its mounts to go", LIMIT, None, || {
        mounts_below(&root).is_ok_and(|m| m.is_empty())
    })?;
    let left = || {
        crate::support::run(
            "find",
            &[&root.display().to_string(), "-name", "secrets-*", "-o", "-name", "agents-*"],
        )
    };
    kiln_tests::wait_for("its files to go", LIMIT, None, || left().is_ok_and(|found| found.is_empty()))?;
    Ok(())
}

#[test]
fn devices_are_given_by_name_to_those_who_may() -> Result<()> {
    let specs = tempfile::tempdir()?;
    std::fs::write(specs.path().join("kept"), "of the host\n")?;
    let spec = format!(
        "kind: vendor.com/dev
containerEdits: {{env: [VENDOR=1]}}
devices:
- name: null
  containerEdits:
    env: [DEVICE=null]
    deviceNodes: [{{path: /dev/mine, hostPath: /dev/null, permissions: rw}}]
    mounts: [{{hostPath: {}/kept, containerPath: /opt/kept, options: [ro]}}]
    additionalGids: [4321]
- {{name: free, annotations: {{org.mobyproject.buildkit.device.autoallow: \"true\", org.mobyproject.buildkit.device.class: any}}}}
- {{name: hooked, containerEdits: {{hooks: [{{hookName: createContainer, path: /x}}]}}}}
",
        specs.path().display()
    );
    std::fs::write(specs.path().join("vendor.yaml"), spec)?;
    let args = vec![format!("--cdi-spec-dir={}", specs.path().display())];
    let site = Site::with_options(&[], DaemonOptions { args, ..DaemonOptions::default() })?;
    let wants = |device: &str| {
        let script = "echo $VENDOR $DEVICE $(id -G) > /out; [ ! -c /dev/mine ] || stat -c %t:%T /dev/mine >> /out; \
                      cat /opt/kept >> /out || true; echo x 2>/dev/null > /dev/mine";
        shell(script).device(device, false).meta(uncached())
    };
    // A build that may have it all, and one that may have this one.
    for allow in ["--allow=device", "--allow=device=name=vendor.com/dev=null"] {
        assert_eq!(out(&site, wants("vendor.com/dev=null"), &[allow])?, "1 null 0 4321\n1:3\nof the host\n");
    }
    assert_eq!(out(&site, wants("any"), &[])?, "1 0\n");
    assert_eq!(out(&site, shell("ls /dev/mine > /out || true").device("none/of=them", true), &[])?, "");
    for (device, allow, want) in [
        ("vendor.com/dev=null", "", "device vendor.com/dev=null is requested by the build but not allowed"),
        ("vendor.com/dev=two", "--allow=device", "required device \"vendor.com/dev=two\" is not registered"),
        ("vendor.com/dev=two", "", "required device \"vendor.com/dev=two\" is not registered"),
        ("vendor.com/dev=hooked", "--allow=device", "it needs hooks, which are not supported"),
    ] {
        let args: Vec<&str> = [allow].into_iter().filter(|allow| !allow.is_empty()).collect();
        check_contains(&site.fails(&base()?.run(wants(device)).root(), &args)?, &[want]);
    }
    let workers = site.daemon.run(&["debug", "workers", "-v"])?.success()?.stdout;
    check_contains(&workers, &["Devices:", "vendor.com/dev=free", "AutoAllow:"]);
    Ok(())
}
