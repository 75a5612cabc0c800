//! Errors of ops and builds.

use std::fmt;

use kiln_solver::VertexDigest;

/// Any error, kept as a cause.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why an exec op failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExecError {
    /// The process ended with a code that does not count as success.
    #[error("process {} did not complete successfully: {}", go_quote(args), exit_text(*code, *oom))]
    Exit {
        /// The arguments, joined by spaces.
        args: String,
        /// The exit code; 255 if it is not known.
        code: i32,
        /// The kernel killed something because memory ran out.
        oom: bool,
    },
    /// The root mount is none that can hold a root filesystem.
    #[error("invalid mount type {kind} for /")]
    RootType {
        /// Its type.
        kind: String,
    },
    /// There is no root mount.
    #[error("invalid exec op with no rootfs")]
    NoRoot,
    /// A mount names an input that the op does not have.
    #[error("missing input {index}")]
    MissingInput {
        /// The index.
        index: usize,
    },
    /// A mount that needs an input has none.
    #[error("mount {dest} has no input")]
    MountWithoutInput {
        /// Where it goes.
        dest: String,
    },
    /// A secret mount without its options.
    #[error("invalid secret mount options")]
    SecretOptions,
    /// A secret mount without the secret's id.
    #[error("secret ID missing from mount options")]
    SecretId,
    /// A secret variable without the secret's id.
    #[error("secret ID missing for {name:?} environment variable")]
    SecretEnvId {
        /// The variable.
        name: String,
    },
    /// No client that waits for the step has the secret.
    #[error("secret {id}: not found")]
    SecretNotFound {
        /// The secret's id.
        id: String,
    },
    /// An agent mount without its options.
    #[error("invalid ssh mount options")]
    AgentOptions,
    /// No client that waits for the step forwards the agent.
    #[error("no SSH key {id:?} forwarded from the client")]
    NoAgent {
        /// The agent's id.
        id: String,
    },
    /// A mount could not be made ready.
    #[error("mount {dest}")]
    Mount {
        /// Where it goes.
        dest: String,
        /// Why not.
        source: BoxError,
    },
    /// A mount of a type that nobody knows.
    #[error("mount type {kind} not implemented (mount {dest})")]
    MountKind {
        /// Where it goes.
        dest: String,
        /// Its type.
        kind: i32,
    },
    /// Programs for a processor that this machine has not.
    #[error("no support for running processes with {wanted} platform, supported: {supported}")]
    Platform {
        /// What they are made for.
        wanted: String,
        /// What there is.
        supported: String,
    },
    /// The kernel cannot execute a program for another platform.
    #[error(
        "this machine does not run programs for {platform}: install an emulator for it (Debian's packages qemu-user-static \
         and binfmt-support), or put {emulator} into the daemon's PATH"
    )]
    Foreign {
        /// What they are made for.
        platform: String,
        /// The program that would emulate it.
        emulator: String,
        /// What the runtime says.
        source: BoxError,
    },
    /// A device of the host that is not there.
    #[error("{0}")]
    Device(String),
}

/// How a frontend that ran as a process ended without a result that counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrontendExit {
    /// Its image.
    pub image: String,
    /// The exit code; 255 if it is not known.
    pub code: i32,
    /// The kernel killed something because memory ran out.
    pub oom: bool,
    /// The end of what it wrote on standard error.
    pub last_words: String,
}

impl fmt::Display for FrontendExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "frontend image `{}` did not complete successfully: ", self.image)?;
        f.write_str(&exit_text(self.code, self.oom))?;
        match self.last_words.as_str() {
            "" => Ok(()),
            words => write!(f, "; it said last: {words}"),
        }
    }
}

/// Why a build failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The request cannot be served as it is.
    #[error("{message}")]
    Request {
        /// What is wrong with it.
        message: String,
    },
    /// The definition does not load.
    #[error("failed to load LLB")]
    Load(#[from] crate::load::LoadError),
    /// A vertex failed.
    #[error("{source}")]
    Solve {
        /// Places in the input that belong to the vertex.
        sources: Vec<kiln_frontend::ErrorSource>,
        /// What happened.
        source: kiln_solver::SolveError,
    },
    /// A vertex asks for something that this daemon does not do.
    #[error("{message}")]
    Vertex {
        /// The vertex, as loaded.
        vertex: VertexDigest,
        /// Places in the input that belong to it.
        sources: Vec<kiln_frontend::ErrorSource>,
        /// What it asks for.
        message: String,
    },
    /// The frontend failed.
    #[error("{}", .0.chain())]
    Frontend(kiln_frontend::Error),
    /// What the client that drives the build, or a frontend, ended it with.
    #[error("{source}")]
    Client {
        /// Its error.
        source: BoxError,
        /// Places in the input that it names.
        places: Vec<kiln_frontend::ErrorSource>,
    },
    /// A caller has a container of that id.
    #[error("Container {id} already exists")]
    ContainerExists {
        /// The id.
        id: String,
    },
    /// A frontend that ran as a process ended in a bad way.
    #[error("{0}")]
    FrontendExit(FrontendExit),
    /// An export failed.
    #[error("{0}")]
    Export(#[source] BoxError),
    /// The build took longer than it may.
    #[error(transparent)]
    TimeLimit(kiln_solver::LimitExceeded),
    /// No such build.
    #[error("no such job {id}")]
    NoSuchJob {
        /// The build's id.
        id: String,
    },
    /// A build with that id exists.
    #[error("job ID {id} exists")]
    JobExists {
        /// The id.
        id: String,
    },
    /// The client cancelled, or went away.
    #[error("context canceled")]
    Cancelled,
}

/// Results of builds.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Whether the build was ended before it came to a result.
    pub fn is_cancelled(&self) -> bool {
        matches!(self, Self::Cancelled | Self::Solve { source: kiln_solver::SolveError::Cancelled, .. })
    }

    /// A request that cannot be served.
    pub fn request(message: impl Into<String>) -> Self {
        Self::Request { message: message.into() }
    }
}

/// The texts of an error and its causes, joined by `: `.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

fn exit_text(code: i32, oom: bool) -> String {
    if oom { "cannot allocate memory".to_owned() } else { format!("exit code: {code}") }
}

/// Text in double quotes as Go's `%q` writes it, which is what clients show.
pub(crate) fn go_quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{b}' => out.push_str("\\v"),
            c if u32::from(c) < 0x20 || c == '\u{7f}' => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c if c.is_control() => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_errors_read_as_clients_expect() {
        let exit = |args: &str, code, oom| ExecError::Exit { args: args.into(), code, oom }.to_string();
        assert_eq!(
            exit("/bin/sh -c exit 3", 3, false),
            "process \"/bin/sh -c exit 3\" did not complete successfully: exit code: 3"
        );
        assert_eq!(
            exit("sh -c echo \"a\"\n", 137, true),
            "process \"sh -c echo \\\"a\\\"\\n\" did not complete successfully: cannot allocate memory"
        );
    }
}
