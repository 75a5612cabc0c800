//! Where fuzzing, random tests and measurements enter, with a world in which every image is there.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use futures::FutureExt as _;
use kiln_frontend::testing::FakeBridge;
use kiln_frontend::{
    Bridge, Error, Frontend as _, FrontendRequest, FrontendResult, ImageMetadata, ResolveRequest, Result,
    SolveRequest, SourceMetadata, Warning,
};

use crate::DockerfileFrontend;
use crate::instruction::parse_stages;
use crate::lint::Linter;
use crate::parser::Parsed;
use crate::shell::{Env, Lex};

/// Splits a file into instructions and reads them. What could be split is printed and split again, which has to give
/// the same.
///
/// # Errors
/// What is wrong with the file.
///
/// # Panics
/// If printing changed it.
pub fn parse(data: &[u8]) -> Result<(), String> {
    let parsed = crate::parser::parse(data).map_err(|error| error.message())?;
    let printed = print(&parsed);
    // Continuations become one line, which may be longer than a line can be.
    let fits = printed.lines().all(|line| line.len() <= crate::parser::MAX_LINE);
    // One that ends in an escape at the end of the file would go on if anything followed.
    let ends = |text: &str| {
        let rest = text.trim().strip_suffix(parsed.escape);
        rest.is_none_or(|rest| rest.ends_with(parsed.escape))
    };
    if fits && parsed.nodes.iter().all(|node| ends(&node.text)) && !instructions(&parsed).is_empty() {
        let again = crate::parser::parse(printed.as_bytes()).map_err(|error| error.message());
        let again = again.map(|again| instructions(&again));
        assert_eq!(again, Ok(instructions(&parsed)), "printed as {printed:?}");
    }
    parse_stages(&parsed.nodes, &mut Linter::default()).map(drop).map_err(|error| error.message())
}

/// A file with the same instructions, each on one line but for its heredocs.
fn print(parsed: &Parsed) -> String {
    let mut out = format!("# escape={}\n", parsed.escape);
    for node in &parsed.nodes {
        out.push_str(node.text.trim());
        out.push('\n');
        for heredoc in &node.heredocs {
            out.push_str(&heredoc.data);
            out.push_str(&heredoc.name);
            out.push('\n');
        }
    }
    out
}

/// What instructions are made of, without their places.
fn instructions(parsed: &Parsed) -> Vec<String> {
    let line = |node: &crate::parser::Node| {
        let keyword = &node.keyword;
        format!("{keyword} {:?} {:?} {:?}", node.flags, node.args.without_places(), node.heredocs)
    };
    // A continuation mark at the end of the file is an instruction without a word, which cannot be printed.
    parsed.nodes.iter().filter(|node| !node.keyword.is_empty()).map(line).collect()
}

/// Expands a word in every way that instructions do. Returns what became of it as a plain word.
///
/// # Errors
/// What is wrong with the word.
pub fn expand(word: &str, env: &[(&str, &str)]) -> Result<String, String> {
    let mut variables = Env::default();
    for (key, value) in env {
        variables.set(key, value);
    }
    for lex in [
        Lex { keep_unset: true, raw_quotes: true, ..Lex::new('\\') },
        Lex { plain_quotes: true, ..Lex::new('\\') },
        Lex { raw_quotes: true, raw_escapes: true, keep_unset: true, ..Lex::new('\\') },
        Lex::new('`'),
    ] {
        // Only the plain reading is asked for; the others must end.
        let _outcome = lex.word(word, &variables);
    }
    Lex::new('\\').word(word, &variables)
}

