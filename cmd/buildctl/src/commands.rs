//! The commands, their flags, and how a command line becomes one of them.

use kiln_cli::Result;
use tokio_util::sync::CancellationToken;

use crate::connection::Connection;
use crate::flags::{Flag, Kind, Parsed};
use crate::{VERSION, build, cache, check, debug, dial, help, monitor};

/// A command.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Command {
    pub(crate) name: &'static str,
    pub(crate) short: &'static str,
    pub(crate) help: &'static str,
    /// How its arguments are written in the help.
    pub(crate) arguments: &'static str,
    pub(crate) flags: &'static [Flag],
    pub(crate) hidden: bool,
    pub(crate) action: Action,
}

/// What a command does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Build,
    DiskUsage,
    Prune,
    PruneHistories,
    DialStdio,
    Debug,
    DumpLlb,
    Workers,
    Info,
    Check,
    Monitor,
    Logs,
    Control,
    Get,
    Histories,
    /// Known to the reference's client only.
    NotYet,
}

/// A command line that can run.
#[derive(Clone, Debug)]
pub(crate) struct Invocation {
    pub(crate) global: Parsed,
    pub(crate) command: Command,
    pub(crate) parsed: Parsed,
}

/// What a command line turned out to be.
#[derive(Debug)]
pub(crate) enum Parse {
    Run(Box<Invocation>),
    /// Help, the version or a mistake: only something to print.
    Answer {
        stdout: String,
        stderr: String,
        code: u8,
    },
}

pub(crate) const GLOBAL: &[Flag] = &[
    Flag::new("debug", Kind::Bool, "log at level debug"),
    Flag::new(
        "addr",
        Kind::Text,
        "address of the daemon (default: BUILDKIT_HOST or unix:///run/buildkit/buildkitd.sock)",
    ),
    Flag::new("log-format", Kind::Text, "format of the log: text or json (default: text)"),
    Flag::new("tlsservername", Kind::Text, "name that the daemon's certificate must have"),
    Flag::new("tlscacert", Kind::Text, "file of the CA that the daemon's certificate is signed by"),
    Flag::new("tlscert", Kind::Text, "file of our certificate"),
    Flag::new("tlskey", Kind::Text, "file of our key"),
    Flag::new(
        "tlsdir",
        Kind::Text,
        "directory of all three: ca.pem, cert.pem, key.pem, or ca.crt, tls.crt, tls.key",
    ),
    Flag::new("timeout", Kind::Int, "seconds that connecting may take, 0 for any time (default: 5)"),
    Flag::new("wait", Kind::Bool, "wait until the daemon answers"),
    Flag::new("version", Kind::Bool, "print the version").short("v"),
];

const FILTER: Flag = Flag::new("filter", Kind::List, "only records that match").short("f");
const VERBOSE: Flag = Flag::new("verbose", Kind::Bool, "print everything that is known").short("v");
const FORMAT: Flag = Flag::new("format", Kind::Text, "print in another form: json or '{{json .}}'");
const PROGRESS: Flag = Flag::new(
    "progress",
    Kind::Text,
    "how progress is shown: auto, plain, tty, quiet or rawjson (default: auto)",
);

pub(crate) const COMMANDS: &[Command] = &[
    Command::new("du", "disk usage", Action::DiskUsage, &[FILTER, VERBOSE, FORMAT]),
    Command::new(
        "prune",
        "remove records of the cache",
        Action::Prune,
        &[
            Flag::new("keep-duration", Kind::Duration, "keep what was used in this time"),
            Flag::new("keep-storage", Kind::Float, "remove until no more than this is used, in MB"),
            Flag::new("keep-storage-min", Kind::Float, "keep this much in any case, in MB"),
            Flag::new("free-storage", Kind::Float, "remove until this much is free, in MB"),
            FILTER,
            Flag::new("all", Kind::Bool, "also internal and frontend records"),
            VERBOSE,
            FORMAT,
        ],
    ),
    Command::new("prune-histories", "remove records of builds", Action::PruneHistories, &[FORMAT]),
    Command::new("build", "build", Action::Build, BUILD).short("b"),
    Command::new("debug", "debug utilities", Action::Debug, &[]),
    Command::new(
        "dial-stdio",
        "join standard input and output with the daemon's socket",
        Action::DialStdio,
        &[],
    )
    .hidden(),
];

