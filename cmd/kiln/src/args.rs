//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// Builds images. Without `--addr` it starts a daemon of your own on demand, which stays until `kiln stop`.
#[derive(Debug, Parser)]
#[command(name = "kiln", version, max_term_width = 100)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Build a directory with a Dockerfile.
    Build(Box<BuildArgs>),
    /// Build, and say of every step why it ran or came from the cache. Takes the flags of build.
    Explain(Box<BuildArgs>),
    /// Check a Dockerfile. No daemon is needed; exit code 1 if something is found.
    Lint(LintArgs),
    /// Show what the cache holds.
    Du(DuArgs),
    /// Remove what the cache holds and nothing needs.
    Prune(PruneArgs),
    /// Stop your daemon.
    Stop,
    /// Print the version.
    Version,
}

/// Flags of `build`.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct BuildArgs {
    /// Name of the image (repeatable), e.g. hello or registry.example/team/app:1.2.
    #[arg(short = 't', long = "tag", value_name = "NAME")]
    pub(crate) tags: Vec<String>,
    /// The Dockerfile; otherwise the one in DIR.
    #[arg(short = 'f', long)]
    pub(crate) file: Option<PathBuf>,
    /// Where the result goes (repeatable): type=docker|oci|tar|local|image,dest=…,…; or a directory.
    #[arg(short = 'o', long = "output", value_name = "OUTPUT")]
    pub(crate) outputs: Vec<String>,
    /// Push the image to the registry of its name.
    #[arg(long)]
    pub(crate) push: bool,
    /// Value of an ARG (repeatable); without a value, that of the environment variable.
    #[arg(long = "build-arg", value_name = "KEY[=VALUE]")]
    pub(crate) build_args: Vec<String>,
    /// Stage to build.
    #[arg(long)]
    pub(crate) target: Option<String>,
    /// Platforms to build for, e.g. linux/amd64,linux/arm64.
    #[arg(long, value_name = "PLATFORM,…")]
    pub(crate) platform: Option<String>,
    /// Label of the image (repeatable).
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) label: Vec<String>,
    /// Run every step again.
    #[arg(long)]
    pub(crate) no_cache: bool,
    /// Cache to read (repeatable), e.g. type=local,src=dir.
    #[arg(long, value_name = "CACHE")]
    pub(crate) cache_from: Vec<String>,
    /// Cache to write (repeatable), e.g. type=local,dest=dir.
    #[arg(long, value_name = "CACHE")]
    pub(crate) cache_to: Vec<String>,
    /// Secret for RUN --mount=type=secret (repeatable): id=NAME,src=FILE or id=NAME,env=VARIABLE.
    #[arg(long)]
    pub(crate) secret: Vec<String>,
    /// Agent for RUN --mount=type=ssh (repeatable): default or ID=SOCKET.
    #[arg(long)]
    pub(crate) ssh: Vec<String>,
    /// What the build may do (repeatable): network.host, security.insecure.
    #[arg(long)]
    pub(crate) allow: Vec<String>,
    /// Ask instead of building: check, outline, targets or describe, with `,format=json` for programs.
    #[arg(long, value_name = "METHOD", default_value = "build")]
    pub(crate) call: String,
    /// Short for --call=check.
    #[arg(long, conflicts_with = "call")]
    pub(crate) check: bool,
    /// Say in the end of each step why it had to run.
    #[arg(long)]
    pub(crate) explain: bool,
    /// How progress is shown: auto, plain, tty, quiet or rawjson.
    #[arg(long, env = "BUILDKIT_PROGRESS", default_value = "auto")]
    pub(crate) progress: String,
    /// File for the digest and more, as JSON.
    #[arg(long, value_name = "FILE")]
    pub(crate) metadata_file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) daemon: DaemonArgs,
    /// The directory to build.
    #[arg(value_name = "DIR", default_value = ".")]
    pub(crate) dir: PathBuf,
}

/// Flags of `lint`.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct LintArgs {
    /// The Dockerfile; otherwise the one in DIR.
    #[arg(short = 'f', long)]
    pub(crate) file: Option<PathBuf>,
    /// Value of an ARG (repeatable); without a value, that of the environment variable.
    #[arg(long = "build-arg", value_name = "KEY[=VALUE]")]
    pub(crate) build_args: Vec<String>,
    /// Check what this stage needs; otherwise all stages.
    #[arg(long)]
    pub(crate) target: Option<String>,
    /// How findings are printed: text or json.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) format: Format,
    /// The build context, with its .dockerignore.
    #[arg(value_name = "DIR", default_value = ".")]
    pub(crate) dir: PathBuf,
}

/// Form of an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// Flags of `du`.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct DuArgs {
    /// Everything that is known.
    #[arg(short = 'v', long)]
    pub(crate) verbose: bool,
    /// Only records that match (repeatable), e.g. type==regular.
    #[arg(short = 'f', long)]
    pub(crate) filter: Vec<String>,
    #[command(flatten)]
    pub(crate) daemon: DaemonArgs,
}

/// Flags of `prune`.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct PruneArgs {
    /// Also internal and frontend records.
    #[arg(short = 'a', long)]
    pub(crate) all: bool,
    /// Keep what was used in this time, e.g. 48h.
    #[arg(long, value_name = "DURATION")]
    pub(crate) keep_duration: Option<String>,
    /// Remove until no more than this is used, in MB.
    #[arg(long, value_name = "MB")]
    pub(crate) keep_storage: Option<u32>,
    /// Only records that match (repeatable).
    #[arg(short = 'f', long)]
    pub(crate) filter: Vec<String>,
    #[command(flatten)]
    pub(crate) daemon: DaemonArgs,
}

/// Which daemon.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct DaemonArgs {
    /// Daemon to use instead of your own, e.g. unix:///run/buildkit/buildkitd.sock.
    #[arg(long, env = "BUILDKIT_HOST", value_name = "ADDRESS")]
    pub(crate) addr: Option<String>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_table_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn a_build() {
        let words = "kiln build -t a -t b --build-arg K=V -o type=oci,dest=x dir";
        let Command::Build(build) = Args::try_parse_from(words.split(' ')).unwrap().command else { panic!() };
        assert_eq!(build.tags, ["a", "b"]);
        assert_eq!(build.dir, PathBuf::from("dir"));
        assert!(Args::try_parse_from(["kiln", "build", "--nosuch"]).is_err());
    }
}
