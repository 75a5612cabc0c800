//! `lint`

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;

use kiln_cli::{Call, Error, Method, Result};
use kiln_frontend::Error as FrontendError;
use kiln_frontend_dockerfile::Files;
use kiln_rootdir::Root;

use crate::args::{Format, LintArgs};
use crate::build::{Input, build_args};

/// How long a Dockerfile or an ignore file may be, in bytes.
const MAX_FILE: u64 = 16 << 20;

/// Checks a Dockerfile with nothing but its directory, and prints what was found.
pub(crate) async fn run(args: LintArgs) -> Result<ExitCode> {
    let Input { context, dockerfile, name } = Input::find(&args.dir, args.file.as_deref())?;
    let open = |dir: &std::path::Path| {
        Root::open(dir).map_err(|error| Error::option(format!("cannot use `{}`: {error}", dir.display())))
    };
    let files = Directories { context: open(&context)?, dockerfile: open(&dockerfile)? };
    let mut opts = build_args(&args.build_args);
    opts.insert("filename".to_owned(), name);
    opts.extend(args.target.map(|target| ("target".to_owned(), target)));
    // Files are read while it runs.
    let handle = tokio::runtime::Handle::current();
    let check = move || handle.block_on(kiln_frontend_dockerfile::lint(Arc::new(files), opts));
    let answer = tokio::task::spawn_blocking(check)
        .await
        .map_err(|error| Error::option(format!("the check ended early: {error}")))?
        .map_err(|error| Error::option(error.chain()))?;
    print_answer(Call { method: Method::Check, json: args.format == Format::Json }, &answer)
}

/// Prints an answer; the exit code says whether it is good.
pub(crate) fn print_answer(call: Call, answer: &BTreeMap<String, Vec<u8>>) -> Result<ExitCode> {
    crate::print(&call.text(answer)?)?;
    Ok(if call.is_good(answer) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[derive(Debug)]
struct Directories {
    context: Root,
    dockerfile: Root,
}

impl Files for Directories {
    fn read(&self, local: &str, path: &str) -> Result<Vec<u8>, FrontendError> {
        let root = if local == "context" { &self.context } else { &self.dockerfile };
        root.read(path, MAX_FILE).map_err(|error| match error.is_not_found() {
            true => FrontendError::NotFound { path: path.to_owned() },
            false => FrontendError::input(format!("cannot read `{path}`: {error}")),
        })
    }
}
