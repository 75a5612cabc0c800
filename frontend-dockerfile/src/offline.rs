//! Checking a Dockerfile without a daemon: files come from a directory, and nothing is known of images.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use kiln_frontend::{
    Bridge, Error, FileRange, FileStat, FrontendRequest, FrontendResult, Reference, ResolveRequest, Result,
    SolveRequest, SourceMetadata, Warning, pb,
};
use prost::Message;

use crate::frontend::{NAME, solve};

/// The directories that a Dockerfile is checked in.
///
/// Every implementation keeps these:
/// 1. `local` is `dockerfile`, the directory of the Dockerfile, or `context`.
/// 2. Links in `path` are followed inside that directory, and nothing outside it is ever read.
/// 3. What is not there is [`Error::NotFound`] with that path.
pub trait Files: fmt::Debug + Send + Sync + 'static {
    /// Reads a whole file. May block.
    fn read(&self, local: &str, path: &str) -> Result<Vec<u8>>;
}

/// Runs the linter as the sub-request `frontend.lint` does, on files alone. Returns the answer's metadata:
/// `result.json`, `result.txt`, `result.statuscode`.
///
/// Base images are not looked at, so what depends on them is not reported: variables that they may set, and their
/// platforms.
///
/// # Errors
/// If there is no Dockerfile, or the file asks for another frontend or for sources that only a daemon has. What is wrong
/// with the Dockerfile itself is part of the answer.
pub async fn lint(
    files: Arc<dyn Files>,
    opts: BTreeMap<String, String>,
) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut request = FrontendRequest::new(opts);
    request.opts.insert("requestid".to_owned(), "frontend.lint".to_owned());
    Ok(solve(Arc::new(Offline { files }), request, true).await?.metadata)
}

#[derive(Clone, Debug)]
struct Offline {
    files: Arc<dyn Files>,
}

#[async_trait]
impl Bridge for Offline {
    async fn solve(&self, request: SolveRequest) -> Result<FrontendResult> {
        if !request.frontend.is_empty() {
            return self.forward(request).await;
        }
        let Some(source) = request.definition.and_then(|definition| last_source(&definition)) else {
            return Ok(FrontendResult::default());
        };
        match source.strip_prefix("local://") {
            Some(local) => Ok(FrontendResult::single(Some(Arc::new(Directory {
                files: self.files.clone(),
                local: local.to_owned(),
            })))),
            None => Err(needs_daemon(&source)),
        }
    }

    async fn resolve_source_metadata(&self, request: ResolveRequest) -> Result<SourceMetadata> {
        let identifier = &request.source.identifier;
        if !identifier.starts_with("docker-image://") {
            return Err(needs_daemon(identifier));
        }
        let mut answer = SourceMetadata::default();
        answer.source = request.source;
        Ok(answer)
    }

    async fn warn(&self, _warning: Warning) -> Result<()> {
        Ok(())
    }
}

impl Offline {
    async fn forward(&self, request: SolveRequest) -> Result<FrontendResult> {
        let name = kiln_frontend::builtin(&request.frontend, &request.opts);
        if name != NAME {
            let source = request.opts.get("source").map(String::as_str).unwrap_or(name);
            return Err(Error::input(format!(
                "the Dockerfile asks for the frontend `{source}`, which only a daemon can run"
            )));
        }
        // The options say that it was forwarded, so that happens once.
        solve(Arc::new(self.clone()), FrontendRequest::new(request.opts), true).await
    }
}

fn needs_daemon(source: &str) -> Error {
    Error::input(format!("`{source}` cannot be looked at without a daemon"))
}

/// Identifier of the source that a definition asks for.
fn last_source(definition: &pb::Definition) -> Option<String> {
    let asked = definition.def.len().checked_sub(2)?;
    let op = pb::Op::decode(definition.def.get(asked)?.as_slice()).ok()?;
    match op.op? {
        pb::op::Op::Source(source) => Some(source.identifier),
        _ => None,
    }
}

#[derive(Debug)]
struct Directory {
    files: Arc<dyn Files>,
    local: String,
}

