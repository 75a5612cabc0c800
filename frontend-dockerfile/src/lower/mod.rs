//! Stages to LLB and an image config.

mod args;
mod config;
mod copy;
mod expose;
mod instructions;
mod names;
mod outline;
mod resolve;
mod run;
mod sbom;
mod signal;
mod source_epoch;
mod stages;

use std::collections::{BTreeMap, BTreeSet};

use kiln_frontend::{SourceMetadata, pb};
use kiln_patterns::Patterns;

pub(crate) use self::outline::{Entry as OutlineEntry, Outline};
pub(crate) use self::sbom::Scanner;
use crate::context::{Client, MainContext};
use crate::error::{Error, Result};
use crate::graph::{Edge, Graph, State};
use crate::image::Image;
use crate::instruction::{Stages, parse_stages};
use crate::lint::{LintConfig, Linter, Rule};
use crate::lower::stages::StageState;
use crate::parser::{directive, parse};
use crate::platform::Platform;
use crate::shell::{Env, Lex};
use crate::source::SourceFile;

/// What to lower, and for which platform.
pub(crate) struct Request<'a> {
    pub(crate) client: &'a Client,
    pub(crate) file: &'a SourceFile,
    /// None is the worker's, which may give way to that of the base image.
    pub(crate) platform: Option<&'a Platform>,
    /// Lower every stage, whether the target needs it or not.
    pub(crate) all_stages: bool,
    /// Write the graph down; else its definition is empty.
    pub(crate) graph: bool,
    /// Also scan the result.
    pub(crate) scanner: Option<&'a Scanner>,
}

/// A target, lowered.
#[derive(Debug)]
pub(crate) struct Lowered {
    pub(crate) definition: pb::Definition,
    pub(crate) image: Image,
    /// Config of the base image as it was.
    pub(crate) base_image: Option<Image>,
    pub(crate) epoch: Option<i64>,
    /// Where the bill of materials is, if one was asked for.
    pub(crate) attestation: Option<pb::Definition>,
    pub(crate) outline: Outline,
}

/// The linter for a file: its own directive, or the build argument instead.
pub(crate) fn linter(client: &Client, file: &SourceFile) -> Result<Linter> {
    let config = match &client.options.lint {
        Some(config) => config.clone(),
        None => {
            let value = directive("check", &file.data).map(|found| found.first).unwrap_or_default();
            LintConfig::parse(&value)
                .map_err(|error| Error::new(format!("failed to parse check options: {error}")))?
        }
    };
    Ok(Linter::new(config))
}

/// Lowers a file.
pub(crate) async fn lower(request: Request<'_>, main: &MainContext, lint: &mut Linter) -> Result<Lowered> {
    if request.file.data.is_empty() {
        return Err(Error::new("the Dockerfile cannot be empty"));
    }
    let parsed = parse(&request.file.data)?;
    for line in &parsed.empty_continuations {
        lint.report(Rule::NoEmptyContinuation, &[], &[*line], "Empty continuation line".to_owned());
    }
    let stages = parse_stages(&parsed.nodes, lint)?;
    if stages.stages.is_empty() {
        return Err(Error::new("dockerfile contains no stages to build"));
    }
    names::check_stage_names(&stages, lint);
    names::check_casing(&stages, lint);
    let mut lowering = Lowering::new(&request, main, lint, Lex::new(parsed.escape));
    lowering.globals(&stages).await?;
    lowering.add_stages(stages)?;
    let target = lowering.target()?;
    lowering.link_stages()?;
    let reachable = lowering.resolve_stages(target).await?;
    lowering.lower_stages(&reachable, target).await?;
    lowering.finish(target).await
}

struct Lowering<'a> {
    client: &'a Client,
    main: &'a MainContext,
    file: &'a SourceFile,
    lint: &'a mut Linter,
    all_stages: bool,
    writes_graph: bool,
    lex: Lex,
    graph: Graph,
    target_platform: Platform,
    /// The target platform was not asked for.
    implied_platform: bool,
    build_args: BTreeMap<String, String>,
    globals: Env,
    /// Names of the global ARGs, set or not.
    declared: BTreeSet<String>,
    epoch: Option<i64>,
    stages: Vec<StageState>,
    by_name: BTreeMap<String, usize>,
    /// Which paths are used of each stage; stages on one base share a set.
    used_paths: Vec<BTreeSet<String>>,
    /// Stands for the build context until its paths are known.
    context: Edge,
    ignore: Option<Patterns>,
    proxy: Option<pb::ProxyEnv>,
    /// Local sources that are limited to the paths of a set, once all are known.
    late_locals: Vec<(Edge, usize)>,
    groups: usize,
    /// What was found out about images, by what was asked.
    resolved: BTreeMap<String, SourceMetadata>,
    scanner: Option<&'a Scanner>,
    notes: outline::Notes,
}

