//! Where a user's own daemon keeps its things.

use std::ffi::OsString;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use kiln_cli::{Error, Result};

/// Environment variable: where users' programs keep data.
const DATA_VARIABLE: &str = "XDG_DATA_HOME";
/// Longest path of a socket, in bytes.
const MAX_SOCKET_PATH: usize = 107;

/// The folder `kiln` below a user's data folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    dir: PathBuf,
}

impl Place {
    /// Of the user who runs this.
    pub(crate) fn of_user() -> Result<Self> {
        Self::find(std::env::var_os(DATA_VARIABLE), std::env::home_dir())
    }

    fn find(data: Option<OsString>, home: Option<PathBuf>) -> Result<Self> {
        let data = data.map(PathBuf::from).filter(|dir| dir.is_absolute());
        let home = home.filter(|dir| dir.is_absolute()).map(|dir| dir.join(".local/share"));
        let Some(data) = data.or(home) else {
            return Err(Error::option("no home directory: set HOME or XDG_DATA_HOME, or use --addr"));
        };
        let place = Self { dir: data.join("kiln") };
        if place.socket().as_os_str().len() > MAX_SOCKET_PATH {
            return Err(Error::option(format!(
                "`{}` is too long a path for a socket: set XDG_DATA_HOME to a shorter one, or use --addr",
                place.socket().display()
            )));
        }
        Ok(place)
    }

    /// Makes the folder, for this user alone.
    pub(crate) fn create(&self) -> Result<()> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&self.dir);
        made.map_err(|error: io::Error| Error::io("mkdir", &self.dir, &error))
    }

    /// The daemon's socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.join("daemon.sock")
    }

    /// The daemon's address.
    pub(crate) fn address(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// The daemon's state.
    pub(crate) fn state(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// What the daemon says.
    pub(crate) fn log(&self) -> PathBuf {
        self.dir.join("daemon.log")
    }

    /// Held while a daemon is started.
    pub(crate) fn lock(&self) -> PathBuf {
        self.dir.join("start.lock")
    }

    /// The daemon's configuration, if the user made one.
    pub(crate) fn config(&self) -> Option<PathBuf> {
        Some(self.dir.join("buildkitd.toml")).filter(|path: &PathBuf| Path::exists(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders() {
        let find = |data: Option<&str>, home: Option<&str>| {
            Place::find(data.map(OsString::from), home.map(PathBuf::from))
                .map_or_else(|error| error.to_string(), |place| place.address())
        };
        assert_eq!(find(Some("/d"), Some("/h")), "unix:///d/kiln/daemon.sock");
        assert_eq!(find(Some("relative"), Some("/h")), "unix:///h/.local/share/kiln/daemon.sock");
        assert_eq!(find(None, None), "no home directory: set HOME or XDG_DATA_HOME, or use --addr");
        let long = format!("/{}", "d".repeat(100));
        assert!(find(Some(&long), None).contains("too long a path"));
    }
}
