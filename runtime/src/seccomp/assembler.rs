//! From numbers and answers to instructions.

use std::collections::BTreeMap;

use kiln_executor::oci;

use crate::error::{Error, Result};
use crate::sys::pack;

const LOAD: u16 = 0x20;
const RETURN: u16 = 0x06;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const EQUAL: u16 = 0x15;
const GREATER: u16 = 0x25;
const AT_LEAST: u16 = 0x35;

/// Places in what the kernel shows of a call.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGS: u32 = 16;

/// The kernel's own limit.
const MAX_PROGRAM: usize = 4096;

/// The calls of one architecture that do not get the default answer.
pub(super) struct Arch {
    pub(super) audit: u32,
    /// Numbers from here on get the default answer.
    pub(super) skip_above: Option<u32>,
    pub(super) leaves: BTreeMap<u32, Leaf>,
}

/// The answer to one call: the first rule whose conditions all hold, else `always`, else the default.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Leaf {
    pub(super) rules: Vec<Rule>,
    pub(super) always: Option<u32>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Rule {
    pub(super) conditions: Vec<Condition>,
    pub(super) answer: u32,
}

/// A comparison of one argument.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Condition {
    index: u32,
    op: Op,
    value: u64,
    mask: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Op {
    Equal,
    NotEqual,
    Greater,
    AtLeast,
    Less,
    AtMost,
}

impl Condition {
    pub(super) fn new(arg: &oci::SyscallArg) -> Result<Self> {
        if arg.index > 5 {
            return Err(Error::spec(format!("system calls have no argument {}", arg.index)));
        }
        let (op, value, mask) = match arg.op.as_str() {
            "SCMP_CMP_EQ" => (Op::Equal, arg.value, u64::MAX),
            "SCMP_CMP_NE" => (Op::NotEqual, arg.value, u64::MAX),
            "SCMP_CMP_GT" => (Op::Greater, arg.value, u64::MAX),
            "SCMP_CMP_GE" => (Op::AtLeast, arg.value, u64::MAX),
            "SCMP_CMP_LT" => (Op::Less, arg.value, u64::MAX),
            "SCMP_CMP_LE" => (Op::AtMost, arg.value, u64::MAX),
            "SCMP_CMP_MASKED_EQ" => (Op::Equal, arg.value_two & arg.value, arg.value),
            other => return Err(Error::spec(format!("comparison {other} is not known"))),
        };
        Ok(Self { index: arg.index, op, value, mask })
    }
}

/// An instruction whose jumps may lead out of its rule.
struct Step {
    code: u16,
    k: u32,
    then: Target,
    otherwise: Target,
}

#[derive(Clone, Copy)]
enum Target {
    /// That many instructions on.
    Skip(usize),
    /// To what follows the condition.
    Pass,
    /// To what follows the rule.
    Fail,
}

/// Puts the program together.
pub(super) fn assemble(arches: &[Arch], default: u32, beyond: u32, foreign: u32) -> Result<Vec<u64>> {
    let mut program = vec![pack(LOAD, 0, 0, ARCH)];
    for arch in arches {
        let section = section(arch, default, beyond)?;
        program.push(pack(EQUAL, 1, 0, arch.audit));
        program.push(pack(JUMP, 0, 0, length(section.len())?));
        program.extend(section);
    }
    program.push(pack(RETURN, 0, 0, foreign));
    if program.len() > MAX_PROGRAM {
        return Err(Error::spec(format!("a system call filter of more than {MAX_PROGRAM} instructions")));
    }
    Ok(program)
}

fn section(arch: &Arch, default: u32, beyond: u32) -> Result<Vec<u64>> {
    let mut section = vec![pack(LOAD, 0, 0, NUMBER)];
    if let Some(limit) = arch.skip_above {
        section.push(pack(AT_LEAST, 0, 1, limit));
        section.push(pack(RETURN, 0, 0, default));
    }
    section.extend(search(&ranges(arch, default, beyond), default)?);
    Ok(section)
}

/// Where each stretch of numbers with one answer begins; the first begins at zero.
fn ranges(arch: &Arch, default: u32, beyond: u32) -> Vec<(u32, Leaf)> {
    let simple = |answer| Leaf { rules: Vec::new(), always: Some(answer) };
    let mut ranges: Vec<(u32, Leaf)> = Vec::new();
    let mut add = |start, leaf: Leaf| match ranges.last() {
        Some((_, last)) if *last == leaf && leaf.rules.is_empty() => {}
        _ => ranges.push((start, leaf)),
    };
    let mut next = 0;
    for (number, leaf) in &arch.leaves {
        if *number > next {
            add(next, simple(default));
        }
        add(*number, Leaf { always: Some(leaf.always.unwrap_or(default)), ..leaf.clone() });
        next = number.saturating_add(1);
    }
    add(next, simple(beyond));
    ranges
}

