use std::collections::BTreeSet;

use crate::context::NamedContext;
use crate::error::{Error, Result};
use crate::graph::State;
use crate::image::Image;
use crate::instruction::{Command, Kind, Stage, Stages};
use crate::lint::Rule;
use crate::lower::Lowering;
use crate::lower::outline::Notes;
use crate::platform::Platform;
use crate::shell::{Env, Expansion, Lex};
use crate::source::LineRange;
use crate::text::{quote, suggest, with_suggestion};

/// How many stages a file may have, the images that its instructions name included.
const MAX_STAGES: usize = 100_000;

/// A stage while it is lowered.
#[derive(Debug, Default)]
pub(super) struct StageState {
    pub(super) stage: Stage,
    /// Name for vertexes; empty if the file has one stage.
    pub(super) display_name: String,
    pub(super) base: Option<usize>,
    pub(super) state: State,
    pub(super) image: Image,
    pub(super) base_image: Option<Image>,
    pub(super) platform: Option<Platform>,
    pub(super) named_context: Option<NamedContext>,
    /// Its state can be used.
    pub(super) dispatched: bool,
    pub(super) resolved: bool,
    /// Nothing is known of the image it starts from: what it sets may be there.
    pub(super) unknown_base: bool,
    pub(super) triggers_done: bool,
    /// Stages it copies or mounts from, and the lines that do.
    pub(super) deps: Vec<(usize, Vec<LineRange>)>,
    pub(super) known_deps: BTreeSet<usize>,
    pub(super) args: Vec<(String, Option<String>)>,
    pub(super) commands: Vec<StageCommand>,
    pub(super) context_paths: BTreeSet<String>,
    /// Index of its set of used paths.
    pub(super) paths: usize,
    pub(super) ignores_cache: bool,
    /// It is an image that a COPY or mount names, not a FROM.
    pub(super) unregistered: bool,
    pub(super) step: usize,
    pub(super) steps: usize,
    pub(super) in_trigger: bool,
    pub(super) workdir_set: bool,
    pub(super) cmd: Option<Vec<LineRange>>,
    pub(super) entrypoint: Option<Vec<LineRange>>,
    pub(super) healthcheck: Option<Vec<LineRange>>,
    pub(super) notes: Notes,
}

/// An instruction with the stages it takes files from.
#[derive(Clone, Debug)]
pub(super) struct StageCommand {
    pub(super) command: Command,
    pub(super) sources: Vec<usize>,
    pub(super) is_trigger: bool,
}