#[async_trait]
impl Reference for Directory {
    async fn read_file(&self, path: &str, range: Option<FileRange>) -> Result<Vec<u8>> {
        let data = self.files.read(&self.local, path)?;
        let Some(range) = range else { return Ok(data) };
        let at = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        Ok(data.into_iter().skip(at(range.offset)).take(at(range.length)).collect())
    }

    async fn read_dir(&self, path: &str, _include_pattern: &str) -> Result<Vec<FileStat>> {
        Err(needs_daemon(path))
    }

    async fn stat(&self, path: &str) -> Result<FileStat> {
        Err(needs_daemon(path))
    }

    async fn evaluate(&self) -> Result<()> {
        Ok(())
    }

    fn definition(&self) -> Option<pb::Definition> {
        None
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[derive(Debug)]
    struct Table(&'static [(&'static str, &'static str)]);

    impl Files for Table {
        fn read(&self, local: &str, path: &str) -> Result<Vec<u8>> {
            let name = format!("{local}/{path}");
            let found = self.0.iter().find(|(known, _)| *known == name);
            let missing = || Error::NotFound { path: path.to_owned() };
            found.map(|(_, text)| text.as_bytes().to_vec()).ok_or_else(missing)
        }
    }

    /// Rules and lines, or the error.
    #[track_caller]
    fn check(files: &'static [(&'static str, &'static str)], opts: &[(&str, &str)], want: &[&str]) {
        let opts = opts.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let got = match lint(Arc::new(Table(files)), opts).now_or_never().unwrap() {
            Err(error) => vec![error.chain()],
            Ok(answer) => {
                let json: serde_json::Value = serde_json::from_slice(&answer["result.json"]).unwrap();
                let hits = json["warnings"].as_array().into_iter().flatten();
                let hits = hits.map(|hit| {
                    let line = &hit["location"]["ranges"][0]["start"]["line"];
                    format!("{} {line}", hit["ruleName"].as_str().unwrap())
                });
                let broken = json["buildError"]["message"].as_str().map(str::to_owned);
                hits.chain(broken).collect()
            }
        };
        assert_eq!(got, want);
    }

    #[test]
    fn rules_that_need_no_image() {
        check(
            &[("dockerfile/Dockerfile", "FROM scratch\nENV A=$B\nMAINTAINER me\n")],
            &[],
            &["MaintainerDeprecated 3", "UndefinedVar 2"],
        );
        check(
            &[
                ("dockerfile/Dockerfile", "FROM scratch AS a\nCOPY x /\nFROM a AS B\n"),
                ("context/.dockerignore", "x\n"),
            ],
            &[],
            &["StageNameCasing 3", "CopyIgnoredFile 2"],
        );
    }

    #[test]
    fn what_an_image_may_set_is_not_undefined() {
        let files: &[(&str, &str)] = &[(
            "dockerfile/Dockerfile",
            "FROM golang:1 AS a\nENV X=$GOPATH/bin\nFROM a\nENV Y=$HOME\nFROM scratch\nENV Z=$HOME\nCOPY --from=alpine /x /\n",
        )];
        check(files, &[], &["UndefinedVar 6"]);
    }

    #[test]
    fn what_is_wrong_with_the_file_is_part_of_the_answer() {
        check(
            &[("dockerfile/Dockerfile", "FROM scratch\nLABLE x\n")],
            &[],
            &["dockerfile parse error on line 2: unknown instruction: LABLE (did you mean LABEL?)"],
        );
        check(&[("dockerfile/x", "FROM scratch\nCMD x\n")], &[("filename", "x")], &["JSONArgsRecommended 2"]);
    }

    #[test]
    fn what_needs_a_daemon_is_refused() {
        check(&[], &[], &["failed to read dockerfile: open Dockerfile: no such file or directory"]);
        check(
            &[("dockerfile/Dockerfile", "# syntax=docker/dockerfile:1\nFROM scratch AS A\n")],
            &[],
            &["StageNameCasing 2"],
        );
        check(
            &[("dockerfile/Dockerfile", "# syntax=example.com/other\nFROM scratch\n")],
            &[],
            &["the Dockerfile asks for the frontend `example.com/other`, which only a daemon can run"],
        );
        check(
            &[],
            &[("context", "https://example.com/x.git")],
            &["failed to resolve dockerfile: `git://example.com/x.git` cannot be looked at without a daemon"],
        );
    }
}
