use kiln_frontend::ResolveRequest;

use crate::error::{Error, Result};
use crate::git_url;
use crate::graph::{Graph, Meta};
use crate::instruction::{Kind, Stages};
use crate::lower::Lowering;

const KEY: &str = "SOURCE_DATE_EPOCH";

impl Lowering<'_> {
    /// Finds out the time that stands for "now" in the result, and replaces the argument by it.
    pub(super) async fn resolve_epoch(&mut self, stages: &Stages) -> Result<()> {
        let given = self.build_args.get(KEY).cloned();
        let Some(value) =
            given.or_else(|| self.globals.get(KEY).filter(|value| !value.is_empty()).map(str::to_owned))
        else {
            return Ok(());
        };
        self.epoch = self.epoch_of(&value, stages).await?;
        match self.epoch {
            Some(seconds) => {
                let text = seconds.to_string();
                if let Some(value) = self.build_args.get_mut(KEY) {
                    value.clone_from(&text);
                }
                if self.globals.get(KEY).is_some() {
                    self.globals.set(KEY, &text);
                }
            }
            None => {
                self.build_args.remove(KEY);
                self.globals.remove(KEY);
            }
        }
        Ok(())
    }

    async fn epoch_of(&mut self, value: &str, stages: &Stages) -> Result<Option<i64>> {
        if value.is_empty() {
            return Ok(None);
        }
        if let Ok(seconds) = value.parse::<i64>() {
            return Ok(Some(seconds));
        }
        if value == "context" {
            return self.main.epoch(self.client).await;
        }
        if let Ok(Some(context)) = self.client.named_context(value, self.asked_platform()) {
            let mut graph = Graph::default();
            let loaded = context.load(self.client, &mut graph).await?;
            let source = loaded.state.output.and_then(|edge| graph.source_op(edge));
            let name = format!("[internal] resolve SOURCE_DATE_EPOCH named context {value}");
            return self.source_epoch(source, name).await;
        }
        let Some(stage) = stages.stages.iter().rev().find(|stage| stage.name.eq_ignore_ascii_case(value))
        else {
            return Err(Error::new(format!("invalid SOURCE_DATE_EPOCH: {value}")));
        };
        let place = stage.ranges.clone();
        let fail = |message: String| Error::new(message).at(&place);
        let base = self.lex.word(&stage.base, &self.globals).map_err(fail)?;
        if base != "scratch" {
            return Err(fail("SOURCE_DATE_EPOCH stage must use FROM scratch".to_owned()));
        }
        let mut env = crate::shell::Env::default();
        let mut adds = Vec::new();
        for command in &stage.commands {
            match &command.kind {
                Kind::Arg(pairs) => {
                    for pair in pairs {
                        let value = match (self.build_args.get(&pair.key), &pair.value) {
                            (Some(value), _) => Some(value.clone()),
                            (None, Some(default)) => Some(self.lex.word(default, &env).map_err(Error::new)?),
                            (None, None) => self.globals.get(&pair.key).map(str::to_owned),
                        };
                        if let Some(value) = value {
                            env.set(&pair.key, &value);
                        }
                    }
                }
                Kind::Add(args) => adds.push((args, env.clone())),
                _ => {
                    let name = command.name.to_uppercase();
                    return Err(fail(format!(
                        "SOURCE_DATE_EPOCH stage does not meet source-only requirements: unsupported {name} instruction"
                    )));
                }
            }
        }
        let [(args, env)] = adds.as_slice() else {
            return Err(fail("SOURCE_DATE_EPOCH stage must contain exactly one remote ADD".to_owned()));
        };
        let not_single = || fail("SOURCE_DATE_EPOCH source must be a single HTTP(S) or Git ADD".to_owned());
        let [source] = args.sources.as_slice() else { return Err(not_single()) };
        let source = self.lex.word(source, env).map_err(Error::new)?;
        let mut graph = Graph::default();
        let edge = match git_url::parse(&source) {
            Some(Ok(url)) if !url.looks_local => url.to_source(&mut graph, Meta::default()),
            Some(Err(error)) => return Err(fail(error)),
            _ if source.starts_with("http://") || source.starts_with("https://") => self.client.http(
                &mut graph,
                &source,
                super::copy::url_file(&source).as_str(),
                &args.checksum,
                Meta::default(),
            ),
            _ => return Err(not_single()),
        };
        let name = format!("[internal] resolve SOURCE_DATE_EPOCH source stage {value}");
        self.source_epoch(graph.source_op(edge), name).await
    }

    async fn source_epoch(
        &self,
        source: Option<kiln_frontend::pb::SourceOp>,
        name: String,
    ) -> Result<Option<i64>> {
        let Some(source) = source else { return Ok(None) };
        let is_git = source.identifier.starts_with("git://");
        let is_http = source.identifier.starts_with("http");
        if !is_git && !is_http {
            return Ok(None);
        }
        let mut request = ResolveRequest::new(source, name);
        request.git_objects = is_git;
        let answer = self.client.bridge.resolve_source_metadata(request).await?;
        if let Some(git) = answer.git.filter(|git| !git.commit_object.is_empty()) {
            return Ok(crate::epoch::committer_time(&git.commit_object));
        }
        Ok(answer.http.and_then(|http| http.last_modified))
    }
}
