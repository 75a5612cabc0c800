//! `build`

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use kiln_cli::{Build, Call, Error, Explain, Method, Result, Warnings, metadata, options};
use kiln_client::attach::DockerConfig;
use kiln_client::{Client, SolveOptions};
use kiln_digest::Digest;
use kiln_progress::{Display, Mode};
use tokio_util::sync::CancellationToken;

use crate::args::BuildArgs;
use crate::daemon;
use crate::result::Product;

/// Environment variable: the directory of Docker's configuration.
const DOCKER_VARIABLE: &str = "DOCKER_CONFIG";
/// Environment variable: the time that results carry.
const EPOCH_VARIABLE: &str = "SOURCE_DATE_EPOCH";

/// Builds, and says what was made.
pub(crate) async fn run(args: Box<BuildArgs>, stop: &CancellationToken) -> Result<ExitCode> {
    let explain = if args.explain { Explain::Runs } else { Explain::No };
    build(args, explain, stop).await
}

/// Builds, and says of every step why it ran or did not.
pub(crate) async fn explain(mut args: Box<BuildArgs>, stop: &CancellationToken) -> Result<ExitCode> {
    if args.progress == "auto" {
        args.progress = "quiet".to_owned();
    }
    build(args, Explain::All, stop).await
}

async fn build(args: Box<BuildArgs>, explain: Explain, stop: &CancellationToken) -> Result<ExitCode> {
    let mode: Mode = args.progress.parse().map_err(Error::option)?;
    let display = Display::stderr(mode).map_err(|error| Error::option(error.to_string()))?;
    let mut solve = solve_options(&args)?;
    if let Some(call) = call(&args)? {
        return ask(call, &args, solve, display, stop).await;
    }
    let products = Product::all(&args)?;
    let client = connect(&args, stop).await?;
    let outcome = async {
        solve.exports = products.iter().map(Product::open).collect::<Result<_>>()?;
        let build = Build { options: solve, display, trace: None, explain, warnings: warnings(mode) };
        let outcome = build.run(&client, stop).await?;
        products.iter().try_for_each(Product::keep)?;
        Ok::<_, Error>(outcome)
    }
    .await;
    if outcome.is_err() {
        products.iter().for_each(Product::discard);
    }
    let response = outcome?.exporter_response;
    if let Some(file) = &args.metadata_file {
        metadata::write(file, &response).map_err(|error| Error::io("write", file, &error))?;
    }
    if mode == Mode::Quiet {
        return Ok(ExitCode::SUCCESS);
    }
    let digest = response.get("containerimage.digest").map(String::as_str);
    let mut lines: Vec<String> = products.iter().filter_map(|product| product.line(digest)).collect();
    if products.is_empty() {
        lines.push(
            "built, and kept in the cache only: name it with -t NAME, or say where it goes with -o"
                .to_owned(),
        );
    }
    for line in lines {
        // A closed standard error is nobody's concern; standard output may carry an archive.
        let _written = writeln!(std::io::stderr(), "{line}");
    }
    Ok(ExitCode::SUCCESS)
}

async fn connect(args: &BuildArgs, stop: &CancellationToken) -> Result<Client> {
    tokio::select! {
        client = daemon::connect(&args.daemon) => client,
        () = stop.cancelled() => Err(Error::Stopped { message: "stopped" }),
    }
}

/// What is asked instead of building.
fn call(args: &BuildArgs) -> Result<Option<Call>> {
    match args.call.as_str() {
        _ if args.check => Ok(Some(Call { method: Method::Check, json: false })),
        "build" | "" => Ok(None),
        call => call.parse().map(Some),
    }
}

/// Asks the frontend, and prints the answer. The exit code is that of the answer.
async fn ask(
    call: Call,
    args: &BuildArgs,
    mut solve: SolveOptions,
    display: Display,
    stop: &CancellationToken,
) -> Result<ExitCode> {
    solve.frontend_attrs.insert("requestid".to_owned(), call.method.request().to_owned());
    solve.frontend_attrs.insert("frontend.caps".to_owned(), "moby.buildkit.frontend.subrequests".to_owned());
    let client = connect(args, stop).await?;
    let asked = Build { options: solve, display, trace: None, explain: Explain::No, warnings: Warnings::No };
    let answer = asked.ask(&client, stop).await?;
    crate::lint::print_answer(call, &answer)
}

/// Warnings are shown with their lines, except to programs and to those who want silence.
fn warnings(mode: Mode) -> Warnings {
    match mode {
        Mode::Quiet | Mode::RawJson => Warnings::No,
        _ => Warnings::Excerpts,
    }
}

