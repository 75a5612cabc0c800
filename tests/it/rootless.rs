//! The daemon as an ordinary user.

use anyhow::Result;
use kiln_tests::DaemonOptions;

use crate::support::{Site, check_contains, processes_with};

/// A user that every Debian has, and that owns nothing.
const USER: &str = "games";
/// Steps of a rootless daemon see themselves as root.
const STEPS: &str = "FROM scratch
COPY busybox /bin/busybox
SHELL [\"/bin/busybox\", \"sh\", \"-ec\"]
ENV PATH=/bin
RUN busybox --install -s /bin
RUN id -u > /ids; cat /proc/self/uid_map >> /ids; echo x > /dev/null; ! mount -t tmpfs t /bin; test -c /dev/full
RUN rm /bin/id
RUN ls /bin/id && exit 1; test $(ls /proc | grep -c '^[0-9]*$') -lt 9
";

/// Becomes the daemon of an ordinary user, in a mount namespace where the user has these ranges of ids. `$5` is the
/// daemon's root, below a directory that is to be the user's, and `$1` a program that the user may not be able to reach.
fn by_user(ranges: &str) -> Vec<String> {
    let script = format!(
        "dir=$(dirname \"$5\"); printf '{ranges}' > \"$dir/ranges\"; cp \"$1\" \"$dir/daemon\"
        mount --bind \"$dir/ranges\" /etc/subuid; mount --bind \"$dir/ranges\" /etc/subgid; chown -R {USER}: \"$dir\"
        shift; exec setpriv --reuid={USER} --regid={USER} --clear-groups \"$dir/daemon\" \"$@\""
    );
    ["unshare", "--mount", "sh", "-ec", &script, "sh"].map(str::to_owned).into()
}

fn site(ranges: &str) -> Result<Site> {
    let site =
        Site::with_options(&[], DaemonOptions { through: by_user(ranges), ..DaemonOptions::default() })?;
    std::fs::copy("/bin/busybox", site.context().join("busybox"))?;
    Ok(site)
}

#[test]
fn ranges_of_ids_are_mapped() -> Result<()> {
    let mut site = site(&format!("{USER}:300000:65536\\n"))?;
    let steps = format!("{STEPS}RUN touch /owned; chown 1000:1001 /owned; stat -c %u:%g /owned >> /ids\n");
    let ids = site.dockerfile(&steps, &[])?.read("ids")?;
    let lines: Vec<Vec<&str>> = ids.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!((&lines[0][..], &lines[2][..]), (&["0"][..], &["1", "300000", "65536"][..]), "{ids}");
    assert_eq!(lines[3], ["1000:1001"], "{ids}");
    let pid = site.daemon.pid().unwrap_or_default();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    assert!(!status.lines().any(|line| line.starts_with("Uid:\t0\t")), "{status}");
    let marks = site.daemon.root().display().to_string();
    assert_eq!(site.daemon.stop()?, Some(0));
    assert_eq!(processes_with(&marks)?, Vec::<u32>::new());
    Ok(())
}

#[test]
fn one_id_is_enough_and_said_to_be_all() -> Result<()> {
    let site = site("")?;
    let ids = site.dockerfile(STEPS, &[])?.read("ids")?;
    let lines: Vec<&str> = ids.lines().collect();
    assert_eq!((lines.len(), lines[0]), (2, "0"), "{ids}");
    check_contains(&site.daemon.log(), &["steps have one user id", "name no ranges for this user"]);
    Ok(())
}
