//! `build`

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{IsTerminal as _, Read as _, Write as _, stderr, stdin, stdout};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use kiln_cli::{Build, Error, Explain, Result, Warnings, metadata, options, random_id};
use kiln_client::SolveOptions;
use kiln_client::api::pb;
use kiln_client::attach::DockerConfig;
use kiln_digest::Digest;
use kiln_progress::{Display, Mode};
use prost::Message as _;
use tokio_util::sync::CancellationToken;

use crate::connection::Connection;
use crate::flags::Parsed;

/// Environment variable: how progress is shown, if `--progress` leaves it open.
const PROGRESS_VARIABLE: &str = "BUILDKIT_PROGRESS";
/// Environment variable: the time that results carry.
const EPOCH_VARIABLE: &str = "SOURCE_DATE_EPOCH";
/// Environment variable: the directory of Docker's configuration.
const DOCKER_VARIABLE: &str = "DOCKER_CONFIG";
/// How long a definition may be, in bytes. The daemon takes no larger requests.
const MAX_DEFINITION: u64 = 64 << 20;
/// What is put before a failure to reach the daemon.
const CONTEXT: &str = "failed to solve: ";
/// Frontend option: a question to answer instead of building.
const QUESTION: &str = "requestid";
/// What a frontend needs to answer questions.
const QUESTIONS_CAP: &str = "moby.buildkit.frontend.subrequests";
/// Flags that change nothing yet, so that they must not be believed to.
const NOT_YET: [&str; 3] = ["source-policy-file", "registry-auth-tlscontext", "debug-json-cache-metrics"];

/// Builds, shows the progress and writes the files that were asked for.
pub(crate) async fn run(
    connection: &Connection<'_>,
    parsed: &Parsed,
    stop: &CancellationToken,
) -> Result<()> {
    if let Some(flag) = NOT_YET.iter().find(|flag| !parsed.list(flag).is_empty()) {
        return Err(Error::option(format!("--{flag} is not supported yet")));
    }
    let trace = parsed.text("trace").map(open_trace).transpose()?;
    let mode = mode(parsed)?;
    let solve = solve_options(parsed)?;
    let reference = solve.reference.clone();
    let display = Display::stderr(mode).map_err(|error| match mode {
        Mode::Tty => Error::option(format!("{error}: provided file is not a console")),
        _ => Error::option(error.to_string()),
    })?;
    let explain = if parsed.is("explain") { Explain::Runs } else { Explain::No };
    let client = connection.open(CONTEXT).await?;
    // Beside plain lines the reference prints nothing more; programs may rely on that.
    let live = matches!(mode, Mode::Tty) || (mode == Mode::Auto && stderr().is_terminal());
    let warnings = if live { Warnings::Excerpts } else { Warnings::No };
    if solve.frontend_attrs.contains_key(QUESTION) && !solve.frontend.is_empty() {
        let asked = Build { options: solve, display, trace, explain, warnings: Warnings::No };
        return print_answer(&asked.ask(&client, stop).await?);
    }
    let outcome = Build { options: solve, display, trace, explain, warnings }.run(&client, stop).await;
    if let Some(file) = parsed.text("ref-file") {
        write(file, |path| metadata::replace(path, reference.as_bytes()), outcome.is_ok())?;
    }
    let outcome = outcome?;
    if let Some(file) = parsed.text("metadata-file") {
        write(file, |path| metadata::write(path, &outcome.exporter_response), true)?;
    }
    Ok(())
}

/// Prints the text of an answer, or else all of its parts.
fn print_answer(answer: &BTreeMap<String, Vec<u8>>) -> Result<()> {
    let mut out = stdout();
    let written = match answer.get("result.txt") {
        Some(text) => out.write_all(text),
        None => answer.iter().filter(|(key, _)| key.starts_with("result.")).try_for_each(|(key, value)| {
            writeln!(out, "{key}")?;
            out.write_all(value)?;
            writeln!(out)
        }),
    };
    written.and_then(|()| out.flush()).map_err(|error| Error::io("write", Path::new("/dev/stdout"), &error))
}

/// Writes a file beside a build. The failure of a build is reported before one of the file.
fn write(file: &str, write: impl FnOnce(&Path) -> std::io::Result<()>, matters: bool) -> Result<()> {
    let path = Path::new(file);
    match write(path) {
        Err(error) if matters => Err(Error::io("open", path, &error)),
        _ => Ok(()),
    }
}

