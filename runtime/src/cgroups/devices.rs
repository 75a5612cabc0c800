//! Which devices a group may use: rules in version 1, a small program in version 2.

use std::fs::File;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;

use kiln_executor::oci::DeviceRule;

use super::limits::write;
use crate::error::{Error, Result};
use crate::sys;

/// What every container may do besides its own rules: make nodes of any device. Using them is another matter.
const MAKING: [&str; 2] = ["c *:* m", "b *:* m"];

pub(super) fn set_v1(dir: &Path, rules: &[DeviceRule]) -> Result<()> {
    for (number, rule) in rules.iter().enumerate() {
        let access = access(rule)?;
        let file = dir.join(if rule.allow { "devices.allow" } else { "devices.deny" });
        let all = kind(rule)?.is_none() && rule.major.is_none() && rule.minor.is_none() && access == ALL;
        let number_or_all =
            |number: Option<i64>| number.filter(|n| *n >= 0).map_or("*".into(), |n| n.to_string());
        if all {
            write(&file, "a")?;
        } else {
            for kind in kind(rule)?.map_or(vec!["c", "b"], |kind| vec![kind]) {
                let (major, minor) = (number_or_all(rule.major), number_or_all(rule.minor));
                write(&file, &format!("{kind} {major}:{minor} {}", rule.access))?;
            }
        }
        if number == 0 && !rule.allow {
            for making in MAKING {
                write(&dir.join("devices.allow"), making)?;
            }
        }
    }
    Ok(())
}

/// Bits of access, as the kernel tells them to programs.
const MKNOD: u32 = 1;
const READ: u32 = 2;
const WRITE: u32 = 4;
const ALL: u32 = MKNOD | READ | WRITE;
const BLOCK: i32 = 1;
const CHAR: i32 = 2;

fn access(rule: &DeviceRule) -> Result<u32> {
    rule.access.chars().try_fold(0, |access, letter| {
        Ok(access
            | match letter {
                'r' => READ,
                'w' => WRITE,
                'm' => MKNOD,
                _ => return Err(Error::spec(format!("device access {letter:?} is not known"))),
            })
    })
}

fn kind(rule: &DeviceRule) -> Result<Option<&'static str>> {
    match rule.kind.as_deref() {
        None | Some("a" | "") => Ok(None),
        Some("c" | "u") => Ok(Some("c")),
        Some("b") => Ok(Some("b")),
        Some(other) => Err(Error::spec(format!("device kind {other:?} is not known"))),
    }
}

pub(super) fn set_v2(dir: &Path, rules: &[DeviceRule]) -> Result<()> {
    let program = load(&compile(rules)?).map_err(Error::cgroup("make the device program of", dir))?;
    let group = File::open(dir).map_err(Error::cgroup("open", dir))?;
    attach(&program, &group).map_err(Error::cgroup("attach the device program to", dir))
}

/// An instruction of the kernel's extended filter language.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
struct Instruction {
    code: u8,
    /// Destination in the lower four bits, source in the upper ones.
    registers: u8,
    offset: i16,
    immediate: i32,
}

const MOVE: u8 = 0xbf;
const MOVE_NUMBER: u8 = 0xb7;
const LOAD_WORD: u8 = 0x61;
const AND_NUMBER: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const JUMP_NOT_EQUAL: u8 = 0x55;
const JUMP_EQUAL: u8 = 0x15;
const EXIT: u8 = 0x95;
/// Registers: what is asked for, its kind, the access, the numbers.
const ANSWER: u8 = 0;
const ASKED: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SCRATCH: u8 = 6;

fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: to | from << 4, offset, immediate }
}

/// The last rule that fits decides, so they are tried from the last to the first; without any, access is refused.
fn compile(rules: &[DeviceRule]) -> Result<Vec<Instruction>> {
    let mut program = vec![
        instruction(LOAD_WORD, KIND, ASKED, 0, 0),
        instruction(MOVE, ACCESS, KIND, 0, 0),
        instruction(AND_NUMBER, KIND, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT, ACCESS, 0, 0, 16),
        instruction(LOAD_WORD, MAJOR, ASKED, 4, 0),
        instruction(LOAD_WORD, MINOR, ASKED, 8, 0),
    ];
    let any = |access: &str| DeviceRule {
        allow: true,
        kind: None,
        major: None,
        minor: None,
        access: access.into(),
    };
    let mut all: Vec<DeviceRule> = rules.to_vec();
    if all.first().is_some_and(|first| !first.allow) {
        all.insert(1, any("m"));
    }
    for rule in all.iter().rev() {
        let checks = checks(rule)?;
        let fits_always = checks.is_empty();
        let length = checks.len() + 2;
        for (at, (register, code, number)) in checks.into_iter().enumerate() {
            // Checks that do not jump prepare the next one.
            let jumps = matches!(code, JUMP_NOT_EQUAL | JUMP_EQUAL);
            let offset = if jumps { i16::try_from(length - at - 1).unwrap_or(i16::MAX) } else { 0 };
            program.push(match code {
                MOVE => instruction(MOVE, register, ACCESS, 0, 0),
                code => instruction(code, register, 0, offset, number),
            });
        }
        program.push(instruction(MOVE_NUMBER, ANSWER, 0, 0, i32::from(rule.allow)));
        program.push(instruction(EXIT, 0, 0, 0, 0));
        if fits_always {
            // The kernel takes no program with instructions that nothing leads to.
            return Ok(program);
        }
    }
    program.push(instruction(MOVE_NUMBER, ANSWER, 0, 0, 0));
    program.push(instruction(EXIT, 0, 0, 0, 0));
    Ok(program)
}

