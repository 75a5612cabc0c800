//! The runtime spec of a step, as rendered from what it asks for.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};

use expect_test::{Expect, expect};
use kiln_executor::spec::{Machine, Surroundings, cgroups_path, make};
use kiln_executor::{
    ContainerId, DeviceEdits, DeviceNode, LinuxResources, NetworkNamespace, ProcessSpec, SecurityMode,
    Ulimit, oci,
};

fn process() -> ProcessSpec {
    ProcessSpec { args: vec!["/bin/true".into()], ..ProcessSpec::default() }
}

fn bind(destination: &str) -> oci::Mount {
    oci::Mount {
        destination: destination.into(),
        kind: "bind".into(),
        source: PathBuf::from("/src").join(destination.trim_start_matches('/')),
        options: vec!["rbind".into()],
    }
}

fn spec(process: &ProcessSpec, machine: &Machine, network: &NetworkNamespace, mounts: &[&str]) -> oci::Spec {
    let around = Surroundings {
        id: &ContainerId::new("abc").unwrap(),
        rootfs: Path::new("/bundle/rootfs"),
        user: oci::User { uid: 1, gid: 2, additional_gids: vec![2] },
        mounts: mounts.iter().map(|destination| bind(destination)).collect(),
        hosts: Path::new("/shared/hosts"),
        resolv_conf: Path::new("/shared/resolv.conf"),
        network,
        machine,
    };
    make(process, around).unwrap()
}

fn check_mounts(spec: &oci::Spec, want: &Expect) {
    let lines: Vec<String> = spec
        .mounts
        .iter()
        .map(|mount| {
            let (to, from) = (mount.destination.display(), mount.source.display());
            format!("{to} {} {from} {}\n", mount.kind, mount.options.join(","))
        })
        .collect();
    want.assert_eq(&lines.concat());
}

#[test]
fn mounts_and_their_order() {
    let spec =
        spec(&process(), &Machine::default(), &NetworkNamespace::Host, &["/z", "/a/b", "/a", "/dev/shm"]);
    check_mounts(
        &spec,
        &expect![[r#"
            /proc proc proc nosuid,noexec,nodev
            /dev tmpfs tmpfs nosuid,strictatime,mode=755,size=65536k
            /dev/pts devpts devpts nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5
            /dev/shm bind /src/dev/shm rbind
            /dev/mqueue mqueue mqueue nosuid,noexec,nodev
            /sys sysfs sysfs nosuid,noexec,nodev,ro
            /etc/resolv.conf bind /shared/resolv.conf nosuid,noexec,nodev,rbind,ro
            /etc/hosts bind /shared/hosts nosuid,noexec,nodev,rbind,ro
            /sys/fs/cgroup cgroup cgroup ro,nosuid,noexec,nodev
            /a bind /src/a rbind
            /a/b bind /src/a/b rbind
            /z bind /src/z rbind
        "#]],
    );
}

#[test]
fn rootless_steps_have_no_sys_and_no_groups() {
    let machine = Machine { rootless: true, ..Machine::default() };
    let spec = spec(&process(), &machine, &NetworkNamespace::Host, &[]);
    assert!(!spec.mounts.iter().any(|mount| mount.destination.starts_with("/sys")));
    assert_eq!((spec.linux.resources, spec.linux.cgroups_path), (None, None));
}

#[test]
fn everything_else() {
    let mut process = process();
    process.ulimits = vec![Ulimit { name: "nofile".into(), soft: 1, hard: 2 }];
    process.resources = LinuxResources { memory: 1 << 20, cpu_quota: 5000, ..LinuxResources::default() };
    process.hostname = Some("me".into());
    process.env = vec!["B=2".into(), "A=1".into()];
    let machine = Machine { unified_cgroups: true, ..Machine::default() };
    let mut spec = spec(&process, &machine, &NetworkNamespace::Empty, &[]);
    spec.mounts.clear();
    let got = serde_json::to_string_pretty(&spec).unwrap();
    expect_test::expect_file!["../testdata/spec.json"].assert_eq(&(got + "\n"));
}

#[test]
fn insecure_steps_are_not_held() {
    let mut process = process();
    process.security = SecurityMode::Insecure;
    let machine = Machine { seccomp: true, apparmor_profile: Some("p".into()), ..Machine::default() };
    let spec = spec(&process, &machine, &NetworkNamespace::Host, &[]);
    assert_eq!(spec.linux.seccomp, None);
    assert_eq!(spec.process.apparmor_profile, None);
    assert!(spec.linux.masked_paths.is_empty() && spec.linux.readonly_paths.is_empty());
    assert_eq!(spec.process.capabilities.bounding, spec.process.capabilities.ambient);
    let writable = |path: &str| {
        let mount = spec.mounts.iter().find(|mount| mount.destination == Path::new(path)).unwrap();
        mount.options.iter().any(|option| option == "rw")
    };
    assert!(writable("/sys") && writable("/sys/fs/cgroup"));
}

#[test]
fn steps_that_make_no_sense_are_refused() {
    for args in [vec![], vec!["a\0b".to_owned()]] {
        let process = ProcessSpec { args, ..ProcessSpec::default() };
        assert!(
            kiln_executor::spec::oci_process(&process, oci::User::default(), &Machine::default()).is_err()
        );
    }
}

#[track_caller]
fn check_group(asked: Option<&str>, configured: Option<&str>, want: &str) {
    let machine = Machine { cgroup_parent: configured.map(str::to_owned), ..Machine::default() };
    assert_eq!(cgroups_path(&ContainerId::new("abc").unwrap(), asked, &machine), want);
}

#[test]
fn control_groups() {
    check_group(None, None, "/buildkit/abc");
    check_group(Some(""), None, "/buildkit/abc");
    check_group(Some("builds"), None, "/builds/buildkit/abc");
    check_group(Some("/a/b/"), Some("c"), "/a/b/buildkit/abc");
    check_group(None, Some("c"), "/c/buildkit/abc");
    check_group(Some("user.slice:"), None, "user.slice:abc");
    check_group(Some("../../up"), None, "/up/buildkit/abc");
}

#[test]
fn devices_are_nodes_rules_mounts_and_groups() {
    let mut process = process();
    process.devices = DeviceEdits {
        env: vec!["PATH=/of/the/device".into()],
        nodes: vec![DeviceNode {
            path: "/dev/mine".into(),
            kind: "b".into(),
            major: 7,
            minor: 8,
            file_mode: 0o600,
            uid: None,
            gid: Some(6),
            access: "r".into(),
        }],
        mounts: vec![oci::Mount {
            destination: "/opt".into(),
            kind: "bind".into(),
            source: "/usr".into(),
            options: vec!["rbind".into()],
        }],
        groups: vec![44, 0],
    };
    let spec = spec(&process, &Machine::default(), &NetworkNamespace::Host, &["/opt", "/z"]);
    let device = &spec.linux.devices[0];
    assert_eq!(
        (device.path.as_str(), device.major, device.uid, device.gid),
        ("/dev/mine", 7, spec.process.user.uid, 6)
    );
    let rule = spec.linux.resources.unwrap().devices.pop().unwrap();
    assert_eq!((rule.allow, rule.kind.as_deref(), rule.access.as_str()), (true, Some("b"), "r"));
    let opt: Vec<_> = spec.mounts.iter().filter(|mount| mount.destination == Path::new("/opt")).collect();
    assert_eq!((opt.len(), opt[0].source.as_path()), (1, Path::new("/usr")));
    assert!(spec.process.user.additional_gids.contains(&44));
    assert_eq!(spec.process.env.iter().filter(|variable| variable.starts_with("PATH=")).count(), 1);
}
