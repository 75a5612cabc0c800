use std::io;
use std::path::{Path, PathBuf};

/// What setting up a network ran into.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration is none.
    #[error("CNI configuration `{}`: {reason}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A value of the daemon's own bridge is unusable.
    #[error("{0}")]
    Bridge(String),
    /// A plugin is not installed.
    #[error(
        "CNI plugin `{plugin}` is not in {looked_in}: install the CNI plugins (Debian's package \
         containernetworking-plugins) or name their directory by cniBinaryPath"
    )]
    PluginMissing {
        /// Its name.
        plugin: String,
        /// Where it was looked for.
        looked_in: String,
    },
    /// A plugin refused.
    #[error("CNI plugin `{plugin}` failed to {command} the network: {message}")]
    Plugin {
        /// Its name.
        plugin: String,
        /// What it was to do: `add` or `remove`.
        command: &'static str,
        /// What it said.
        message: String,
    },
    /// The host name cannot be told to plugins.
    #[error(
        "host name {hostname:?} cannot be told to CNI plugins: use letters, digits, dots, hyphens and underscores"
    )]
    Hostname {
        /// As asked for.
        hostname: String,
    },
    /// A file or namespace operation failed.
    #[error("cannot {operation} `{}`", path.display())]
    Io {
        /// What was tried, as a verb phrase.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The daemon is ending.
    #[error("the daemon is ending")]
    Closed,
}

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn io<E: Into<io::Error>>(operation: &'static str, path: &Path) -> impl FnOnce(E) -> Self {
        move |source| Self::Io { operation, path: path.to_owned(), source: source.into() }
    }
}