impl<'a> Lowering<'a> {
    fn new(request: &Request<'a>, main: &'a MainContext, lint: &'a mut Linter, lex: Lex) -> Self {
        let options = &request.client.options;
        let mut graph = Graph::default();
        let context = graph.later();
        Self {
            client: request.client,
            main,
            file: request.file,
            lint,
            all_stages: request.all_stages,
            writes_graph: request.graph,
            lex,
            graph,
            target_platform: request.platform.cloned().unwrap_or_else(|| options.build_platform.clone()),
            implied_platform: request.platform.is_none(),
            build_args: options.build_args.clone(),
            globals: Env::default(),
            declared: BTreeSet::new(),
            epoch: None,
            stages: Vec::new(),
            by_name: BTreeMap::new(),
            used_paths: Vec::new(),
            context,
            ignore: None,
            proxy: args::proxy(&options.build_args),
            late_locals: Vec::new(),
            groups: 0,
            resolved: BTreeMap::new(),
            scanner: request.scanner,
            notes: outline::Notes::default(),
        }
    }

    async fn globals(&mut self, stages: &Stages) -> Result<()> {
        let last = stages.stages.last().map(|stage| stage.name.clone()).unwrap_or_default();
        let target = match self.client.options.target.as_str() {
            "" => last,
            target => target.to_owned(),
        };
        let predefined = self.predefined(&target);
        self.check_default_bases(stages, &predefined);
        (self.globals, self.notes) = self.global_args(&predefined, &stages.global_args, &self.build_args)?;
        self.declared = self.notes.args.keys().cloned().collect();
        self.resolve_epoch(stages).await
    }

    /// The stage that is asked for.
    fn target(&self) -> Result<usize> {
        let name = &self.client.options.target;
        if name.is_empty() {
            return Ok(self.stages.len() - 1);
        }
        self.find_stage(name).ok_or_else(|| {
            let message = format!("target stage {} could not be found", crate::text::quote(name));
            let names = self.stage_names();
            Error::new(crate::text::with_suggestion(message, name, names.iter().map(String::as_str), true))
        })
    }

    async fn lower_stages(&mut self, reachable: &BTreeSet<usize>, target: usize) -> Result<()> {
        let patterns = self.main.ignore_patterns(self.client).await?;
        if !patterns.is_empty() {
            self.ignore = Some(Patterns::new(&patterns).map_err(|error| Error::new(error.to_string()))?);
        }
        for index in 0..self.stages.len() {
            let wanted = reachable.contains(&index) && !self.stages[index].dispatched;
            if wanted || self.all_stages {
                self.lower_stage(index)?;
            }
        }
        let set = self.stages[target].paths;
        self.used_paths[set].insert("/".to_owned());
        Ok(())
    }

    async fn finish(mut self, target: usize) -> Result<Lowered> {
        let labels = self.client.options.labels.clone();
        self.stages[target].image.config.labels.extend(labels);
        self.lint.check()?;
        let mut paths = BTreeSet::new();
        for stage in &self.stages {
            paths.extend(stage.context_paths.iter().cloned());
        }
        let scan = self.scanner.map(|scanner| {
            let id = self.asked_platform().cloned().unwrap_or_else(Platform::host).normalized().format();
            self.scan(target, scanner, &id)
        });
        let source = self.main.source(self.client, &mut self.graph, follow_paths(&paths)).await?;
        self.graph.fill(self.context, source);
        for (edge, set) in std::mem::take(&mut self.late_locals) {
            let follow = follow_paths(&self.used_paths[set]);
            if !follow.is_empty() {
                self.graph.edit_source(edge, |attrs, caps| {
                    attrs.insert("local.followpaths".to_owned(), crate::context::json_list(&follow));
                    caps.push("source.local.followpaths".to_owned());
                });
            }
        }
        let stage = &self.stages[target];
        let mut image = stage.image.clone();
        if !self.implied_platform {
            let wanted = &self.target_platform;
            let mut platform = image.platform();
            let same = platform.os == wanted.os && platform.arch == wanted.arch;
            platform.os = wanted.os.clone();
            platform.arch = wanted.arch.clone();
            if !wanted.variant.is_empty() || !same {
                platform.variant = wanted.variant.clone();
            }
            if !wanted.os_version.is_empty() || !same {
                platform.os_version = wanted.os_version.clone();
            }
            if !wanted.os_features.is_empty() {
                platform.os_features = wanted.os_features.clone();
            }
            image.set_platform(&platform);
        }
        image.set_platform(&image.platform().normalized());
        let definition = match self.writes_graph {
            true => self.graph.marshal(stage.state.output, self.file)?,
            false => pb::Definition::default(),
        };
        let attestation = match scan {
            Some(edge) => Some(self.graph.marshal(Some(edge), self.file)?),
            None => None,
        };
        let outline = self.outline(target);
        Ok(Lowered {
            definition,
            image,
            base_image: stage.base_image.clone(),
            epoch: self.epoch,
            attestation,
            outline,
        })
    }

    /// The platform of ops in a state.
    fn op_platform(&self, state: &State) -> Platform {
        state.platform.clone().unwrap_or_else(|| self.target_platform.clone())
    }
}

/// Paths as an attribute has them: sorted, relative; none at all if the root is among them.
fn follow_paths(paths: &BTreeSet<String>) -> Vec<String> {
    if paths.contains("/") {
        return Vec::new();
    }
    let mut follow: Vec<String> = paths.iter().map(|path| path.trim_start_matches('/').to_owned()).collect();
    follow.sort();
    follow
}
