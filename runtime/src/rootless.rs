//! The way of an ordinary user's process into a user namespace of its own making, in which it is root.

use std::io::{self, Write as _};
use std::process::{Command, Stdio};

use rustix::thread::UnshareFlags;

use crate::sys::{self, SingleThreaded};

/// The programs that map ranges of ids, which the system's administrator has given to the user.
const MAPPERS: [&str; 2] = ["newuidmap", "newgidmap"];
/// Where those ranges are.
const RANGES: [&str; 2] = ["/etc/subuid", "/etc/subgid"];
/// The largest such file, or list of users, that is read.
const MAX_FILE: u64 = 10 * 1024 * 1024;

/// Which ids there are in a user namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ids {
    /// Root, and the user's ranges after it.
    Ranges,
    /// Root alone, for this reason.
    RootOnly(String),
}

/// Moves this process, of an ordinary user, into a user namespace where it is root, and into a mount namespace that goes
/// with it. Before any other thread is started. Blocks.
///
/// # Errors
/// Where users may not make namespaces, or a mapping is refused.
pub fn enter_user_namespace() -> io::Result<Ids> {
    SingleThreaded::check()?;
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let user = user_name(uid);
    let ranges = RANGES.map(|file| range(&read(file), uid, user.as_deref()));
    let reason = match &ranges {
        [Some(_), Some(_)] => MAPPERS
            .iter()
            .find(|program| !installed(program))
            .map(|program| format!("`{program}` is not installed (Debian's package uidmap)")),
        _ => Some(format!("{} and {} name no ranges for this user", RANGES[0], RANGES[1])),
    };
    match (ranges, reason) {
        ([Some(uids), Some(gids)], None) => {
            // Before the namespace: inside, the programs would not be what lets them map.
            let mut mapper = mapper(&[uid, gid], &[uids, gids])?;
            sys::unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNS)?;
            if let Some(mut go) = mapper.stdin.take() {
                go.write_all(b"go\n")?;
            }
            let output = mapper.wait_with_output()?;
            if !output.status.success() {
                let said = String::from_utf8_lossy(&output.stderr);
                return Err(io::Error::other(format!("ids cannot be mapped: {}", said.trim())));
            }
            Ok(Ids::Ranges)
        }
        (_, reason) => {
            sys::unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNS)?;
            // Without this the kernel lets nobody map a group by himself.
            std::fs::write("/proc/self/setgroups", "deny")?;
            std::fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
            std::fs::write("/proc/self/gid_map", format!("0 {gid} 1"))?;
            Ok(Ids::RootOnly(reason.unwrap_or_default()))
        }
    }
}

/// Waits for a line, then maps the ids of this process. The programs look up the range themselves, and refuse another.
fn mapper(own: &[u32; 2], ranges: &[Range; 2]) -> io::Result<std::process::Child> {
    const SCRIPT: &str = "read -r go && newuidmap \"$1\" 0 \"$2\" 1 1 \"$3\" \"$4\" && exec newgidmap \"$1\" 0 \"$5\" 1 1 \"$6\" \"$7\"";
    let mut command = Command::new("/bin/sh");
    command.args(["-c", SCRIPT, "sh"]).arg(std::process::id().to_string());
    for (own, range) in own.iter().zip(ranges) {
        command.args([own.to_string(), range.start.to_string(), range.count.to_string()]);
    }
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    start: u32,
    count: u32,
}

/// The first range of a user, in lines of `NAME:START:COUNT`.
fn range(text: &str, uid: u32, name: Option<&str>) -> Option<Range> {
    text.lines().find_map(|line| {
        let fields: Vec<&str> = line.trim().split(':').collect();
        let [who, start, count] = fields.as_slice() else { return None };
        let is_it = Some(*who) == name || who.parse() == Ok(uid);
        let range = Range { start: start.parse().ok()?, count: count.parse().ok()? };
        (is_it && range.count > 0).then_some(range)
    })
}

fn user_name(uid: u32) -> Option<String> {
    read("/etc/passwd").lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        (fields.get(2)?.parse() == Ok(uid)).then(|| (*fields.first().unwrap_or(&"")).to_owned())
    })
}

fn installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

fn read(path: &str) -> String {
    use std::io::Read as _;
    let mut text = String::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(MAX_FILE).read_to_string(&mut text));
    read.map(|_| text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_users() {
        let text = "root:1:2\nann:100000:65536\n# note\nbob:x:1\n1001:300000:10\nann:5:5\nempty:7:0\n";
        let range = |uid, name| range(text, uid, name).map(|range| (range.start, range.count));
        assert_eq!(range(1000, Some("ann")), Some((100_000, 65_536)));
        assert_eq!(range(1001, None), Some((300_000, 10)));
        assert_eq!((range(5, Some("bob")), range(6, Some("empty")), range(7, None)), (None, None, None));
    }
}
