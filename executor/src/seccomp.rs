//! The system call filter of a step: a table of facts, `seccomp.json`, narrowed to one machine.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::oci::{Seccomp, SyscallArg, Syscalls};
use crate::spec::DEFAULT_CAPABILITIES;

/// The filter for processes with the default capabilities on this machine. Made once: every step needs it.
pub(crate) fn default_filter() -> Result<Seccomp> {
    static FILTER: OnceLock<Seccomp> = OnceLock::new();
    if let Some(filter) = FILTER.get() {
        return Ok(filter.clone());
    }
    let filter = filter_for(std::env::consts::ARCH, &DEFAULT_CAPABILITIES)?;
    Ok(FILTER.get_or_init(|| filter).clone())
}

/// Whether the kernel has filters.
pub(crate) fn is_supported() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| std::path::Path::new("/proc/sys/kernel/seccomp/actions_avail").exists())
}

fn filter_for(arch: &str, capabilities: &[&str]) -> Result<Seccomp> {
    let table: Table = serde_json::from_str(include_str!("seccomp.json"))
        .map_err(|error| Error::InvalidSpec { reason: format!("table of system calls: {error}") })?;
    let mut syscalls = vec![allow(table.allowed, Vec::new())];
    let mut add = |names: Vec<String>| syscalls.push(allow(names, Vec::new()));
    for (_, names) in table.by_arch.into_iter().filter(|(name, _)| name == arch) {
        add(names);
    }
    for (capability, names) in table.by_capability {
        if capabilities.contains(&capability.as_str()) {
            add(names);
        }
    }
    for rule in table.by_argument {
        let needed = rule.without_capability.as_deref();
        if needed.is_some_and(|capability| capabilities.contains(&capability)) {
            continue;
        }
        let index = rule.index_on.get(arch).copied().unwrap_or(rule.index);
        for value in rule.values {
            let arg = SyscallArg { index, value, value_two: 0, op: rule.op.clone() };
            syscalls.push(allow(vec![rule.name.clone()], vec![arg]));
        }
    }
    for refused in table.refused {
        if capabilities.contains(&refused.without_capability.as_str()) {
            continue;
        }
        syscalls.push(Syscalls {
            names: vec![refused.name],
            action: "SCMP_ACT_ERRNO".into(),
            errno_ret: Some(refused.errno),
            args: Vec::new(),
        });
    }
    Ok(Seccomp {
        default_action: "SCMP_ACT_ERRNO".into(),
        default_errno_ret: Some(table.errno),
        architectures: table.architectures.get(arch).cloned().unwrap_or_default(),
        syscalls,
    })
}

fn allow(names: Vec<String>, args: Vec<SyscallArg>) -> Syscalls {
    Syscalls { names, action: "SCMP_ACT_ALLOW".into(), errno_ret: None, args }
}

/// The form of `seccomp.json`. Architectures are named as Rust names them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    /// What a call that is not listed returns.
    errno: u32,
    /// The architectures whose programs a kernel of each runs.
    architectures: BTreeMap<String, Vec<String>>,
    allowed: Vec<String>,
    by_arch: BTreeMap<String, Vec<String>>,
    by_capability: BTreeMap<String, Vec<String>>,
    by_argument: Vec<ByArgument>,
    refused: Vec<Refused>,
}

/// A call allowed when one of its arguments has one of the values.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ByArgument {
    name: String,
    index: u32,
    /// Where the argument is in another place.
    #[serde(default)]
    index_on: BTreeMap<String, u32>,
    op: String,
    values: Vec<u64>,
    #[serde(default)]
    without_capability: Option<String>,
}

/// A call that answers with another error, so that programs fall back.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Refused {
    name: String,
    errno: u32,
    without_capability: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(filter: &Seccomp, name: &str) -> bool {
        filter.syscalls.iter().any(|rule| {
            rule.action == "SCMP_ACT_ALLOW" && rule.args.is_empty() && rule.names.iter().any(|n| n == name)
        })
    }

    #[test]
    fn default_capabilities_get_the_usual_calls() {
        for arch in ["x86_64", "aarch64", "s390x", "riscv64", "powerpc64"] {
            let filter = filter_for(arch, &DEFAULT_CAPABILITIES).unwrap();
            for name in ["openat", "execve", "chroot", "ptrace", "statx", "rseq"] {
                assert!(allows(&filter, name), "{arch} {name}");
            }
            for name in
                ["mount", "bpf", "keyctl", "unshare", "clone", "clone3", "open_by_handle_at", "reboot"]
            {
                assert!(!allows(&filter, name), "{arch} {name}");
            }
            let clone = filter.syscalls.iter().find(|rule| rule.names == ["clone"]).unwrap();
            assert_eq!(clone.args[0].index, u32::from(arch == "s390x"));
            assert!(
                filter.syscalls.iter().any(|rule| rule.names == ["clone3"] && rule.errno_ret == Some(38))
            );
        }
        let filter = filter_for("x86_64", &DEFAULT_CAPABILITIES).unwrap();
        assert!(allows(&filter, "arch_prctl"));
        assert_eq!(filter.architectures, ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]);
    }

    #[test]
    fn capabilities_open_what_they_are_for() {
        let filter = filter_for("x86_64", &["CAP_SYS_ADMIN"]).unwrap();
        assert!(allows(&filter, "mount") && allows(&filter, "clone3") && !allows(&filter, "chroot"));
        assert!(!filter.syscalls.iter().any(|rule| rule.names == ["clone3"] && rule.errno_ret.is_some()));
    }
}
