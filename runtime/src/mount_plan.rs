//! Mounts of a spec, with their options told apart.

use std::path::PathBuf;

use kiln_executor::oci;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

const READ_ONLY: u64 = 0x1;
const NO_SUID: u64 = 0x2;
const NO_DEV: u64 = 0x4;
const NO_EXEC: u64 = 0x8;
const ACCESS_TIMES: u64 = 0x70;
const NO_ACCESS_TIME: u64 = 0x10;
const STRICT_ACCESS_TIME: u64 = 0x20;
const NO_DIR_ACCESS_TIME: u64 = 0x80;
const NO_SYMLINKS: u64 = 0x20_0000;

/// One mount.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct MountPlan {
    pub(crate) dest: PathBuf,
    pub(crate) source: PathBuf,
    pub(crate) kind: MountKind,
    /// Attributes of the mount itself (`MOUNT_ATTR_…`).
    pub(crate) attributes: Attributes,
    /// Attributes of it and everything mounted below.
    pub(crate) recursive: Attributes,
    pub(crate) propagation: Option<Propagation>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum MountKind {
    /// Something of the host, with what is mounted below it or without.
    Bind { recursive: bool },
    /// A new filesystem, with its parameters.
    New { filesystem: String, parameters: Vec<(String, Option<String>)> },
    /// The container's control groups.
    ControlGroups,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Attributes {
    pub(crate) set: u64,
    pub(crate) clear: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Propagation {
    /// `MS_…`.
    pub(crate) kind: u64,
    pub(crate) recursive: bool,
}

impl MountPlan {
    pub(crate) fn new(mount: &oci::Mount) -> Result<Self> {
        if !mount.destination.is_absolute() {
            return Err(Error::spec(format!(
                "mount point `{}` is not absolute",
                mount.destination.display()
            )));
        }
        let mut bind = None;
        let mut parameters = Vec::new();
        let mut plan = Self {
            dest: mount.destination.clone(),
            source: mount.source.clone(),
            kind: MountKind::ControlGroups,
            attributes: Attributes::default(),
            recursive: Attributes::default(),
            propagation: None,
        };
        for option in &mount.options {
            match option.as_str() {
                "" | "defaults" => {}
                "bind" => bind = Some(bind.unwrap_or(false)),
                "rbind" => bind = Some(true),
                option if plan.set_attribute(option) => {}
                option @ ("remount" | "tmpcopyup" | "idmap" | "ridmap") => {
                    return Err(Error::spec(format!(
                        "mount option {option} of `{}` is not supported",
                        mount.destination.display()
                    )));
                }
                option => parameters.push(match option.split_once('=') {
                    Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                    None => (option.to_owned(), None),
                }),
            }
        }
        plan.kind = match (bind, mount.kind.as_str()) {
            (Some(recursive), _) => MountKind::Bind { recursive },
            (None, "bind") => MountKind::Bind { recursive: false },
            (None, "cgroup" | "cgroup2") => MountKind::ControlGroups,
            (None, filesystem) => MountKind::New {
                filesystem: filesystem.to_owned(),
                parameters: std::mem::take(&mut parameters),
            },
        };
        if let Some((name, _)) = parameters.first() {
            return Err(Error::spec(format!(
                "mount option {name} of `{}` is not known",
                mount.destination.display()
            )));
        }
        Ok(plan)
    }

    /// Whether it was an option that every mount can have.
    fn set_attribute(&mut self, option: &str) -> bool {
        let (recursive, name) = match option.strip_prefix('r') {
            Some(rest) if attribute(rest).is_some() && attribute(option).is_none() => (true, rest),
            _ => (false, option),
        };
        if let Some((set, clear)) = attribute(name) {
            let attributes = if recursive { &mut self.recursive } else { &mut self.attributes };
            attributes.set = attributes.set & !clear | set;
            // What is not asked for stays as the source has it; only times of access are one field of many values.
            attributes.clear |= clear & ACCESS_TIMES;
            return true;
        }
        let kind = match option.strip_prefix('r').unwrap_or(option) {
            "private" => libc::MS_PRIVATE,
            "shared" => libc::MS_SHARED,
            "slave" => libc::MS_SLAVE,
            "unbindable" => libc::MS_UNBINDABLE,
            _ => return false,
        };
        self.propagation = Some(Propagation { kind, recursive: option.starts_with('r') });
        true
    }
}

/// What an option sets and clears.
fn attribute(option: &str) -> Option<(u64, u64)> {
    Some(match option {
        "ro" => (READ_ONLY, 0),
        "rw" => (0, READ_ONLY),
        "nosuid" => (NO_SUID, 0),
        "suid" => (0, NO_SUID),
        "nodev" => (NO_DEV, 0),
        "dev" => (0, NO_DEV),
        "noexec" => (NO_EXEC, 0),
        "exec" => (0, NO_EXEC),
        "noatime" => (NO_ACCESS_TIME, ACCESS_TIMES),
        "strictatime" => (STRICT_ACCESS_TIME, ACCESS_TIMES),
        "relatime" | "atime" | "nostrictatime" => (0, ACCESS_TIMES),
        "nodiratime" => (NO_DIR_ACCESS_TIME, 0),
        "diratime" => (0, NO_DIR_ACCESS_TIME),
        "nosymfollow" => (NO_SYMLINKS, 0),
        "symfollow" => (0, NO_SYMLINKS),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(kind: &str, options: &[&str]) -> Result<MountPlan> {
        MountPlan::new(&oci::Mount {
            destination: "/d".into(),
            kind: kind.into(),
            source: "s".into(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
        })
    }

    #[test]
    fn options_are_told_apart() {
        let got = plan("tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]).unwrap();
        let parameter = |name: &str, value: &str| (name.to_owned(), Some(value.to_owned()));
        let parameters = vec![parameter("mode", "755"), parameter("size", "65536k")];
        assert_eq!(got.kind, MountKind::New { filesystem: "tmpfs".into(), parameters });
        let set = NO_SUID | STRICT_ACCESS_TIME;
        assert_eq!(got.attributes, Attributes { set, clear: ACCESS_TIMES });
        let got = plan("bind", &["rbind", "ro", "rnoexec", "rslave"]).unwrap();
        assert_eq!(got.kind, MountKind::Bind { recursive: true });
        assert_eq!((got.attributes.set, got.recursive.set), (READ_ONLY, NO_EXEC));
        assert_eq!(got.propagation, Some(Propagation { kind: libc::MS_SLAVE, recursive: true }));
        let got = plan("bind", &["rbind", "rro", "ro", "rw"]).unwrap();
        assert_eq!(got.attributes, Attributes::default());
        assert_eq!(got.recursive.set, READ_ONLY);
        assert_eq!(plan("cgroup", &["ro"]).unwrap().kind, MountKind::ControlGroups);
    }

    #[test]
    fn unknown_options_are_named() {
        let got = plan("bind", &["bind", "size=3"]).unwrap_err().to_string();
        assert_eq!(got, "mount option size of `/d` is not known");
        let got = plan("tmpfs", &["tmpcopyup"]).unwrap_err().to_string();
        assert_eq!(got, "mount option tmpcopyup of `/d` is not supported");
    }
}
