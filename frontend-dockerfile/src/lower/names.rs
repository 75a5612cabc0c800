use std::collections::BTreeSet;

use crate::instruction::Stages;
use crate::lint::{Linter, Rule};
use crate::lower::Lowering;
use crate::platform::Platform;
use crate::shell::{Env, Lex};
use crate::source::LineRange;
use crate::text::quote;

impl Lowering<'_> {
    /// The name of the next vertex of a stage: `[PLATFORM STAGE I/N] TEXT`.
    pub(super) fn vertex_name(&mut self, index: usize, text: &str, platform: &Platform, env: &Env) -> String {
        let stage = &mut self.stages[index];
        if stage.steps == 0 {
            return text.to_owned();
        }
        let mut out = "[".to_owned();
        if self.client.options.multi_platform && !stage.unregistered {
            out.push_str(&platform.format());
            out.push_str(&other_target(platform, env));
            out.push(' ');
        }
        if !stage.display_name.is_empty() {
            out.push_str(&stage.display_name);
            out.push(' ');
        }
        stage.step += 1;
        let width = stage.steps.to_string().len();
        out.push_str(&format!("{:width$}/{}] ", stage.step, stage.steps));
        if stage.in_trigger {
            out.push_str("ONBUILD ");
        }
        out.push_str(text);
        out
    }
}

/// The text of an instruction for its name: its word in upper case, variables expanded.
pub(super) fn shown(lex: &Lex, code: &str, env: &Env) -> String {
    let text = lex.word(code, env).unwrap_or_else(|_| code.to_owned());
    match text.split_once(' ') {
        Some((word, rest)) => format!("{} {rest}", word.to_uppercase()),
        None => text.to_uppercase(),
    }
}

/// `->arch` or `->os/arch` if the environment says that something else is built for.
fn other_target(platform: &Platform, env: &Env) -> String {
    let Some(mut target) = target_of(env) else { return String::new() };
    if target.os.is_empty() {
        target.os = platform.os.clone();
    }
    if target.arch.is_empty() {
        target.arch = platform.arch.clone();
    }
    let target = target.normalized();
    if target.os != platform.os {
        return format!("->{}", target.format());
    }
    if target.arch == platform.arch {
        return String::new();
    }
    match target.variant.as_str() {
        "" => format!("->{}", target.arch),
        variant => format!("->{}/{variant}", target.arch),
    }
}

fn target_of(env: &Env) -> Option<Platform> {
    let mut platform = None;
    for key in env.keys() {
        let value = env.get(key).unwrap_or_default();
        let place: fn(&mut Platform) -> &mut String = match key {
            "TARGETPLATFORM" => match Platform::parse(value) {
                Ok(platform) => return Some(platform),
                Err(_) => continue,
            },
            "TARGETOS" => |platform| &mut platform.os,
            "TARGETARCH" => |platform| &mut platform.arch,
            "TARGETVARIANT" => |platform| &mut platform.variant,
            _ => continue,
        };
        *place(platform.get_or_insert_with(Platform::default)) = value.to_owned();
    }
    platform
}

pub(super) fn check_stage_names(stages: &Stages, lint: &mut Linter) {
    let mut seen = BTreeSet::new();
    for stage in stages.stages.iter().filter(|stage| !stage.name.is_empty()) {
        let name = quote(&stage.name);
        if stage.name == "scratch" || stage.name == "context" {
            let message = format!("Stage name should not use the same name as reserved stage {name}");
            lint.report(Rule::ReservedStageName, &[], &stage.ranges, message);
        }
        if !seen.insert(&stage.name) {
            let message = format!("Duplicate stage name {name}, stage names should be unique");
            lint.report(Rule::DuplicateStageName, &[], &stage.ranges, message);
        }
    }
}

/// Holds all instructions to the case that most of them have.
pub(super) fn check_casing(stages: &Stages, lint: &mut Linter) {
    let mut all: Vec<(&str, &[LineRange])> = Vec::new();
    for stage in &stages.stages {
        all.push((&stage.keyword, &stage.ranges));
        all.extend(stage.commands.iter().map(|command| (command.name.as_str(), command.ranges.as_slice())));
    }
    let lower = all.iter().filter(|(name, _)| *name == name.to_lowercase()).count();
    let upper = all.iter().filter(|(name, _)| *name == name.to_uppercase()).count();
    let (wanted, matches): (&str, fn(&str) -> bool) = match lower > upper {
        true => ("lowercase", |name| name == name.to_lowercase()),
        false => ("uppercase", |name| name == name.to_uppercase()),
    };
    for (name, ranges) in all {
        if !matches(name) {
            let message =
                format!("Command '{name}' should match the case of the command majority ({wanted})");
            lint.report(Rule::ConsistentInstructionCasing, &[], ranges, message);
        }
    }
}