/// Builds a file with these options. Every image exists; one with `onbuild` in its name has triggers.
///
/// # Errors
/// What is wrong with the file or an option.
pub fn lower(data: &[u8], opts: &[(&str, &str)]) -> Result<FrontendResult> {
    let mut world = World::default();
    let files =
        [("Dockerfile".to_owned(), data.to_vec()), (".dockerignore".to_owned(), b"ignored\n".to_vec())];
    for local in ["local://dockerfile", "local://context"] {
        world.files.trees.insert(local.to_owned(), files.clone().into());
    }
    let opts: BTreeMap<String, String> =
        opts.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let solved = DockerfileFrontend.solve(Arc::new(world), FrontendRequest::new(opts)).now_or_never();
    solved.unwrap_or_else(|| Err(Error::internal("the frontend waits for something")))
}

#[derive(Debug, Default)]
struct World {
    files: FakeBridge,
}

#[async_trait]
impl Bridge for World {
    async fn solve(&self, request: SolveRequest) -> Result<FrontendResult> {
        if !request.frontend.is_empty() {
            return Err(Error::input(format!("no frontend {}", request.frontend)));
        }
        // What is read is a directory alone; of anything else only its graph counts.
        match request.definition.as_ref().is_some_and(|definition| definition.def.len() == 2) {
            true => self.files.solve(request).await,
            false => Ok(FrontendResult::default()),
        }
    }

    async fn resolve_source_metadata(&self, request: ResolveRequest) -> Result<SourceMetadata> {
        let identifier = request.source.identifier.clone();
        let mut answer = SourceMetadata::default();
        answer.source = request.source;
        if !identifier.starts_with("docker-image://") && !identifier.starts_with("oci-layout://") {
            return Ok(answer);
        }
        let triggers = match identifier.contains("onbuild") {
            true => {
                r#","OnBuild":["ARG OB=1","COPY --from=x $OB /ob/","RUN --mount=from=y,target=/y echo $OB"]"#
            }
            false => "",
        };
        let config = format!(
            r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":["sha256:{0}"]}},"config":{{"Env":["PATH=/bin","A=b"],"Cmd":["sh"]{triggers}}}}}"#,
            "ab".repeat(32)
        );
        answer.image = Some(ImageMetadata {
            digest: format!("sha256:{}", "cd".repeat(32)),
            config: config.into_bytes(),
        });
        Ok(answer)
    }

    async fn warn(&self, _warning: Warning) -> Result<()> {
        Ok(())
    }
}

/// A file like many of a big repository's: `stages` stages of twenty lines, each from one of a few images or from
/// another stage, with arguments, variables, mounts and copies; the last one collects from all.
pub fn big_file(stages: usize) -> String {
    let mut out = "# syntax=docker/dockerfile:1\nARG VERSION=1.2.3\nARG REGISTRY=example.com\n".to_owned();
    for i in 0..stages {
        let base = match i % 4 {
            0 => "$REGISTRY/base:${VERSION}".to_owned(),
            1 => format!("s{}", i - 1),
            2 => "golang:1.22".to_owned(),
            _ => format!("s{}", i - 1),
        };
        out.push_str(&format!(
            "# s{i} builds part {i}\nFROM {base} AS s{i}\nARG VERSION\nARG PART=part{i}\nENV PART_DIR=/src/$PART MODE=release\n\
             LABEL part=\"$PART\" version=${{VERSION:-none}}\nWORKDIR /src\n\
             RUN --mount=type=cache,target=/root/.cache/$PART \\\n    apt-get update && \\\n    apt-get install -y gcc make\n\
             COPY --link go.mod go.sum $PART_DIR/\nCOPY {i}/src {i}/include $PART_DIR/\n\
             RUN --mount=type=bind,source=tools,target=/tools /tools/build ${{PART%%t*}} ${{VERSION//./-}}\n\
             COPY <<EOF $PART_DIR/version.txt\n$VERSION of $PART\nEOF\nEXPOSE {}/tcp\nUSER 1000:1000\nCMD [\"/bin/part{i}\"]\n",
            8000 + i % 1000
        ));
    }
    out.push_str("FROM scratch\n");
    for i in 0..stages {
        out.push_str(&format!("COPY --from=s{i} /src/part{i}/out /part{i}\n"));
    }
    out
}