fn search(ranges: &[(u32, Leaf)], default: u32) -> Result<Vec<u64>> {
    match ranges {
        [] => Ok(vec![pack(RETURN, 0, 0, default)]),
        [(_, leaf)] => leaf_code(leaf, default),
        _ => {
            let (left, right) = ranges.split_at(ranges.len() / 2);
            let pivot = right.first().map_or(0, |(start, _)| *start);
            let (left, right) = (search(left, default)?, search(right, default)?);
            let mut code = match u8::try_from(left.len()) {
                Ok(skip) => vec![pack(AT_LEAST, skip, 0, pivot)],
                Err(_) => vec![pack(AT_LEAST, 0, 1, pivot), pack(JUMP, 0, 0, length(left.len())?)],
            };
            code.extend(left);
            code.extend(right);
            Ok(code)
        }
    }
}

fn leaf_code(leaf: &Leaf, default: u32) -> Result<Vec<u64>> {
    let mut code = Vec::new();
    for rule in &leaf.rules {
        code.extend(rule_code(rule)?);
    }
    code.push(pack(RETURN, 0, 0, leaf.always.unwrap_or(default)));
    Ok(code)
}

fn rule_code(rule: &Rule) -> Result<Vec<u64>> {
    let conditions: Vec<Vec<Step>> = rule.conditions.iter().map(condition_code).collect();
    let all: usize = conditions.iter().map(Vec::len).sum::<usize>() + 1;
    let mut code: Vec<u64> = Vec::with_capacity(all);
    let mut end = 0;
    for condition in &conditions {
        end += condition.len();
        for step in condition {
            let at = code.len() + 1;
            let offset = |target| -> Result<u8> {
                let skip = match target {
                    Target::Skip(skip) => skip,
                    Target::Pass => end.saturating_sub(at),
                    Target::Fail => all.saturating_sub(at),
                };
                u8::try_from(skip).map_err(|_| Error::spec("too many conditions on one system call"))
            };
            code.push(pack(step.code, offset(step.then)?, offset(step.otherwise)?, step.k));
        }
    }
    code.push(pack(RETURN, 0, 0, rule.answer));
    Ok(code)
}

fn condition_code(condition: &Condition) -> Vec<Step> {
    use Target::{Fail, Pass, Skip};
    let halves = |value: u64| ((value >> 32) as u32, value as u32);
    let (high, low) = halves(condition.value);
    let (mask_high, mask_low) = halves(condition.mask);
    let base = ARGS + 8 * condition.index;
    let (high_at, low_at) = if cfg!(target_endian = "little") { (base + 4, base) } else { (base, base + 4) };
    let plain = |code, k| Step { code, k, then: Skip(0), otherwise: Skip(0) };
    let jump = |code, k, then, otherwise| Step { code, k, then, otherwise };
    let mut steps = vec![plain(LOAD, high_at)];
    if mask_high != u32::MAX {
        steps.push(plain(AND, mask_high));
    }
    // What the upper half decides alone; equal upper halves go on to the lower ones.
    match condition.op {
        Op::Equal => steps.push(jump(EQUAL, high, Skip(0), Fail)),
        Op::NotEqual => steps.push(jump(EQUAL, high, Skip(0), Pass)),
        Op::Greater | Op::AtLeast => {
            steps.push(jump(GREATER, high, Pass, Skip(0)));
            steps.push(jump(EQUAL, high, Skip(0), Fail));
        }
        Op::Less | Op::AtMost => {
            steps.push(jump(GREATER, high, Fail, Skip(0)));
            steps.push(jump(EQUAL, high, Skip(0), Pass));
        }
    }
    steps.push(plain(LOAD, low_at));
    if mask_low != u32::MAX {
        steps.push(plain(AND, mask_low));
    }
    steps.push(match condition.op {
        Op::Equal => jump(EQUAL, low, Pass, Fail),
        Op::NotEqual => jump(EQUAL, low, Fail, Pass),
        Op::Greater => jump(GREATER, low, Pass, Fail),
        Op::AtLeast => jump(AT_LEAST, low, Pass, Fail),
        Op::Less => jump(AT_LEAST, low, Fail, Pass),
        Op::AtMost => jump(GREATER, low, Fail, Pass),
    });
    steps
}

fn length(instructions: usize) -> Result<u32> {
    u32::try_from(instructions).map_err(|_| Error::spec("a system call filter that is too long"))
}
