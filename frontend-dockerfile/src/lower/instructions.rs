use std::collections::BTreeSet;

use kiln_frontend::pb;

use crate::error::{Error, Result};
use crate::graph::{FileStep, Meta};
use crate::image::{DEFAULT_PATH, History};
use crate::instruction::{Command, Kind};
use crate::lint::Rule;
use crate::lower::stages::StageCommand;
use crate::lower::{Lowering, copy, names};
use crate::paths::join;
use crate::platform::Platform;
use crate::shell::Lex;
use crate::text::{quote, suggest};

impl Lowering<'_> {
    pub(super) fn lower_stage(&mut self, index: usize) -> Result<()> {
        self.inherit(index);
        let options = &self.client.options;
        let stage = &mut self.stages[index];
        stage.dispatched = true;
        let windows = stage.platform.get_or_insert_with(Platform::default).is_windows();
        let has_path = stage.image.config.env.iter().any(|entry| entry.split('=').next() == Some("PATH"));
        if !has_path && !windows {
            stage.image.config.env.push(format!("PATH={DEFAULT_PATH}"));
        }
        for entry in &stage.image.config.env {
            let (key, value) = entry.split_once('=').unwrap_or((entry, ""));
            stage.state.env.set(key, value);
        }
        if !options.hostname.is_empty() {
            stage.state.hostname = options.hostname.clone();
        }
        let place = stage.stage.ranges.clone();
        let dir = stage.image.config.working_dir.clone();
        if !dir.is_empty() {
            self.set_workdir(index, &dir).map_err(|error| error.at(&place))?;
        }
        let stage = &mut self.stages[index];
        stage.state.user = match stage.image.config.user.as_str() {
            "" => stage.state.user.clone(),
            user => user.to_owned(),
        };
        stage.state.network = options.network;
        let commands = std::mem::take(&mut stage.commands);
        for command in &commands {
            let lowered = self.lower_command(index, command);
            let lowered = lowered.and_then(|()| self.lex.work.check().map_err(Error::new));
            lowered.map_err(|error| error.at(&command.command.ranges))?;
        }
        // The state keeps them for stages on top of this one.
        self.stages[index].commands = commands;
        Ok(())
    }

    fn lower_command(&mut self, index: usize, command: &StageCommand) -> Result<()> {
        self.stages[index].in_trigger = command.is_trigger;
        let StageCommand { command, sources, .. } = command;
        match &command.kind {
            Kind::Env(pairs) => self.env(index, command, pairs),
            Kind::Label(pairs) => self.label(index, command, pairs),
            Kind::Arg(pairs) => self.arg(index, command, pairs),
            Kind::Maintainer(text) => {
                self.stages[index].image.author = text.clone();
                self.history(index, format!("MAINTAINER {text}"), false);
                Ok(())
            }
            Kind::Add(args) => {
                let source = copy::Source { edge: Some(self.context), from_context: true, is_add: true };
                self.copy(index, command, args, source)?;
                Ok(())
            }
            Kind::Copy(args) => {
                let source = match sources.first() {
                    None => copy::Source { edge: Some(self.context), from_context: true, is_add: false },
                    Some(&stage) if self.stages[stage].dispatched => {
                        let edge = self.stages[stage].state.output;
                        copy::Source { edge, from_context: false, is_add: false }
                    }
                    Some(_) => {
                        // The reference expands first, so what is wrong with a word is said before this.
                        self.expand_copy(index, command, args)?;
                        return Err(Error::new(format!(
                            "cannot copy from stage {}, it needs to be defined before current stage {}",
                            quote(&args.from),
                            quote(&self.stages[index].display_name)
                        )));
                    }
                };
                let paths = self.copy(index, command, args, source)?;
                if let Some(&stage) = sources.first() {
                    let set = self.stages[stage].paths;
                    self.used_paths[set].extend(paths);
                }
                Ok(())
            }
            Kind::Run(args) => self.run(index, command, args, sources),
            Kind::Cmd(line) => self.cmd(index, command, line),
            Kind::Entrypoint(line) => self.entrypoint(index, command, line),
            Kind::Shell(list) => {
                self.stages[index].image.config.shell = list.clone();
                self.history(index, format!("SHELL [{}]", list.join(" ")), false);
                Ok(())
            }
            Kind::Workdir(path) => self.workdir(index, command, path),
            Kind::User(user) => {
                let user = self.expand(index, command, user)?;
                self.stages[index].state.user = user.clone();
                self.stages[index].image.config.user = user.clone();
                self.history(index, format!("USER {user}"), false);
                Ok(())
            }
            Kind::Volume(paths) => self.volume(index, command, paths),
            Kind::Expose(ports) => self.expose(index, command, ports),
            Kind::StopSignal(signal) => {
                let signal = self.expand(index, command, signal)?;
                super::signal::check(&signal)?;
                self.history(index, format!("STOPSIGNAL {signal}"), false);
                self.stages[index].image.config.stop_signal = signal;
                Ok(())
            }
            Kind::Healthcheck(health) => self.health(index, command, health),
            Kind::Onbuild(expression) => {
                self.stages[index].image.config.on_build.push(expression.clone());
                Ok(())
            }
        }
    }

    /// Expands a word in a stage's environment.
    pub(super) fn expand(&mut self, index: usize, command: &Command, word: &str) -> Result<String> {
        let lex = self.lex.clone();
        self.expand_with(&lex, index, command, word)
    }

    pub(super) fn expand_with(
        &mut self,
        lex: &Lex,
        index: usize,
        command: &Command,
        word: &str,
    ) -> Result<String> {
        let (found, outcome) = lex.expand(word, &self.stages[index].state.env);
        self.report_unset(index, command, found.unset);
        outcome.map_err(Error::new)?;
        Ok(found.text)
    }

    fn report_unset(&mut self, index: usize, command: &Command, mut unset: BTreeSet<String>) {
        let stage = &self.stages[index];
        if stage.unknown_base {
            return;
        }
        self.lex.work.add(unset.len().saturating_mul(stage.args.len()));
        unset.retain(|name| !stage.args.iter().any(|(key, _)| key == name));
        unset.remove("BUILDKIT_SBOM_SCAN_CONTEXT");
        unset.remove("BUILDKIT_SBOM_SCAN_STAGE");
        // Each name that is left is compared with all that are set.
        self.lex.work.add(unset.len().saturating_mul(stage.state.env.len()));
        for name in unset {
            let message = format!("Usage of undefined variable '${name}'");
            let message = match suggest(&name, stage.state.env.keys(), true) {
                Some(option) => format!("{message} (did you mean ${option}?)"),
                None => message,
            };
            self.lint.report(Rule::UndefinedVar, &command.comments, &command.ranges, message);
        }
    }

    pub(super) fn history(&mut self, index: usize, created_by: String, layer: bool) {
        self.lex.work.add(created_by.len());
        let created = self.epoch.map(format_time);
        self.stages[index].image.history.push(History {
            created,
            created_by,
            comment: "buildkit.dockerfile.v0".to_owned(),
            empty_layer: !layer,
            ..History::default()
        });
    }

    fn workdir(&mut self, index: usize, command: &Command, path: &str) -> Result<()> {
        let path = self.expand(index, command, path)?;
        let stage = &mut self.stages[index];
        let platform = stage.platform.clone().unwrap_or_default();
        let absolute = path.starts_with('/') || (platform.is_windows() && is_windows_absolute(&path));
        let first = !std::mem::replace(&mut stage.workdir_set, true);
        if first && !absolute {
            let message = format!(
                "Relative workdir {} can have unexpected results if the base image changes",
                quote(&path)
            );
            self.lint.report(Rule::WorkdirRelativePath, &command.comments, &command.ranges, message);
        }
        let dir = self.set_workdir(index, &path)?;
        if dir == "/" {
            self.history(index, format!("WORKDIR {dir}"), false);
            return Ok(());
        }
        let env = self.stages[index].state.env.clone();
        let text = names::shown(&self.lex, &command.code, &env);
        let name = self.vertex_name(index, &text, &platform, &env);
        let stage = &self.stages[index];
        let user = stage.image.config.user.as_str();
        let mkdir = pb::FileActionMkDir {
            path: crate::paths::clean(&dir),
            mode: 0o755,
            make_parents: true,
            owner: (!user.is_empty()).then(|| copy::owner(user)),
            timestamp: self.epoch.map_or(-1, |seconds| seconds.saturating_mul(1_000_000_000)),
        };
        let step = FileStep { source: None, action: pb::file_action::Action::Mkdir(mkdir) };
        let meta = Meta { lines: Some(command.ranges.clone()), ..Meta::named(name) };
        let edge = self.graph.file(stage.state.output, vec![step], meta);
        self.stages[index].state.output = Some(edge);
        self.history(index, format!("WORKDIR {dir}"), true);
        Ok(())
    }

    /// Changes the directory; returns it with forward slashes.
    fn set_workdir(&mut self, index: usize, path: &str) -> Result<String> {
        let stage = &mut self.stages[index];
        let windows = stage.platform.as_ref().is_some_and(Platform::is_windows);
        let current = &stage.image.config.working_dir;
        let dir = if windows {
            let fail = |error: String| Error::new(format!("normalizing workdir: {error}"));
            let strip = |path: &str| match path {
                "" => Ok(String::new()),
                path => crate::paths::strip_drive(path, true),
            };
            let (current, path) = (strip(current).map_err(fail)?, strip(path).map_err(fail)?);
            let absolute = if path.starts_with('/') { path } else { format!("/{current}/{path}") };
            crate::paths::clean(&absolute)
        } else if path.starts_with('/') {
            path.to_owned()
        } else {
            join("/", &format!("{current}/{path}"))
        };
        stage.image.config.working_dir = if windows { dir.replace('/', "\\") } else { dir.clone() };
        stage.state.dir = Some(dir.clone());
        Ok(dir)
    }
}

fn is_windows_absolute(path: &str) -> bool {
    path.starts_with('\\') || path.as_bytes().get(1) == Some(&b':')
}

/// Seconds since the epoch as RFC 3339 in UTC.
fn format_time(seconds: i64) -> String {
    let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Days since 0000-03-01, in eras of 400 years.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}
