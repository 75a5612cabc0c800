//! System packages that the tests and the quick start use.

use anyhow::{Result, bail};

use crate::shell;

/// A program, in `PATH` or at a path, and the Debian package that has it.
type Need = (&'static str, &'static str);

/// What the quick start and every build need.
pub(crate) const BASIC: &[Need] = &[("busybox", "busybox-static"), ("docker-registry", "docker-registry")];
/// What the integration tests need besides.
pub(crate) const TESTS: &[Need] = &[
    ("runc", "runc"),
    ("crun", "crun"),
    ("openssl", "openssl"),
    ("skopeo", "skopeo"),
    ("umoci", "umoci"),
    ("git", "git"),
    ("ssh-agent", "openssh-client"),
    ("tar", "tar"),
    ("gzip", "gzip"),
    ("zstd", "zstd"),
    ("ip", "iproute2"),
    ("newuidmap", "uidmap"),
    ("iptables", "iptables"),
    ("/usr/lib/cni/bridge", "containernetworking-plugins"),
];

/// Makes sure that every program is in `PATH`, installing with apt as root, or says exactly what to install.
pub(crate) fn ensure(needs: &[&[Need]]) -> Result<()> {
    let missing: Vec<&str> = needs
        .iter()
        .flat_map(|n| n.iter())
        .filter(|(program, _)| !shell::has(program))
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if !shell::has("apt-get") {
        bail!("these programs are missing: install the packages {list}");
    }
    if shell::capture("id", &["-u"])?.trim() != "0" {
        bail!("these packages are missing: run `sudo apt-get install -y {list}`");
    }
    eprintln!("installing {list}");
    let quiet = [("DEBIAN_FRONTEND", "noninteractive")];
    let mut install = vec!["-qq", "-o", "Dpkg::Use-Pty=0", "install", "-y", "--no-install-recommends"];
    install.extend(&missing);
    // Package lists may be missing or old on a new machine; they are fetched only when the first try fails.
    if shell::run_with("apt-get", &install, &quiet).is_err() {
        shell::run_with("apt-get", &["-qq", "update"], &quiet)?;
        shell::run_with("apt-get", &install, &quiet)?;
    }
    Ok(())
}