impl Lowering<'_> {
    pub(super) fn add_stages(&mut self, stages: Stages) -> Result<()> {
        for (index, mut stage) in stages.stages.into_iter().enumerate() {
            let place = stage.ranges.clone();
            let (base, outcome) = self.lex.expand(&stage.base, &self.globals);
            self.report_undeclared(&base, &stage);
            outcome.map_err(|error| Error::new(error).at(&place))?;
            if base.text.is_empty() {
                return Err(Error::new(format!("base name ({}) should not be blank", stage.base)).at(&place));
            }
            stage.base = base.text;
            let mut used = base.set;
            let mut state = StageState { display_name: stage.name.clone(), ..StageState::default() };
            if !stage.platform.is_empty() {
                let (platform, names) = self.stage_platform(&stage)?;
                state.platform = Some(platform);
                used.extend(names);
            }
            if !stage.name.is_empty() {
                let platform = state.platform.as_ref().or(self.asked_platform());
                state.named_context = self.client.named_context(&stage.name, platform)?;
            }
            if state.named_context.is_some() {
                state.stage = stage;
                let index = self.add(state);
                self.stages[index].base = None;
                continue;
            }
            if stage.name.is_empty() {
                state.display_name = format!("stage-{index}");
            }
            state.ignores_cache = self.client.options.ignores_cache(&stage.name);
            state.stage = stage;
            let index = self.add(state);
            let state = &mut self.stages[index];
            state.notes.used.extend(used);
            let real_base = state.stage.base != "scratch" && state.base.is_none();
            state.steps = usize::from(real_base) + state.stage.commands.iter().filter(|c| is_step(c)).count();
        }
        Ok(())
    }

    /// The platform that was asked for; none if it is implied.
    pub(super) fn asked_platform(&self) -> Option<&Platform> {
        (!self.implied_platform).then_some(&self.target_platform)
    }

    /// The platform of a stage, and the arguments that say so.
    fn stage_platform(&mut self, stage: &Stage) -> Result<(Platform, BTreeSet<String>)> {
        let place = &stage.ranges;
        let (found, outcome) = self.lex.expand(&stage.platform, &self.globals);
        self.report_undeclared(&found, stage);
        self.report_platform(&found, stage);
        outcome.map_err(|error| {
            Error::new(format!("failed to process arguments for platform {}: {error}", found.text)).at(place)
        })?;
        let hint = |message: String| {
            let keys = self.globals.keys();
            let option = found.unset.iter().find_map(|name| suggest(name, keys.iter().copied(), true));
            match option {
                Some(option) => format!("{message} (did you mean {option}?)"),
                None => message,
            }
        };
        if found.text.is_empty() {
            let message = format!("empty platform value from expression {}", stage.platform);
            return Err(Error::new(hint(message)).at(place));
        }
        let platform = Platform::parse(&found.text).map_err(|error| {
            Error::new(format!("failed to parse platform {}: {}", stage.platform, hint(error)))
                .at(place)
                .at(place)
        })?;
        Ok((platform, found.set.clone()))
    }

    fn report_undeclared(&mut self, found: &Expansion, stage: &Stage) {
        let mut known: Vec<String> = self.declared.iter().cloned().collect();
        known.extend(self.globals.keys().into_iter().map(str::to_owned));
        for name in found.unset.iter().filter(|name| !known.contains(name)) {
            let message = format!("FROM argument '{name}' is not declared");
            let message = with_suggestion(message, name, known.iter().map(String::as_str), true);
            self.lint.report(Rule::UndefinedArgInFrom, &stage.comments, &stage.ranges, message);
        }
    }

    fn report_platform(&mut self, found: &Expansion, stage: &Stage) {
        let wanted = self.globals.get("TARGETPLATFORM").unwrap_or_default();
        if found.set.len() == 1
            && found.unset.is_empty()
            && found.set.contains("TARGETPLATFORM")
            && found.text == wanted
        {
            let message = format!(
                "Setting platform to predefined {} in FROM is redundant as this is the default behavior",
                stage.platform
            );
            self.lint.report(Rule::RedundantTargetPlatform, &stage.comments, &stage.ranges, message);
        }
        if found.set.is_empty()
            && found.unset.is_empty()
            && let Ok(platform) = Platform::parse(&found.text)
            && !stage.name.contains(&platform.os)
            && !stage.name.contains(&platform.arch)
        {
            let message =
                format!("FROM --platform flag should not use constant value {}", quote(&found.text));
            self.lint.report(Rule::FromPlatformFlagConstDisallowed, &stage.comments, &stage.ranges, message);
        }
    }

    fn add(&mut self, mut state: StageState) -> usize {
        let index = self.stages.len();
        state.base = self.by_name.get(&state.stage.base).copied();
        if !state.unregistered {
            state.notes = match state.base {
                Some(base) => self.stages[base].notes.clone(),
                None => self.notes.clone(),
            };
        }
        state.paths = self.used_paths.len();
        self.used_paths.push(BTreeSet::new());
        if !state.stage.name.is_empty() {
            self.by_name.insert(state.stage.name.to_lowercase(), index);
        }
        self.stages.push(state);
        index
    }

    pub(super) fn find_stage(&self, name: &str) -> Option<usize> {
        self.by_name.get(&name.to_lowercase()).copied()
    }

    pub(super) fn stage_names(&self) -> Vec<String> {
        let names = self.stages.iter().map(|stage| stage.display_name.clone());
        names.filter(|name| !name.is_empty()).collect()
    }

    /// Finds out what each stage takes from which other.
    pub(super) fn link_stages(&mut self) -> Result<()> {
        for index in 0..self.stages.len() {
            let commands = std::mem::take(&mut self.stages[index].stage.commands);
            for command in commands {
                self.link(index, command, false)?;
            }
        }
        self.check_cycles()?;
        if let [only] = self.stages.as_mut_slice() {
            only.display_name.clear();
        }
        Ok(())
    }

    /// Adds an instruction to a stage; says whether it takes files from another one.
    pub(super) fn link(&mut self, index: usize, command: Command, is_trigger: bool) -> Result<bool> {
        let mut sources = Vec::new();
        match &command.kind {
            Kind::Copy(copy) if !copy.from.is_empty() => {
                let expanded = Lex::expand(&self.lex, &copy.from, &Env::default());
                expanded.1.map_err(Error::new)?;
                if expanded.0.text != copy.from {
                    return Err(Error::new(
                        "variable expansion is not supported for --from, define a new stage with FROM using ARG from global scope as a workaround",
                    ));
                }
                let known = match copy.from.parse::<i64>() {
                    Ok(number) => {
                        let stage = usize::try_from(number).ok().filter(|&stage| stage < self.stages.len());
                        Some(stage.ok_or_else(|| Error::new(format!("invalid stage index {number}")))?)
                    }
                    Err(_) => self.find_stage(&copy.from),
                };
                sources.push(known.unwrap_or_else(|| self.add_image(&copy.from, command.ranges.clone())));
            }
            Kind::Run(run) => {
                for from in &run.mount_from {
                    let from = if from.is_empty() { "scratch" } else { from };
                    let known = self.find_stage(from);
                    sources.push(known.unwrap_or_else(|| self.add_image(from, Vec::new())));
                }
            }
            _ => {}
        }
        if self.stages.len() > MAX_STAGES {
            let message = format!("the Dockerfile has more than {MAX_STAGES} stages and images");
            return Err(Error::new(message).at(&command.ranges));
        }
        for &source in &sources {
            let stage = &mut self.stages[index];
            if !stage.known_deps.insert(source) {
                self.lex.work.spend(stage.deps.len()).map_err(Error::new)?;
                stage.deps.retain(|(known, _)| *known != source);
            }
            stage.deps.push((source, command.ranges.clone()));
        }
        let takes = !sources.is_empty();
        self.stages[index].commands.push(StageCommand { command, sources, is_trigger });
        Ok(takes)
    }

    /// Adds an image that is named by a COPY or a mount.
    fn add_image(&mut self, name: &str, ranges: Vec<LineRange>) -> usize {
        let stage = Stage { base: name.to_owned(), ranges, ..Stage::default() };
        self.add(StageState { stage, unregistered: true, ..StageState::default() })
    }

    fn check_cycles(&self) -> Result<()> {
        let mut visited = vec![false; self.stages.len()];
        let mut on_path = vec![false; self.stages.len()];
        for start in 0..self.stages.len() {
            // Each entry is a stage, the next edge to look at, and the lines that led here.
            let mut path: Vec<(usize, usize)> = Vec::new();
            if std::mem::replace(&mut visited[start], true) {
                continue;
            }
            path.push((start, 0));
            on_path[start] = true;
            while let Some(&mut (stage, ref mut next)) = path.last_mut() {
                let Some((dep, _)) = self.stages[stage].deps.get(*next) else {
                    on_path[stage] = false;
                    path.pop();
                    continue;
                };
                *next += 1;
                if on_path[*dep] {
                    let name = &self.stages[start].display_name;
                    let mut error = Error::new(format!("circular dependency detected on stage: {name}"));
                    for &(stage, next) in &path {
                        error = error.at(&self.stages[stage].deps[next - 1].1);
                    }
                    return Err(error);
                }
                if !std::mem::replace(&mut visited[*dep], true) {
                    path.push((*dep, 0));
                    on_path[*dep] = true;
                }
            }
        }
        Ok(())
    }

    pub(super) fn reachable(&self, target: usize) -> BTreeSet<usize> {
        let mut found = BTreeSet::new();
        let mut open = vec![target];
        while let Some(stage) = open.pop() {
            if found.insert(stage) {
                open.extend(self.stages[stage].base);
                open.extend(self.stages[stage].deps.iter().map(|(dep, _)| *dep));
            }
        }
        found
    }
}

fn is_step(command: &Command) -> bool {
    matches!(command.kind, Kind::Add(_) | Kind::Copy(_) | Kind::Run(_) | Kind::Workdir(_))
}
