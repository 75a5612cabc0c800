use std::path::Path;

use anyhow::{Context, Result};

use crate::daemon::Daemon;
use crate::registry::Registry;

const BUSYBOX: &str = "/bin/busybox";

/// Makes a small base image from the distribution's static busybox, with the daemon itself, and pushes it.
/// Returns its reference, `127.0.0.1:PORT/NAME:latest`.
pub fn push_base_image(daemon: &Daemon, registry: &Registry, name: &str) -> Result<String> {
    let context = tempfile::tempdir()?;
    std::fs::copy(BUSYBOX, context.path().join("busybox"))
        .with_context(|| format!("no `{BUSYBOX}` (Debian package busybox-static)"))?;
    crate::write_tree(
        context.path(),
        &[
            (
                "Dockerfile",
                "FROM scratch\nCOPY busybox /bin/busybox\nCOPY etc /etc/\nRUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\n\
                 RUN mkdir -p /tmp /var /root /usr/bin && chmod 1777 /tmp\nENV PATH=/usr/bin:/bin\nCMD [\"/bin/sh\"]\n",
            ),
            (
                "etc/passwd",
                "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\napp:x:1000:1000::/home/app:/bin/sh\n",
            ),
            ("etc/group", "root:x:0:\nnogroup:x:65534:\napp:x:1000:\nextra:x:2000:app\n"),
        ],
    )?;
    let reference = format!("{}/{name}:latest", registry.address());
    let output = format!("--output=type=image,name={reference},push=true");
    daemon
        .build(Path::new(context.path()), &[&output])?
        .success()
        .context("failed to make the base image")?;
    Ok(reference)
}
