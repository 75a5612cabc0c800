//! Steps for other platforms.

use std::os::unix::fs::PermissionsExt as _;

use anyhow::Result;
use kiln_tests::DaemonOptions;

use crate::support::{Site, check_contains};

const BUSYBOX: &str = "/bin/busybox";
const PLATFORM: &str = "--opt=platform=linux/ppc64";
/// A program for a processor that runs nothing: the kernel does not know what to do with it.
const FOREIGN: &[u8] = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x16\xff";

/// A script is an emulator where there is a shell to run it.
const EMULATOR: &str = "#!/bin/busybox sh\necho emulated: \"$@\" > /out\n";

fn dockerfile(step: &str) -> String {
    format!("FROM scratch\nCOPY busybox foreign /bin/\nRUN [\"{step}\", \"x\"]\n")
}

fn site(options: DaemonOptions) -> Result<Site> {
    let site = Site::with_options(&[], options)?;
    std::fs::copy(BUSYBOX, site.context().join("busybox"))?;
    std::fs::write(site.context().join("foreign"), FOREIGN)?;
    std::fs::set_permissions(site.context().join("foreign"), std::fs::Permissions::from_mode(0o755))?;
    Ok(site)
}

#[test]
fn what_the_machine_does_not_run_is_said() -> Result<()> {
    let site = site(DaemonOptions::default())?;
    site.write(&[("Dockerfile", &dockerfile("/bin/foreign"))])?;
    let failed = site.build(&[PLATFORM])?.failure()?;
    check_contains(
        &failed.stderr,
        &["this machine does not run programs for linux/ppc64", "qemu-user-static", "buildkit-qemu-ppc64"],
    );
    let workers = site.daemon.run(&["debug", "workers", "-v"])?.success()?.stdout;
    check_contains(&workers, &["linux/"]);
    Ok(())
}

#[test]
fn an_emulator_is_put_in_front() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let emulator = dir.path().join("buildkit-qemu-ppc64");
    std::fs::write(&emulator, EMULATOR)?;
    std::fs::set_permissions(&emulator, std::fs::Permissions::from_mode(0o755))?;
    let path = format!("{}:{}", dir.path().display(), std::env::var("PATH")?);
    let site = site(DaemonOptions { env: vec![("PATH".into(), path)], ..DaemonOptions::default() })?;
    assert_eq!(
        site.dockerfile(&dockerfile("/bin/foreign"), &[PLATFORM])?.read("out")?,
        "emulated: /bin/foreign x\n"
    );
    Ok(())
}
