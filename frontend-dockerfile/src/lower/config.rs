//! Instructions that change the image config and nothing else.

use crate::error::{Error, Result};
use crate::go::format_duration;
use crate::image::{Empty, Healthcheck, Image};
use crate::instruction::{ArgPair, Command, CommandLine, Health, KeyValue};
use crate::lint::Rule;
use crate::lower::Lowering;
use crate::lower::outline::ArgNote;
use crate::text::quote;

impl Lowering<'_> {
    pub(super) fn env(&mut self, index: usize, command: &Command, pairs: &[KeyValue]) -> Result<()> {
        let pairs = self.expand_pairs(index, command, pairs)?;
        let mut text = "ENV".to_owned();
        for pair in &pairs {
            self.report_legacy(command, pair);
            self.report_secret(command, "ENV", &pair.key);
            text.push_str(&format!(" {}={}", pair.key, pair.value));
            let stage = &mut self.stages[index];
            stage.state.env.set(&pair.key, &pair.value);
            self.lex.work.add(stage.image.config.env.len());
            stage.image.set_env(&pair.key, &pair.value);
        }
        self.history(index, text, false);
        Ok(())
    }

    pub(super) fn label(&mut self, index: usize, command: &Command, pairs: &[KeyValue]) -> Result<()> {
        let pairs = self.expand_pairs(index, command, pairs)?;
        let mut text = "LABEL".to_owned();
        for pair in pairs {
            self.report_legacy(command, &pair);
            text.push_str(&format!(" {}={}", pair.key, pair.value));
            self.stages[index].image.config.labels.insert(pair.key, pair.value);
        }
        self.history(index, text, false);
        Ok(())
    }

    fn expand_pairs(&mut self, index: usize, command: &Command, pairs: &[KeyValue]) -> Result<Vec<KeyValue>> {
        let mut out = Vec::new();
        for pair in pairs {
            let key = self.expand(index, command, &pair.key)?;
            let value = self.expand(index, command, &pair.value)?;
            out.push(KeyValue { key, value, legacy: pair.legacy });
        }
        Ok(out)
    }

    fn report_legacy(&mut self, command: &Command, pair: &KeyValue) {
        if pair.legacy {
            let name = &command.name;
            let message =
                format!("\"{name} key=value\" should be used instead of legacy \"{name} key value\" format");
            self.lint.report(Rule::LegacyKeyValueFormat, &command.comments, &command.ranges, message);
        }
    }

    fn report_secret(&mut self, command: &Command, keyword: &str, key: &str) {
        if is_secret(key) {
            let message =
                format!("Do not use ARG or ENV instructions for sensitive data ({keyword} {})", quote(key));
            self.lint.report(Rule::SecretsUsedInArgOrEnv, &command.comments, &command.ranges, message);
        }
    }

    pub(super) fn arg(&mut self, index: usize, command: &Command, pairs: &[ArgPair]) -> Result<()> {
        let mut texts = Vec::new();
        for pair in pairs {
            self.report_secret(command, "ARG", &pair.key);
            let value = match (self.build_args.get(&pair.key), &pair.value) {
                (Some(value), _) => Some(value.clone()),
                (None, Some(default)) => Some(self.expand(index, command, default)?),
                (None, None) => self.globals.get(&pair.key).map(str::to_owned),
            };
            self.note_arg(index, command, pair, value.as_deref());
            let stage = &mut self.stages[index];
            if let Some(value) = &value
                && !pair.key.starts_with("BUILDKIT_SBOM_SCAN_")
            {
                stage.state.env.set(&pair.key, value);
            }
            texts.push(match &value {
                Some(value) => format!("{}={value}", pair.key),
                None => pair.key.clone(),
            });
            stage.args.push((pair.key.clone(), value));
        }
        self.history(index, format!("ARG {}", texts.join(" ")), false);
        Ok(())
    }

    /// Notes an ARG; one that only takes over a global one leaves that one's note in place.
    fn note_arg(&mut self, index: usize, command: &Command, pair: &ArgPair, value: Option<&str>) {
        let inherited = pair.value.is_none() && !self.build_args.contains_key(&pair.key) && value.is_some();
        let notes = &mut self.stages[index].notes;
        notes.used.insert(pair.key.clone());
        if !inherited {
            let value = value.unwrap_or_default().to_owned();
            let note = ArgNote {
                value,
                doc: pair.doc.clone(),
                ranges: command.ranges.clone(),
                ..ArgNote::default()
            };
            notes.args.insert(pair.key.clone(), note);
        }
    }

    pub(super) fn cmd(&mut self, index: usize, command: &Command, line: &CommandLine) -> Result<()> {
        let earlier = self.stages[index].cmd.replace(command.ranges.clone());
        self.report_repeated(command, earlier);
        let args = self.image_command(index, command, line);
        self.history(index, format!("CMD {}", quoted_list(&args)), false);
        let config = &mut self.stages[index].image.config;
        config.cmd = args;
        config.args_escaped = true;
        Ok(())
    }

    pub(super) fn entrypoint(&mut self, index: usize, command: &Command, line: &CommandLine) -> Result<()> {
        let earlier = self.stages[index].entrypoint.replace(command.ranges.clone());
        self.report_repeated(command, earlier);
        let args = self.image_command(index, command, line);
        self.history(index, format!("ENTRYPOINT {}", quoted_list(&args)), false);
        let stage = &mut self.stages[index];
        stage.image.config.entrypoint = args;
        if stage.cmd.is_none() {
            stage.image.config.cmd.clear();
        }
        Ok(())
    }

    fn image_command(&mut self, index: usize, command: &Command, line: &CommandLine) -> Vec<String> {
        if !line.shell_form {
            return line.args.clone();
        }
        let image = &self.stages[index].image;
        if image.config.shell.is_empty() {
            let message = format!(
                "JSON arguments recommended for {} to prevent unintended behavior related to OS signals",
                command.name
            );
            self.lint.report(Rule::JSONArgsRecommended, &command.comments, &command.ranges, message);
        }
        with_shell(image, &line.args)
    }

    fn report_repeated(&mut self, command: &Command, earlier: Option<Vec<crate::source::LineRange>>) {
        if let Some(earlier) = earlier {
            let message = format!(
                "Multiple {} instructions should not be used in the same stage because only the last one will be used",
                command.name
            );
            self.lint.report(Rule::MultipleInstructionsDisallowed, &command.comments, &earlier, message);
        }
    }

    pub(super) fn health(&mut self, index: usize, command: &Command, health: &Health) -> Result<()> {
        let earlier = self.stages[index].healthcheck.replace(command.ranges.clone());
        self.report_repeated(command, earlier);
        let text = format!(
            "HEALTHCHECK {{Test:[{}] Interval:{} Timeout:{} StartPeriod:{} StartInterval:{} Retries:{}}}",
            health.test.join(" "),
            format_duration(health.interval),
            format_duration(health.timeout),
            format_duration(health.start_period),
            format_duration(health.start_interval),
            health.retries
        );
        self.stages[index].image.config.healthcheck = Some(Healthcheck {
            test: health.test.clone(),
            interval: health.interval,
            timeout: health.timeout,
            start_period: health.start_period,
            start_interval: health.start_interval,
            retries: health.retries,
        });
        self.history(index, text, false);
        Ok(())
    }

    pub(super) fn volume(&mut self, index: usize, command: &Command, paths: &[String]) -> Result<()> {
        let mut expanded = Vec::new();
        for path in paths {
            expanded.push(self.expand(index, command, path)?);
        }
        for path in &expanded {
            if path.is_empty() {
                return Err(Error::new("VOLUME specified can not be an empty string"));
            }
            self.stages[index].image.config.volumes.insert(path.clone(), Empty {});
        }
        self.history(index, format!("VOLUME [{}]", expanded.join(" ")), false);
        Ok(())
    }
}

/// A command line behind the image's shell.
pub(super) fn with_shell(image: &Image, args: &[String]) -> Vec<String> {
    let mut line = match (image.config.shell.is_empty(), image.os.as_str()) {
        (false, _) => image.config.shell.clone(),
        (true, "windows") => ["cmd", "/S", "/C"].map(str::to_owned).to_vec(),
        (true, _) => ["/bin/sh", "-c"].map(str::to_owned).to_vec(),
    };
    line.push(args.join(" "));
    line
}

fn quoted_list(args: &[String]) -> String {
    let quoted: Vec<String> = args.iter().map(|arg| quote(arg)).collect();
    format!("[{}]", quoted.join(" "))
}

fn is_secret(key: &str) -> bool {
    const SECRET: [&str; 10] = [
        "apikey",
        "auth",
        "credential",
        "credentials",
        "key",
        "password",
        "pword",
        "passwd",
        "secret",
        "token",
    ];
    let key = key.to_lowercase();
    let has = |words: &[&str]| key.split('_').any(|word| words.contains(&word));
    has(&SECRET) && !has(&["public", "file", "version"])
}
