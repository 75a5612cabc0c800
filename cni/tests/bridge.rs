//! The daemon's own bridge with the real plugins and real namespaces, inside a network and mount namespace of its own.
//! Needs root.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kiln_cni::{CniNetwork, CniOptions, KernelNamespaces, NetworkList, Plugins};
use kiln_executor::{Network, NetworkLease, NetworkNamespace, NetworkRequest};

const PATIENCE: Duration = Duration::from_secs(20);
/// Set in the process that is inside.
const INSIDE: &str = "KILN_TEST_INSIDE";

#[test]
fn the_bridge_connects() {
    let missing = [
        ("root", is_root()),
        ("the bridge plugin", has(&["/opt/cni/bin/bridge", "/usr/lib/cni/bridge"])),
        ("iptables", has(&["/usr/sbin/iptables", "/sbin/iptables"])),
    ];
    if let Some((what, _)) = missing.iter().find(|(_, there)| !there) {
        assert!(std::env::var_os("CI").is_none(), "on CI nothing is skipped: {what} is missing");
        println!("skipped: {what} is missing");
        return;
    }
    let script = "ip link set lo up && mkdir -p /var/lib/cni && mount -t tmpfs cni /var/lib/cni && mount -t sysfs sysfs /sys && exec \"$@\"";
    let status = Command::new("unshare")
        .args(["--net", "--mount", "sh", "-ec", script, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "inside", "--nocapture"])
        .env(INSIDE, "1")
        .status()
        .unwrap();
    assert!(status.success());
}

#[tokio::test]
async fn inside() {
    if std::env::var_os(INSIDE).is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut plugins = Plugins::new(None);
    let list = plugins.bridge(NetworkList::bridge("kiln0", "10.213.0.0/24").unwrap()).unwrap();
    let options = || CniOptions {
        state: dir.path().to_owned(),
        list: list.clone(),
        plugins: plugins.clone(),
        ready: 1,
    };
    let network = CniNetwork::open(options(), Arc::new(KernelNamespaces)).unwrap();
    let one = network.lease(NetworkRequest::default()).await.unwrap();
    let two = network.lease(NetworkRequest { hostname: Some("box"), privileged: false }).await.unwrap();
    for lease in [&one, &two] {
        let shown = run_in(&**lease, &["ip", "-brief", "address"]);
        assert!(shown.contains("lo ") && shown.contains("127.0.0.1/8"), "{shown}");
        assert!(shown.contains("eth0@") && shown.contains(" 10.213.0."), "{shown}");
        assert!(run_in(&**lease, &["ip", "route"]).contains("default via 10.213.0.1 dev eth0"));
    }
    run_in(&*one, &["busybox", "ping", "-c", "1", "-W", "9", "10.213.0.1"]);
    let (used, idle) = (one.usage().unwrap(), two.usage().unwrap());
    assert!(
        used.tx_bytes >= 84 && used.rx_bytes >= 84 && used.rx_packets > idle.rx_packets,
        "{used:?} {idle:?}"
    );
    // Two in use, and one that is made ready beside the test.
    wait_for(|| addresses().len() == 3).await;
    // Killed, it gives nothing back; the next one does.
    std::mem::forget((one, two, network));
    let network = CniNetwork::open(CniOptions { ready: 0, ..options() }, Arc::new(KernelNamespaces)).unwrap();
    wait_for(|| addresses().is_empty()).await;
    network.close().await;
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(dir.path().to_str().unwrap()), "{mounts}");
}

async fn wait_for(mut condition: impl FnMut() -> bool) {
    let since = Instant::now();
    while !condition() {
        assert!(since.elapsed() < PATIENCE, "it does not come: {:?}", addresses());
        tokio::task::yield_now().await;
    }
}

fn run_in(lease: &dyn NetworkLease, command: &[&str]) -> String {
    let NetworkNamespace::At(path) = lease.namespace() else { unreachable!() };
    let output =
        Command::new("nsenter").arg(format!("--net={}", path.display())).args(command).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What is taken of the subnet.
fn addresses() -> Vec<String> {
    let Ok(entries) = std::fs::read_dir("/var/lib/cni/networks/buildkit") else { return Vec::new() };
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with("10.")).collect()
}

fn has(paths: &[&str]) -> bool {
    paths.iter().any(|path| Path::new(path).exists())
}

fn is_root() -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| status.contains("\nUid:\t0\t0\t"))
}
