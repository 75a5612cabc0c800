//! Networks of steps through CNI plugins, by a daemon in a network namespace of its own.

use std::path::Path;

use anyhow::Result;
use kiln_tests::{DaemonOptions, wait_for};

use crate::support::{LIMIT, Site, check_contains};

const BUSYBOX: &str = "/bin/busybox";
/// Nobody else listens there, in the daemon's network namespace.
const TCP: &str = "tcp://0.0.0.0:4321";

/// Addresses that are taken are kept for the machine; here, for the daemon alone.
fn alone() -> Vec<String> {
    let script =
        "ip link set lo up && mkdir -p /var/lib/cni && mount -t tmpfs cni /var/lib/cni && exec \"$@\"";
    ["unshare", "--net", "--mount", "--propagation=slave", "sh", "-ec", script, "sh"]
        .map(str::to_owned)
        .into()
}

fn site(config: &str) -> Result<Site> {
    let options = DaemonOptions {
        args: vec!["--addr".into(), TCP.into()],
        config: format!("[worker.oci]\n{config}"),
        through: alone(),
        ..DaemonOptions::default()
    };
    let site = Site::with_options(&[], options)?;
    std::fs::copy(BUSYBOX, site.context().join("busybox"))?;
    Ok(site)
}

/// Steps without any image: the daemon reaches no registry.
fn dockerfile(steps: &str) -> String {
    let base = "FROM scratch\nCOPY busybox /bin/busybox\nSHELL [\"/bin/busybox\", \"sh\", \"-ec\"]\n\
                ENV PATH=/bin\nRUN busybox --install -s /bin";
    format!("{base}\n{steps}\n")
}

fn namespaces(site: &Site) -> usize {
    let dir = site.daemon.root().join("kiln/net/cni");
    let names = std::fs::read_dir(dir).into_iter().flatten().flatten();
    names.filter(|entry| Path::new(&entry.file_name()).extension().is_none()).count()
}

#[test]
fn the_bridge_is_all_that_steps_see() -> Result<()> {
    let mut site =
        site("networkMode = \"bridge\"\nbridgeName = \"kilnbr0\"\nbridgeSubnet = \"10.214.0.0/24\"\n")?;
    let workers = site.daemon.run(&["debug", "workers", "-v"])?.success()?;
    check_contains(&workers.stdout, &["org.mobyproject.buildkit.worker.network:", "cni"]);
    let steps = "RUN ip -o -4 addr show dev eth0 | grep -o '10.214.0.[0-9]*/24' > /address\n\
                 RUN ip route | grep default > /route; ping -c 1 -W 9 10.214.0.1 > /dev/null\n\
                 RUN if nc 127.0.0.1 4321 < /dev/null; then exit 1; fi; ! ls /run/buildkit\n\
                 RUN --network=none ip -o link | cut -d: -f2 > /none; test \"$(ls /sys/class/net)\" = lo";
    let built = site.dockerfile(&dockerfile(steps), &[])?;
    assert!(built.read("address")?.starts_with("10.214.0."), "{}", built.read("address")?);
    check_contains(&built.read("route")?, &["default via 10.214.0.1 dev eth0"]);
    assert_eq!(built.read("none")?.trim(), "lo");
    // A chain of steps uses one namespace and has another one ready at most.
    assert!((1..=2).contains(&namespaces(&site)), "{}", namespaces(&site));

    site.daemon.kill()?;
    assert!(namespaces(&site) >= 1);
    site.daemon.restart()?;
    wait_for("what was left to be removed", LIMIT, None, || namespaces(&site) <= 1)?;
    assert_eq!(site.daemon.stop()?, Some(0));
    assert_eq!(namespaces(&site), 0);
    Ok(())
}

#[test]
fn a_configuration_of_the_operators() -> Result<()> {
    let file = tempfile::NamedTempFile::new()?;
    let list = r#"{"cniVersion":"0.4.0","name":"own","plugins":[
        {"type":"ptp","ipam":{"type":"host-local","subnet":"10.215.0.0/24"}},
        {"type":"tuning","sysctl":{"net.core.somaxconn":"77"}}]}"#;
    std::fs::write(&file, list)?;
    let config = format!("cniConfigPath = \"{}\"\ncniPoolSize = 0\n", file.path().display());
    let site = site(&config)?;
    let steps =
        "RUN cat /proc/sys/net/core/somaxconn > /out; ip -o -4 addr show dev eth0 | grep -q 10.215.0.";
    assert_eq!(site.dockerfile(&dockerfile(steps), &[])?.read("out")?, "77\n");
    Ok(())
}