pub(crate) const DEBUG_COMMANDS: &[Command] = &[
    Command::new(
        "dump-llb",
        "print a graph from a file or standard input; needs no daemon",
        Action::DumpLlb,
        &[Flag::new("dot", Kind::Bool, "as a graph in DOT")],
    )
    .arguments(" [file]"),
    Command::new(
        "dump-metadata",
        "print the metadata of a stopped daemon",
        Action::NotYet,
        &[Flag::new("root", Kind::Text, "the daemon's state")],
    ),
    Command::new("workers", "list workers", Action::Workers, &[FILTER, VERBOSE, FORMAT]),
    Command::new("info", "print the daemon's version", Action::Info, &[FORMAT]),
    Command::new(
        "fsck",
        "compare the daemon's catalogue with its stores",
        Action::Check,
        &[
            Flag::new("repair", Kind::Bool, "make what is damaged a miss, remove what nobody wants"),
            Flag::new("digests", Kind::Bool, "read every blob and compare its digest"),
            FORMAT,
        ],
    ),
    Command::new(
        "monitor",
        "follow builds",
        Action::Monitor,
        &[
            Flag::new("completed", Kind::Bool, "also builds that have ended"),
            Flag::new("ref", Kind::Text, "only this build"),
        ],
    ),
    Command::new(
        "logs",
        "show the progress of a build again",
        Action::Logs,
        &[PROGRESS, Flag::new("trace", Kind::Bool, "print its trace")],
    )
    .arguments(" <ref>"),
    Command::new(
        "ctl",
        "change the record of a build",
        Action::Control,
        &[
            Flag::new("pin", Kind::Bool, "keep it"),
            Flag::new("unpin", Kind::Bool, "do not keep it any longer"),
            Flag::new("delete", Kind::Bool, "remove it"),
        ],
    )
    .arguments(" <ref>"),
    Command::new("get", "write a blob to standard output", Action::Get, &[]).arguments(" <digest>"),
    Command::new("histories", "list builds", Action::Histories, &[FORMAT]),
];

const BUILD: &[Flag] = &[
    Flag::new(
        "output",
        Kind::List,
        "where the result goes, e.g. type=image,name=docker.io/me/image,push=true",
    )
    .short("o"),
    PROGRESS,
    Flag::new("trace", Kind::Text, "file that progress is appended to, as JSON lines"),
    Flag::new("local", Kind::List, "directory that the build may read: name=dir"),
    Flag::new("oci-layout", Kind::List, "OCI layout that the build may read: id=dir"),
    Flag::new("frontend", Kind::Text, "what turns the input into a graph, e.g. dockerfile.v0"),
    Flag::new("opt", Kind::List, "option of the frontend, e.g. target=x or build-arg:k=v"),
    Flag::new("no-cache", Kind::Bool, "run every step again"),
    Flag::new("export-cache", Kind::List, "cache to write, e.g. type=local,dest=dir"),
    Flag::new("import-cache", Kind::List, "cache to read, e.g. type=local,src=dir"),
    Flag::new("secret", Kind::List, "secret of the build, e.g. id=name,src=file"),
    Flag::new("allow", Kind::List, "what the build may do: network.host, security.insecure, device"),
    Flag::new("ssh", Kind::List, "agent to forward: default or id=socket"),
    Flag::new("metadata-file", Kind::Text, "file for what exporters return, as JSON"),
    Flag::new("source-policy-file", Kind::Text, "policy of sources, as JSON"),
    Flag::new("proxy-network", Kind::Bool, "steps reach the network through the daemon's proxy only"),
    Flag::new("ref-file", Kind::Text, "file for the name of the build"),
    Flag::new("registry-auth-tlscontext", Kind::List, "TLS towards a registry: host=,ca=,cert=,key="),
    Flag::new("explain", Kind::Bool, "say in the end of each step why it had to run"),
    Flag::new("debug-json-cache-metrics", Kind::Text, "file for counts of cached steps, or stdout, stderr"),
];

impl Command {
    const fn new(name: &'static str, help: &'static str, action: Action, flags: &'static [Flag]) -> Self {
        Self { name, short: "", help, arguments: "", flags, hidden: false, action }
    }

    const fn short(mut self, short: &'static str) -> Self {
        self.short = short;
        self
    }

    const fn arguments(mut self, arguments: &'static str) -> Self {
        self.arguments = arguments;
        self
    }

    const fn hidden(mut self) -> Self {
        self.hidden = true;
        self
    }
}

