use std::collections::{BTreeMap, BTreeSet};

use futures::future::join_all;
use kiln_frontend::{Error as FrontendError, ResolveMode, ResolveRequest, SourceMetadata, pb};

use crate::error::{Error, Result};
use crate::graph::{Meta, State};
use crate::image::Image;
use crate::instruction::parse_command;
use crate::lint::{Linter, Rule};
use crate::lower::Lowering;
use crate::parser::parse;
use crate::platform::Platform;
use crate::reference::Reference;
use crate::shell::Env;
use crate::text::{quote, suggest};

/// What a base name turned out to be, before anyone is asked about it.
struct Base {
    stage: usize,
    written: String,
    reference: Reference,
    platform: Platform,
    request: Option<ResolveRequest>,
}

const COMMON: [&str; 7] = ["alpine", "busybox", "centos", "debian", "golang", "ubuntu", "fedora"];

impl Lowering<'_> {
    /// Resolves what the target needs, until triggers add nothing more.
    pub(super) async fn resolve_stages(&mut self, target: usize) -> Result<BTreeSet<usize>> {
        loop {
            let reachable = self.reachable(target);
            self.resolve_bases(&reachable).await?;
            let mut more = false;
            for &index in &reachable {
                self.inherit(index);
                more |= self.add_triggers(index)?;
            }
            if !more {
                return Ok(reachable);
            }
        }
    }

    /// Takes over what the base stage has.
    pub(super) fn inherit(&mut self, index: usize) {
        let Some(base) = self.stages[index].base else { return };
        let base = &self.stages[base];
        let (state, platform, mut image) = (base.state.clone(), base.platform.clone(), base.image.clone());
        let (base_image, paths, workdir_set) = (base.base_image.clone(), base.paths, base.workdir_set);
        let (args, unknown_base) = (base.args.clone(), base.unknown_base);
        image.config.on_build.clear();
        let stage = &mut self.stages[index];
        (stage.state, stage.platform, stage.image) = (state, platform, image);
        (stage.base_image, stage.paths, stage.workdir_set) = (base_image, paths, workdir_set);
        stage.unknown_base = unknown_base;
        stage.args.extend(args);
    }

    fn add_triggers(&mut self, index: usize) -> Result<bool> {
        let stage = &mut self.stages[index];
        let mut triggers = std::mem::take(&mut stage.image.config.on_build);
        if let Some(base) = stage.base.filter(|_| !stage.triggers_done) {
            stage.triggers_done = true;
            for command in &self.stages[base].commands {
                if let crate::instruction::Kind::Onbuild(expression) = &command.command.kind {
                    triggers.push(expression.clone());
                }
            }
        }
        if triggers.is_empty() {
            return Ok(false);
        }
        let place = self.stages[index].stage.ranges.clone();
        let own = std::mem::take(&mut self.stages[index].commands);
        let mut more = false;
        for trigger in &triggers {
            more |= self.add_trigger(index, trigger).map_err(|error| error.only_at(&place))?;
        }
        let stage = &mut self.stages[index];
        stage.commands.extend(own);
        stage.steps += triggers.len();
        Ok(more)
    }

    fn add_trigger(&mut self, index: usize, trigger: &str) -> Result<bool> {
        let mut parsed = parse(trigger.as_bytes())?;
        let node = match (parsed.nodes.pop(), parsed.nodes.is_empty()) {
            (Some(node), true) => node,
            _ => return Err(Error::new("onbuild trigger should be a single expression")),
        };
        // What a trigger of someone else's file could be warned about is no concern here.
        let mut command = parse_command(&node, &mut Linter::muted())?;
        command.ranges = match self.stages[index].stage.ranges.as_slice() {
            [] => Vec::new(),
            [first, ..] => {
                let last =
                    self.stages[index].stage.ranges.iter().map(|line| line.end).max().unwrap_or(first.end);
                crate::source::LineRange::lines(first.start, last)
            }
        };
        self.link(index, command, true)
    }

    async fn resolve_bases(&mut self, reachable: &BTreeSet<usize>) -> Result<()> {
        let mut bases = Vec::new();
        for index in 0..self.stages.len() {
            let needed = self.all_stages || reachable.contains(&index);
            let stage = &mut self.stages[index];
            if stage.base.is_some() || stage.dispatched || stage.resolved {
                continue;
            }
            stage.resolved = needed;
            if stage.stage.base == "scratch" && stage.named_context.is_none() {
                stage.state = State::default();
                stage.image = Image::empty(&self.target_platform);
                stage.platform = Some(self.target_platform.clone());
                stage.dispatched = stage.unregistered;
                continue;
            }
            let place = stage.stage.ranges.clone();
            let base = self.prepare_base(index, needed).await.map_err(|error| error.at(&place));
            if self.stages[index].unregistered {
                self.stages[index].dispatched = true;
            }
            bases.extend(base?);
        }
        let answers = self.ask(&bases).await;
        for (base, answer) in bases.into_iter().zip(answers) {
            let place = self.stages[base.stage].stage.ranges.clone();
            self.use_base(base, answer).map_err(|error| error.at(&place))?;
        }
        Ok(())
    }

    /// Asks about all bases at once, and about each image once.
    async fn ask(&mut self, bases: &[Base]) -> Vec<Option<Result<SourceMetadata, FrontendError>>> {
        let mut requests: BTreeMap<String, &ResolveRequest> = BTreeMap::new();
        for request in bases.iter().filter_map(|base| base.request.as_ref()) {
            let key = key(request);
            if !self.resolved.contains_key(&key) {
                requests.entry(key).or_insert(request);
            }
        }
        let bridge = &self.client.bridge;
        let asked = requests.values().map(|&request| bridge.resolve_source_metadata(request.clone()));
        let answers = join_all(asked).await;
        let mut failed = BTreeMap::new();
        for (key, answer) in requests.into_keys().zip(answers) {
            match answer {
                Ok(answer) => drop(self.resolved.insert(key, answer)),
                Err(error) => drop(failed.insert(key, error)),
            }
        }
        let mut answer = |request: &ResolveRequest| {
            let key = key(request);
            if let Some(answer) = self.resolved.get(&key) {
                return Ok(answer.clone());
            }
            // The first stage that needs it fails the build, so the error is wanted once.
            Err(failed.remove(&key).unwrap_or_else(|| FrontendError::internal("an image was not resolved")))
        };
        bases.iter().map(|base| base.request.as_ref().map(&mut answer)).collect()
    }

    /// Finds out what to ask about a base. None if a named context stands in for it.
    async fn prepare_base(&mut self, index: usize, needed: bool) -> Result<Option<Base>> {
        let written = self.stages[index].stage.base.clone();
        let reference = Reference::parse(&written)
            .map_err(|error| Error::new(format!("failed to parse stage name {}: {error}", quote(&written))))?
            .with_default_tag();
        let platform = self.stages[index].platform.clone().unwrap_or_else(|| self.target_platform.clone());
        let full = reference.full();
        self.stages[index].stage.base = full.clone();
        if !needed {
            return Ok(Some(Base { stage: index, written, reference, platform, request: None }));
        }
        if let Some(context) = self.stages[index].named_context.clone() {
            let loaded = context.load(self.client, &mut self.graph).await?;
            if let (true, Some(edge)) = (loaded.is_local, loaded.state.output) {
                self.late_locals.push((edge, self.stages[index].paths));
            }
            let stage = &mut self.stages[index];
            stage.dispatched = true;
            stage.state = loaded.state;
            if let Some(image) = loaded.image {
                if !image.architecture.is_empty() && !image.os.is_empty() {
                    stage.platform = Some(image.platform());
                }
                stage.image = image;
            }
            return Ok(None);
        }
        if let Some(context) = self.client.named_context(&full, Some(&platform))? {
            let loaded = context.load(self.client, &mut self.graph).await?;
            if let (true, Some(edge)) = (loaded.is_local, loaded.state.output) {
                self.late_locals.push((edge, self.stages[index].paths));
            }
            let stage = &mut self.stages[index];
            let image = loaded.image.unwrap_or_else(|| Image::empty(&platform));
            stage.base_image = Some(image.clone());
            stage.image = Image { created: None, ..image };
            stage.state = loaded.state;
            stage.state.platform = Some(platform.normalized());
            stage.platform = Some(platform);
            return Ok(None);
        }
        let options = &self.client.options;
        let prefix = match options.multi_platform {
            true => format!("[{} internal]", platform.format()),
            false => "[internal]".to_owned(),
        };
        let source = pb::SourceOp { identifier: format!("docker-image://{full}"), attrs: BTreeMap::new() };
        let mut request = ResolveRequest::new(source, format!("{prefix} load metadata for {full}"));
        request.platform = Some(platform.to_pb());
        request.resolve_mode = options.resolve_mode;
        Ok(Some(Base { stage: index, written, reference, platform, request: Some(request) }))
    }

    fn use_base(&mut self, base: Base, answer: Option<Result<SourceMetadata, FrontendError>>) -> Result<()> {
        let Base { stage: index, written, mut reference, mut platform, .. } = base;
        let needed = answer.is_some();
        let mut is_scratch = false;
        if let Some(answer) = answer {
            let answer = answer.map_err(|error| self.not_resolved(error, &written, &reference.full()))?;
            let asked = reference.full();
            let answered = answer.source.identifier.strip_prefix("docker-image://").unwrap_or(&asked);
            if answered != asked {
                reference = Reference::parse(answered).map_err(|error| {
                    Error::new(format!("failed to parse ref {}: {error}", quote(answered)))
                })?;
            }
            let Some(found) = answer.image else {
                if !self.client.offline {
                    return Err(Error::new(format!("nothing is known of the image {}", reference.full())));
                }
                self.use_image(index, &platform, false, &written);
                let stage = &mut self.stages[index];
                stage.image = Image::empty(&platform);
                (stage.platform, stage.unknown_base) = (Some(platform), true);
                return Ok(());
            };
            let image = Image::parse(&found.config)
                .map_err(|error| Error::new(format!("failed to parse image config: {error}")))?;
            let stage = &mut self.stages[index];
            stage.base_image = Some(image.clone());
            if stage.platform.is_none() && self.implied_platform {
                platform = detect(&image, &platform, &self.client.options.build_platform);
            }
            if !found.digest.is_empty() {
                reference = reference.with_digest(&found.digest);
            }
            stage.stage.base = reference.full();
            // Old manifests have no diff IDs, so the history has a say too.
            is_scratch = image.rootfs.diff_ids.as_ref().is_none_or(Vec::is_empty)
                && image.history.iter().all(|entry| entry.empty_layer);
            stage.image = Image { created: None, ..image };
        }
        if is_scratch {
            self.stages[index].state = State::default();
        } else {
            self.use_image(index, &platform, needed, &written);
        }
        self.stages[index].platform = Some(platform);
        Ok(())
    }

    fn use_image(&mut self, index: usize, platform: &Platform, needed: bool, written: &str) {
        let base = self.stages[index].stage.base.clone();
        let name = self.vertex_name(index, &format!("FROM {base}"), platform, &Env::default());
        let stage = &self.stages[index].stage;
        let meta = Meta {
            name: Some(name),
            command: Some(stage.code.clone()),
            lines: Some(stage.ranges.clone()),
            ..Meta::default()
        };
        let mut attrs = BTreeMap::new();
        let mut caps = vec!["source.image"];
        let mode = match self.client.options.resolve_mode {
            ResolveMode::Default => "",
            ResolveMode::ForcePull => "pull",
            ResolveMode::PreferLocal => "local",
        };
        if !mode.is_empty() {
            attrs.insert("image.resolvemode".to_owned(), mode.to_owned());
        }
        if mode == "pull" {
            caps.push("source.image.resolvemode");
        }
        let edge = self.graph.source(format!("docker-image://{base}"), attrs, Some(platform), meta, &caps);
        let stage = &mut self.stages[index];
        stage.state = State::new(Some(edge));
        stage.state.platform = Some(platform.normalized());
        let image = &stage.image;
        if needed && (platform.os != image.os || platform.arch != image.architecture) {
            let (wanted, got) = (platform.normalized().format(), image.platform().normalized().format());
            let message = format!(
                "Base image {written} was pulled with platform {}, expected {} for current build",
                quote(&got),
                quote(&wanted)
            );
            self.lint.report(Rule::InvalidBaseImagePlatform, &[], &stage.stage.ranges, message);
        }
    }

    /// Says which image could not be resolved, and which name may have been meant.
    fn not_resolved(&self, error: FrontendError, written: &str, full: &str) -> Error {
        let mut options = self.stage_names();
        for name in COMMON {
            options.extend([name.to_owned(), format!("{name}:latest")]);
        }
        let hint = suggest(written, options.iter().map(String::as_str), true);
        let error = Error::from(error)
            .context(format!("failed to resolve source metadata for {full}"))
            .context(written);
        match hint {
            Some(hint) => error.with_suffix(&format!(" (did you mean {hint}?)")),
            None => error,
        }
    }
}

/// What a look-up asks, as text: two with the same ask the same.
fn key(request: &ResolveRequest) -> String {
    format!("{:?} {:?} {:?}", request.source, request.platform, request.resolve_mode)
}

/// Without a platform asked for, an image that fits the worker decides.
fn detect(image: &Image, wanted: &Platform, worker: &Platform) -> Platform {
    let fits = |platform: &Platform| platform.os == image.os && platform.arch == image.architecture;
    if !fits(wanted) && fits(worker) { worker.clone() } else { wanted.clone() }
}
