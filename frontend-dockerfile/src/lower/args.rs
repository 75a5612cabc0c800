use std::collections::BTreeMap;

use kiln_frontend::pb;

use crate::error::{Error, Result};
use crate::instruction::{Command, Kind, Stages};
use crate::lint::Rule;
use crate::lower::Lowering;
use crate::lower::outline::{ArgNote, Notes};
use crate::reference::Reference;
use crate::shell::Env;

impl Lowering<'_> {
    /// Arguments that every build has.
    pub(super) fn predefined(&self, target: &str) -> Env {
        let (build, wanted) = (&self.client.options.build_platform, &self.target_platform);
        let target = if target.is_empty() { "default" } else { target };
        let values = [
            ("BUILDPLATFORM", build.format_short()),
            ("BUILDOS", build.os.clone()),
            ("BUILDOSVERSION", build.os_version.clone()),
            ("BUILDARCH", build.arch.clone()),
            ("BUILDVARIANT", build.variant.clone()),
            ("TARGETPLATFORM", wanted.format()),
            ("TARGETOS", wanted.os.clone()),
            ("TARGETOSVERSION", wanted.os_version.clone()),
            ("TARGETARCH", wanted.arch.clone()),
            ("TARGETVARIANT", wanted.variant.clone()),
            ("TARGETSTAGE", target.to_owned()),
        ];
        let mut env = Env::default();
        for (key, value) in values {
            env.set(key, self.build_args.get(key).unwrap_or(&value));
        }
        env
    }

    /// Adds the ARGs in front of the first FROM; also returns their names.
    pub(super) fn global_args(
        &self,
        predefined: &Env,
        commands: &[Command],
        build_args: &BTreeMap<String, String>,
    ) -> Result<(Env, Notes)> {
        let (mut env, mut notes) = (predefined.clone(), Notes::default());
        for command in commands {
            let Kind::Arg(pairs) = &command.kind else { continue };
            for pair in pairs {
                let mut note =
                    ArgNote { doc: pair.doc.clone(), ranges: command.ranges.clone(), ..ArgNote::default() };
                let value = match (build_args.get(&pair.key), &pair.value) {
                    (Some(value), _) => Some(value.clone()),
                    (None, Some(default)) => {
                        let (found, outcome) = self.lex.expand(default, &env);
                        outcome.map_err(|error| Error::new(error).at(&command.ranges))?;
                        note.deps = found.set;
                        // A default that refers to its own name means the declaration before it.
                        if note.deps.remove(&pair.key)
                            && let Some(earlier) = notes.args.get(&pair.key)
                        {
                            note.deps.extend(earlier.deps.iter().cloned());
                        }
                        Some(found.text)
                    }
                    (None, None) => None,
                };
                if let Some(value) = value {
                    env.set(&pair.key, &value);
                    note.value = value;
                }
                notes.args.insert(pair.key.clone(), note);
            }
        }
        Ok((env, notes))
    }

    /// Checks that the bases make sense when no build argument is given.
    pub(super) fn check_default_bases(&mut self, stages: &Stages, predefined: &Env) {
        let Ok((env, _)) = self.global_args(predefined, &stages.global_args, &BTreeMap::new()) else {
            return;
        };
        for stage in &stages.stages {
            let Ok(base) = self.lex.word(&stage.base, &env) else { return };
            if Reference::parse(&base).is_err() {
                let message = format!(
                    "Default value for ARG {} results in empty or invalid base image name",
                    stage.base
                );
                self.lint.report(Rule::InvalidDefaultArgInFrom, &[], &stage.ranges, message);
            }
        }
    }
}

/// Proxies among the build arguments. Names match in any case; the last in byte order wins.
pub(super) fn proxy(build_args: &BTreeMap<String, String>) -> Option<pb::ProxyEnv> {
    let mut proxy = pb::ProxyEnv::default();
    let mut found = false;
    for (key, value) in build_args {
        let place = match key.to_lowercase().as_str() {
            "http_proxy" => &mut proxy.http_proxy,
            "https_proxy" => &mut proxy.https_proxy,
            "ftp_proxy" => &mut proxy.ftp_proxy,
            "no_proxy" => &mut proxy.no_proxy,
            "all_proxy" => &mut proxy.all_proxy,
            _ => continue,
        };
        *place = value.clone();
        found = true;
    }
    found.then_some(proxy)
}