/// Reads a command line, the program's name left out.
pub(crate) fn parse(arguments: Vec<String>) -> Parse {
    if asks_for_help(&arguments, true) {
        return print(help::program());
    }
    let global = match Parsed::parse(GLOBAL, arguments, true) {
        Ok(parsed) => parsed,
        Err(error) => return misuse(help::program(), &error),
    };
    if global.is("version") {
        return print(format!("buildctl {VERSION}\n"));
    }
    let mut words = global.arguments.clone();
    let Some((command, rest)) = find(COMMANDS, &mut words) else {
        return match global.arguments.first().map(String::as_str) {
            None | Some("help" | "h") => print(help::program()),
            Some(other) => unknown(other),
        };
    };
    if command.action != Action::Debug {
        return subcommand(global, command.name, command, rest);
    }
    let mut words = rest;
    if words.is_empty() || asks_for_help(&words, true) {
        return print(help::debug());
    }
    match find(DEBUG_COMMANDS, &mut words) {
        Some((command, rest)) => subcommand(global, &format!("debug {}", command.name), command, rest),
        None if words[0].starts_with('-') => misuse(
            help::debug(),
            &format!("flag provided but not defined: -{}", words[0].trim_start_matches('-')),
        ),
        None => unknown(&words[0]),
    }
}

fn find(commands: &[Command], words: &mut Vec<String>) -> Option<(Command, Vec<String>)> {
    let first = words.first()?;
    let command = commands.iter().find(|c| c.name == first || (!c.short.is_empty() && c.short == first))?;
    Some((*command, words.split_off(1)))
}

fn subcommand(global: Parsed, path: &str, command: Command, rest: Vec<String>) -> Parse {
    if asks_for_help(&rest, false) {
        return print(help::command(path, &command));
    }
    match Parsed::parse(command.flags, rest, false) {
        Ok(parsed) => Parse::Run(Box::new(Invocation { global, command, parsed })),
        Err(error) => misuse(String::new(), &error),
    }
}

/// Whether help is asked for: at the beginning, or anywhere before a `--`.
fn asks_for_help(arguments: &[String], at_the_beginning: bool) -> bool {
    let mut options =
        arguments.iter().take_while(|a| *a != "--" && (!at_the_beginning || a.starts_with('-')));
    options.any(|a| matches!(a.as_str(), "--help" | "-help" | "-h" | "--h"))
}

fn print(stdout: String) -> Parse {
    Parse::Answer { stdout, stderr: String::new(), code: 0 }
}

fn misuse(stdout: String, error: &str) -> Parse {
    Parse::Answer { stdout, stderr: format!("Incorrect Usage: {error}\n\nerror: {error}\n"), code: 1 }
}

fn unknown(name: &str) -> Parse {
    Parse::Answer { stdout: String::new(), stderr: format!("No help topic for '{name}'\n"), code: 3 }
}

/// Runs a command.
pub(crate) async fn run(invocation: &Invocation, stop: &CancellationToken) -> Result<()> {
    let Invocation { global, command, parsed } = invocation;
    let connection = Connection::new(global);
    match command.action {
        // This one stops by itself, and says goodbye.
        Action::Build => build::run(&connection, parsed, stop).await,
        Action::Logs => debug::logs(&connection, parsed, stop).await,
        Action::DumpLlb => debug::dump_llb(parsed),
        action => {
            let running = async {
                match action {
                    Action::DiskUsage => cache::disk_usage(&connection, parsed).await,
                    Action::Prune => cache::prune(&connection, parsed).await,
                    Action::PruneHistories => debug::prune_histories(&connection, parsed).await,
                    Action::DialStdio => dial::run(&connection).await,
                    Action::Workers => debug::workers(&connection, parsed).await,
                    Action::Info => debug::info(&connection, parsed).await,
                    Action::Check => check::run(&connection, parsed).await,
                    Action::Monitor => monitor::run(&connection, parsed).await,
                    Action::Control => debug::control(&connection, parsed).await,
                    Action::Get => debug::get(&connection, parsed).await,
                    Action::Histories => debug::histories(&connection, parsed).await,
                    _ => Err(kiln_cli::Error::option(format!("debug {} is not supported yet", command.name))),
                }
            };
            tokio::select! {
                outcome = running => outcome,
                () = stop.cancelled() => Err(kiln_cli::Error::Stopped { message: "context canceled" }),
            }
        }
    }
}

#[cfg(test)]
mod tests;
