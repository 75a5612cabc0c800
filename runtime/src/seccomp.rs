//! The system call filter of a spec, compiled to the kernel's instructions.
//!
//! A filter runs at every system call, so calls are found by a binary search over ranges of numbers with the
//! same answer. Calls with numbers above every call that the filter names answer ENOSYS where the default is an
//! error: programs take that for "not there" and fall back, which is what they do on an older kernel.

mod assembler;
mod numbers;

use std::collections::BTreeMap;

use kiln_executor::oci;

use self::assembler::{Arch, Leaf, Rule, assemble};
use crate::error::{Error, Result};

/// What the kernel does with a call, in its own encoding.
const KILL_PROCESS: u32 = 0x8000_0000;
const KILL_THREAD: u32 = 0;
const TRAP: u32 = 0x0003_0000;
const ERRNO: u32 = 0x0005_0000;
const TRACE: u32 = 0x7ff0_0000;
const LOG: u32 = 0x7ffc_0000;
const ALLOW: u32 = 0x7fff_0000;

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;
/// More conditions than any profile has.
const MAX_RULES: usize = 10_000;

/// Compiles a filter: instructions, each packed into one number.
///
/// # Errors
/// [`Error::Spec`] for actions, comparisons and architectures that are not known, and for rules that contradict
/// each other.
pub(crate) fn compile(filter: &oci::Seccomp) -> Result<Vec<u64>> {
    let default = action(&filter.default_action, filter.default_errno_ret)?;
    if filter.syscalls.len() > MAX_RULES {
        return Err(Error::spec(format!("more than {MAX_RULES} rules for system calls")));
    }
    let mut arches = Vec::new();
    for name in &filter.architectures {
        // x32 calls come under the number of x86_64 with a bit set; they get the default answer.
        if name == "SCMP_ARCH_X32" {
            continue;
        }
        let Some(table) = numbers::table(name) else {
            return Err(Error::spec(format!("system call filters for {name} are not supported")));
        };
        let leaves = leaves(filter, default, &table)?;
        arches.push(Arch { audit: table.audit, skip_above: table.skip_above, leaves });
    }
    if arches.is_empty() {
        return Err(Error::spec("a system call filter without architectures"));
    }
    assemble(&arches, default, beyond(default), KILL_PROCESS)
}

/// The answer to calls that are newer than the filter.
fn beyond(default: u32) -> u32 {
    if default & 0xffff_0000 == ERRNO { ERRNO | ENOSYS } else { default }
}

fn leaves(filter: &oci::Seccomp, default: u32, table: &numbers::Table) -> Result<BTreeMap<u32, Leaf>> {
    let mut leaves: BTreeMap<u32, Leaf> = BTreeMap::new();
    for rule in &filter.syscalls {
        let answer = action(&rule.action, rule.errno_ret)?;
        let conditions = rule.args.iter().map(assembler::Condition::new).collect::<Result<Vec<_>>>()?;
        for name in &rule.names {
            // Not every architecture has every call.
            let Some(number) = table.number(name) else { continue };
            let leaf = leaves.entry(number).or_insert_with(|| Leaf { rules: Vec::new(), always: None });
            if conditions.is_empty() {
                if leaf.always.is_some_and(|other| other != answer) {
                    return Err(Error::spec(format!("contradicting rules for system call {name}")));
                }
                leaf.always = Some(answer);
            } else if answer != default {
                leaf.rules.push(Rule { conditions: conditions.clone(), answer });
            }
        }
    }
    Ok(leaves)
}

fn action(name: &str, errno: Option<u32>) -> Result<u32> {
    let with = |action: u32, default: u32| {
        let value = errno.unwrap_or(default);
        match value {
            0..=4095 => Ok(action | value),
            _ => Err(Error::spec(format!("{value} is no error number"))),
        }
    };
    match name {
        "SCMP_ACT_ALLOW" => Ok(ALLOW),
        "SCMP_ACT_ERRNO" => with(ERRNO, EPERM),
        "SCMP_ACT_TRACE" => with(TRACE, EPERM),
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Ok(KILL_THREAD),
        "SCMP_ACT_KILL_PROCESS" => Ok(KILL_PROCESS),
        "SCMP_ACT_TRAP" => Ok(TRAP),
        "SCMP_ACT_LOG" => Ok(LOG),
        other => Err(Error::spec(format!("system call filters with {other} are not supported"))),
    }
}

#[cfg(test)]
mod tests;