fn solve_options(args: &BuildArgs) -> Result<SolveOptions> {
    let Input { context, dockerfile, name } = Input::find(&args.dir, args.file.as_deref())?;
    let mut solve = SolveOptions::default();
    solve.frontend = "dockerfile.v0".to_owned();
    solve.shared_key = Digest::of(context.as_os_str().as_encoded_bytes()).to_string();
    solve.locals = [("dockerfile".to_owned(), dockerfile), ("context".to_owned(), context)].into();
    solve.frontend_attrs = build_args(&args.build_args);
    let mut set = |key: String, value: String| drop(solve.frontend_attrs.insert(key, value));
    set("filename".to_owned(), name);
    for text in &args.label {
        let (key, value) = text.split_once('=').unwrap_or((text, ""));
        set(format!("label:{key}"), value.to_owned());
    }
    if let Some(target) = &args.target {
        set("target".to_owned(), target.clone());
    }
    if let Some(platform) = &args.platform {
        set("platform".to_owned(), platform.clone());
    }
    if args.no_cache {
        set("no-cache".to_owned(), String::new());
    }
    if let Some(epoch) = std::env::var(EPOCH_VARIABLE).ok().filter(|epoch| !epoch.is_empty()) {
        solve.frontend_attrs.entry(format!("build-arg:{EPOCH_VARIABLE}")).or_insert(epoch);
    }
    solve.secrets = options::secrets(&args.secret)?;
    solve.ssh = options::agents(&args.ssh)?;
    solve.cache_imports =
        args.cache_from.iter().map(|text| options::cache_import(text)).collect::<Result<_>>()?;
    solve.cache_exports =
        args.cache_to.iter().map(|text| options::cache_export(text)).collect::<Result<_>>()?;
    solve.entitlements = args.allow.iter().map(|text| options::entitlement(text)).collect::<Result<_>>()?;
    let docker = std::env::var_os(DOCKER_VARIABLE).filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let docker = docker.unwrap_or_else(|| std::env::home_dir().unwrap_or_default().join(".docker"));
    solve.docker_config = Some(DockerConfig::new(docker));
    Ok(solve)
}

/// Where the input of a build is.
pub(crate) struct Input {
    pub(crate) context: PathBuf,
    /// The directory of the Dockerfile.
    pub(crate) dockerfile: PathBuf,
    /// Its name there.
    pub(crate) name: String,
}

impl Input {
    pub(crate) fn find(dir: &Path, file: Option<&Path>) -> Result<Self> {
        let context = directory(dir)?;
        let file = file.map_or_else(|| dir.join("Dockerfile"), Path::to_owned);
        // The frontend looks for this one too.
        let lower = file.ends_with("Dockerfile").then(|| file.with_file_name("dockerfile"));
        if !file.is_file() && !lower.is_some_and(|lower| lower.is_file()) {
            return Err(Error::option(format!("there is no Dockerfile at `{}`", file.display())));
        }
        let parent = file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { context, dockerfile: directory(parent)?, name })
    }
}

/// Frontend options for `--build-arg` flags.
pub(crate) fn build_args(flags: &[String]) -> BTreeMap<String, String> {
    let arg = |text: &String| match text.split_once('=') {
        Some((key, value)) => Some((format!("build-arg:{key}"), value.to_owned())),
        // Not set, it is as if the flag were not there.
        None => Some((format!("build-arg:{text}"), std::env::var(text).ok()?)),
    };
    flags.iter().filter_map(arg).collect()
}

fn directory(path: &Path) -> Result<PathBuf> {
    let absolute = path.canonicalize().map_err(|error| {
        Error::option(format!("cannot use `{}`: {}", path.display(), kiln_cli::io_text(&error)))
    })?;
    if !absolute.is_dir() {
        return Err(Error::option(format!("`{}` is not a directory", path.display())));
    }
    Ok(absolute)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_the_frontend() {
        let dir = tempfile::tempdir().unwrap();
        let refused =
            solve_options(&BuildArgs { dir: dir.path().to_owned(), ..BuildArgs::default() }).unwrap_err();
        assert!(refused.to_string().starts_with("there is no Dockerfile at"));
        std::fs::write(dir.path().join("Dockerfile.x"), "FROM scratch").unwrap();
        let args = BuildArgs {
            dir: dir.path().to_owned(),
            file: Some(dir.path().join("Dockerfile.x")),
            build_args: vec!["A=b=c".to_owned(), "NOT_SET_ANYWHERE".to_owned()],
            label: vec!["l=1".to_owned()],
            target: Some("t".to_owned()),
            no_cache: true,
            ..BuildArgs::default()
        };
        let solve = solve_options(&args).unwrap();
        let attrs: Vec<_> = solve.frontend_attrs.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(attrs.join(" "), "build-arg:A=b=c filename=Dockerfile.x label:l=1 no-cache= target=t");
        assert_eq!(solve.locals.keys().collect::<Vec<_>>(), ["context", "dockerfile"]);
    }
}