/// Instructions that jump when the rule does not fit.
fn checks(rule: &DeviceRule) -> Result<Vec<(u8, u8, i32)>> {
    let mut checks = Vec::new();
    match kind(rule)? {
        Some("c") => checks.push((KIND, JUMP_NOT_EQUAL, CHAR)),
        Some(_) => checks.push((KIND, JUMP_NOT_EQUAL, BLOCK)),
        None => {}
    }
    for (register, number) in [(MAJOR, rule.major), (MINOR, rule.minor)] {
        if let Some(number) = number.filter(|number| *number >= 0) {
            let number = i32::try_from(number)
                .map_err(|_| Error::spec(format!("device number {number} is too large")))?;
            checks.push((register, JUMP_NOT_EQUAL, number));
        }
    }
    let access = access(rule)?;
    if access != ALL {
        checks.push((SCRATCH, MOVE, 0));
        // Allowed is what asks for nothing else; refused is what asks for any of it.
        if rule.allow {
            checks.push((SCRATCH, AND_NUMBER, i32::try_from(ALL & !access).unwrap_or_default()));
            checks.push((SCRATCH, JUMP_NOT_EQUAL, 0));
        } else {
            checks.push((SCRATCH, AND_NUMBER, i32::try_from(access).unwrap_or_default()));
            checks.push((SCRATCH, JUMP_EQUAL, 0));
        }
    }
    Ok(checks)
}

const PROG_LOAD: i32 = 5;
const PROG_ATTACH: i32 = 8;
const TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
/// Other programs on the same group go on to count.
const ALLOW_MULTI: u32 = 2;

fn load(program: &[Instruction]) -> std::io::Result<OwnedFd> {
    #[repr(C)]
    #[derive(Default)]
    struct Attributes {
        prog_type: u32,
        count: u32,
        instructions: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
        kernel_version: u32,
        flags: u32,
    }
    let license = c"Apache-2.0";
    let mut attributes = Attributes {
        prog_type: TYPE_CGROUP_DEVICE,
        count: u32::try_from(program.len()).unwrap_or(u32::MAX),
        instructions: program.as_ptr() as u64,
        license: license.as_ptr() as u64,
        ..Attributes::default()
    };
    sys::bpf(PROG_LOAD, &mut attributes).map(sys::own)
}

fn attach(program: &OwnedFd, group: &File) -> std::io::Result<()> {
    #[repr(C)]
    struct Attributes {
        target: i32,
        program: i32,
        kind: u32,
        flags: u32,
    }
    let mut attributes = Attributes {
        target: group.as_raw_fd(),
        program: program.as_raw_fd(),
        kind: ATTACH_CGROUP_DEVICE,
        flags: ALLOW_MULTI,
    };
    sys::bpf(PROG_ATTACH, &mut attributes).map(drop)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::cgroups::Hierarchies;

    fn rule(
        allow: bool,
        kind: Option<&str>,
        major: Option<i64>,
        minor: Option<i64>,
        access: &str,
    ) -> DeviceRule {
        DeviceRule { allow, kind: kind.map(str::to_owned), major, minor, access: access.to_owned() }
    }

    #[test]
    fn what_is_not_known_is_named() {
        for (rule, want) in [
            (rule(true, Some("x"), None, None, "r"), "device kind \"x\" is not known"),
            (rule(true, None, None, None, "rx"), "device access 'x' is not known"),
            (rule(true, None, Some(1 << 40), None, "r"), "device number 1099511627776 is too large"),
        ] {
            assert_eq!(compile(&[rule]).unwrap_err().to_string(), want);
        }
    }

    /// The kernel takes the program, and it decides as the rules say.
    #[test]
    fn rules_of_version_2_hold() {
        let root = Hierarchies::detect().v2.filter(|_| rustix::process::geteuid().is_root());
        let Some(root) = root else {
            assert!(std::env::var_os("CI").is_none(), "on CI nothing is skipped");
            println!("skipped: not root, or no control groups of version 2");
            return;
        };
        let group = root.join(format!("kiln-test-devices-{}", std::process::id()));
        std::fs::create_dir(&group).unwrap();
        let rules = [
            rule(false, None, None, None, "rwm"),
            rule(true, Some("c"), Some(1), Some(3), "rwm"),
            rule(true, Some("c"), Some(1), Some(5), "r"),
            rule(true, Some("c"), Some(1), None, "w"),
            rule(false, Some("c"), Some(1), Some(7), "w"),
        ];
        set_v2(&group, &rules).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let script = "echo 0 > \"$1/cgroup.procs\"; cd \"$2\"
            try() { if ( eval \"$1\" ) 2> why; then echo \"$1: yes\"; else echo \"$1: no\"; fi; }
            try ': < /dev/null'; try ': > /dev/null'; try ': < /dev/zero'; try ': > /dev/zero'
            try ': < /dev/full'; try ': > /dev/full'; try 'mknod x b 8 0'; try ': < x'";
        let mut command = Command::new("/bin/sh");
        let output = command.args(["-c", script, "sh"]).arg(&group).arg(dir.path()).output();
        std::fs::remove_dir(&group).unwrap();
        let want = ": < /dev/null: yes\n: > /dev/null: yes\n: < /dev/zero: yes\n: > /dev/zero: yes\n\
            : < /dev/full: no\n: > /dev/full: no\nmknod x b 8 0: yes\n: < x: no\n";
        assert_eq!(String::from_utf8_lossy(&output.unwrap().stdout), want);
    }
}
