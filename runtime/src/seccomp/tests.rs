use kiln_executor::oci::{Seccomp, SyscallArg, Syscalls};

use super::*;

const X86_64: u32 = 0xc000_003e;
const X86: u32 = 0x4000_0003;

/// What the kernel would answer: the instructions carried out on one call.
fn answer(program: &[u64], arch: u32, number: u32, args: [u64; 6]) -> u32 {
    let mut data = Vec::new();
    data.extend(number.to_ne_bytes());
    data.extend(arch.to_ne_bytes());
    data.extend([0; 8]);
    for arg in args {
        data.extend(arg.to_ne_bytes());
    }
    let (mut at, mut value) = (0, 0u32);
    loop {
        let packed = program[at];
        let (code, jt, jf, k) =
            ((packed >> 48) as u16, (packed >> 40) as u8, (packed >> 32) as u8, packed as u32);
        at += 1;
        let mut jump = |condition: bool| at += usize::from(if condition { jt } else { jf });
        match code {
            0x20 => value = u32::from_ne_bytes(data[k as usize..k as usize + 4].try_into().unwrap()),
            0x06 => return k,
            0x54 => value &= k,
            0x05 => at += k as usize,
            0x15 => jump(value == k),
            0x25 => jump(value > k),
            0x35 => jump(value >= k),
            other => panic!("{other:#x}"),
        }
    }
}

fn rule(name: &str, action: &str, args: &[(u32, &str, u64, u64)]) -> Syscalls {
    Syscalls {
        names: vec![name.into()],
        action: action.into(),
        errno_ret: None,
        args: args
            .iter()
            .map(|(index, op, value, value_two)| SyscallArg {
                index: *index,
                op: (*op).into(),
                value: *value,
                value_two: *value_two,
            })
            .collect(),
    }
}

fn filter(syscalls: Vec<Syscalls>) -> Seccomp {
    Seccomp {
        default_action: "SCMP_ACT_ERRNO".into(),
        default_errno_ret: Some(1),
        architectures: ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"].map(Into::into).into(),
        syscalls,
    }
}

#[test]
fn calls_get_the_answer_of_their_rule_and_architecture() {
    let mut refused = rule("clone3", "SCMP_ACT_ERRNO", &[]);
    refused.errno_ret = Some(38);
    let program = compile(&filter(vec![
        rule("read", "SCMP_ACT_ALLOW", &[]),
        rule("socketcall", "SCMP_ACT_ALLOW", &[]),
        rule("no_such_call", "SCMP_ACT_ALLOW", &[]),
        refused,
    ]))
    .unwrap();
    for (arch, number, want, why) in [
        (X86_64, 0, ALLOW, "read"),
        (X86_64, 1, ERRNO | 1, "write"),
        (X86_64, 434, ERRNO | 1, "below the last known"),
        (X86_64, 435, ERRNO | 38, "clone3"),
        (X86_64, 436, ERRNO | 38, "newer than the filter"),
        (X86_64, X32, ERRNO | 1, "read of x32"),
        (X86, 3, ALLOW, "read"),
        (X86, 0, ERRNO | 1, "restart_syscall"),
        (X86, 102, ALLOW, "socketcall"),
        (0x1234, 0, KILL_PROCESS, "another architecture"),
    ] {
        assert_eq!(answer(&program, arch, number, [0; 6]), want, "{why}");
    }
}

const X32: u32 = 0x4000_0000;

#[test]
fn comparisons_are_of_whole_arguments() {
    let big = 1u64 << 40;
    for (op, value, two, allowed, refused) in [
        ("SCMP_CMP_EQ", 5, 0, vec![5], vec![4, 6, 5 | big]),
        ("SCMP_CMP_NE", 5, 0, vec![4, 5 | big], vec![5]),
        ("SCMP_CMP_LT", 38, 0, vec![0, 37], vec![38, big, 37 | big]),
        ("SCMP_CMP_LE", big, 0, vec![0, 38, big], vec![big + 1, big << 1]),
        ("SCMP_CMP_GT", 40, 0, vec![41, big, 3 | big], vec![40, 0]),
        ("SCMP_CMP_GE", big, 0, vec![big, big + 1, big << 1], vec![big - 1, 7]),
        ("SCMP_CMP_MASKED_EQ", 0x7e02_0000, 0, vec![0, 0x11, 1 << 32], vec![0x2000_0000, 0x0002_0011]),
    ] {
        let program =
            compile(&filter(vec![rule("socket", "SCMP_ACT_ALLOW", &[(1, op, value, two)])])).unwrap();
        for (values, want) in [(allowed, ALLOW), (refused, ERRNO | 1)] {
            for value in values {
                assert_eq!(answer(&program, X86_64, 41, [9, value, 9, 9, 9, 9]), want, "{op} {value:#x}");
            }
        }
    }
    // Conditions of one rule all hold; one of several rules is enough.
    let program = compile(&filter(vec![
        rule("socket", "SCMP_ACT_ALLOW", &[(0, "SCMP_CMP_EQ", 1, 0), (1, "SCMP_CMP_EQ", 2, 0)]),
        rule("socket", "SCMP_ACT_ALLOW", &[(0, "SCMP_CMP_EQ", 7, 0)]),
    ]))
    .unwrap();
    for (args, want) in [([1, 2], ALLOW), ([1, 3], ERRNO | 1), ([7, 0], ALLOW), ([2, 2], ERRNO | 1)] {
        assert_eq!(answer(&program, X86_64, 41, [args[0], args[1], 0, 0, 0, 0]), want, "{args:?}");
    }
}

#[test]
fn what_cannot_be_compiled_is_named() {
    let mut notify = filter(vec![]);
    notify.default_action = "SCMP_ACT_NOTIFY".into();
    let mut odd = filter(vec![]);
    odd.architectures = vec!["SCMP_ARCH_VAX".into()];
    let twice = filter(vec![rule("read", "SCMP_ACT_ALLOW", &[]), rule("read", "SCMP_ACT_KILL", &[])]);
    let compare = filter(vec![rule("read", "SCMP_ACT_ALLOW", &[(0, "SCMP_CMP_ODD", 0, 0)])]);
    let argument = filter(vec![rule("read", "SCMP_ACT_ALLOW", &[(6, "SCMP_CMP_EQ", 0, 0)])]);
    for (filter, want) in [
        (notify, "system call filters with SCMP_ACT_NOTIFY are not supported"),
        (odd, "system call filters for SCMP_ARCH_VAX are not supported"),
        (twice, "contradicting rules for system call read"),
        (compare, "comparison SCMP_CMP_ODD is not known"),
        (argument, "system calls have no argument 6"),
    ] {
        assert_eq!(compile(&filter).unwrap_err().to_string(), want);
    }
}