/// What the flags ask for. Files of outputs are created, and standard input is read if there is no frontend.
pub(crate) fn solve_options(parsed: &Parsed) -> Result<SolveOptions> {
    let outputs: Vec<_> =
        parsed.list("output").iter().map(|text| options::Output::parse(text)).collect::<Result<_>>()?;
    let mut solve = SolveOptions::default();
    solve.reference = random_id();
    solve.frontend = parsed.text("frontend").unwrap_or_default().to_owned();
    if solve.frontend.is_empty() {
        if stdin().is_terminal() {
            return Err(Error::option("please specify --frontend or pipe LLB definition to stdin"));
        }
        solve.definition = Some(read_definition(parsed.is("no-cache"))?);
    }
    solve.entitlements =
        parsed.list("allow").iter().map(|text| options::entitlement(text)).collect::<Result<_>>()?;
    solve.secrets = options::secrets(parsed.list("secret"))?;
    solve.ssh = options::agents(parsed.list("ssh"))?;
    solve.cache_exports =
        parsed.list("export-cache").iter().map(|text| options::cache_export(text)).collect::<Result<_>>()?;
    solve.cache_imports =
        parsed.list("import-cache").iter().map(|text| options::cache_import(text)).collect::<Result<_>>()?;
    solve.frontend_attrs = options::frontend_options(parsed.list("opt"))?;
    if solve.frontend_attrs.contains_key(QUESTION) {
        solve.frontend_attrs.insert("frontend.caps".to_owned(), QUESTIONS_CAP.to_owned());
    }
    if !solve.frontend.is_empty() {
        if parsed.is("no-cache") {
            solve.frontend_attrs.insert("no-cache".to_owned(), String::new());
        }
        if let Ok(epoch) = std::env::var(EPOCH_VARIABLE)
            && !epoch.is_empty()
        {
            solve.frontend_attrs.entry(format!("build-arg:{EPOCH_VARIABLE}")).or_insert(epoch);
        }
    }
    solve.locals = options::locals(parsed.list("local"))?;
    solve.oci_layouts = options::oci_layouts(parsed.list("oci-layout"))?;
    solve.proxy_network = parsed.is("proxy-network");
    solve.docker_config = Some(DockerConfig::new(docker_directory()));
    let dir = std::env::current_dir().unwrap_or_default();
    solve.shared_key = Digest::of(dir.as_os_str().as_encoded_bytes()).to_string();
    // Last, because files are created.
    solve.exports = outputs.into_iter().map(options::Output::open).collect::<Result<_>>()?;
    Ok(solve)
}

/// Where Docker keeps its configuration.
fn docker_directory() -> PathBuf {
    match std::env::var_os(DOCKER_VARIABLE).filter(|dir| !dir.is_empty()) {
        Some(dir) => dir.into(),
        None => std::env::home_dir().unwrap_or_default().join(".docker"),
    }
}

fn mode(parsed: &Parsed) -> Result<Mode> {
    let text = parsed.text("progress").unwrap_or_default();
    let text = match text {
        "" | "auto" => std::env::var(PROGRESS_VARIABLE).unwrap_or_default(),
        given => given.to_owned(),
    };
    text.parse().map_err(Error::option)
}

fn open_trace(file: &str) -> Result<File> {
    let opened = OpenOptions::new().append(true).create(true).mode(0o600).open(file);
    opened.map_err(|error| Error::io("open", Path::new(file), &error))
}

fn read_definition(ignore_cache: bool) -> Result<pb::Definition> {
    let mut content = Vec::new();
    stdin()
        .take(MAX_DEFINITION + 1)
        .read_to_end(&mut content)
        .map_err(|error| Error::option(format!("failed to parse input: {error}")))?;
    if content.len() as u64 > MAX_DEFINITION {
        let limit = MAX_DEFINITION >> 20;
        return Err(Error::option(format!(
            "the definition is larger than {limit} MiB, the most that a daemon takes: bring large files in by a source"
        )));
    }
    let mut definition = parse_definition(&content).map_err(|error| error.within("failed to parse input"))?;
    if definition.def.is_empty() {
        return Err(Error::option("empty definition sent to build. Specify --frontend instead?"));
    }
    if ignore_cache {
        let digests = definition.def.iter().map(|op| Digest::of(op).to_string()).collect::<Vec<_>>();
        for digest in digests {
            definition.metadata.entry(digest).or_default().ignore_cache = true;
        }
    }
    Ok(definition)
}

/// Reads a definition in protobuf form.
pub(crate) fn parse_definition(content: &[u8]) -> Result<pb::Definition> {
    pb::Definition::decode(content).map_err(|error| {
        let text = error.to_string();
        let short =
            text.contains("underflow") || text.contains("unexpected end") || text.contains("invalid varint");
        Error::option(if short { "unexpected EOF".to_owned() } else { text })
    })
}
