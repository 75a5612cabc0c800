//! What is on disk about a namespace, so that it can be disconnected whatever happens to the daemon or its
//! configuration.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::NetworkList;
use crate::error::{Error, Result};

/// The largest record that is read, in bytes: a configuration and a plugin's result.
const MAX_RECORD: u64 = 4 * 1024 * 1024;
const EXTENSION: &str = "json";

/// How a namespace was connected.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) list: NetworkList,
    pub(crate) hostname: Option<String>,
    /// What the last plugin said; none while they are at it.
    pub(crate) result: Option<Value>,
}

/// The directory of namespaces and records: `<id>` and `<id>.json`.
#[derive(Clone, Debug)]
pub(crate) struct Records {
    dir: PathBuf,
}

impl Records {
    /// Makes the directory if it is missing. Blocks, like everything here.
    pub(crate) fn open(dir: PathBuf) -> Result<Self> {
        use std::os::unix::fs::DirBuilderExt as _;
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir);
        made.map_err(Error::io("make directory", &dir))?;
        Ok(Self { dir })
    }

    pub(crate) fn namespace(&self, id: &str) -> PathBuf {
        self.dir.join(id)
    }

    fn file(&self, id: &str) -> PathBuf {
        self.dir.join(id).with_extension(EXTENSION)
    }

    pub(crate) fn write(&self, id: &str, record: &Record) -> Result<()> {
        let (file, beside) = (self.file(id), self.dir.join(id).with_extension("new"));
        let text = serde_json::to_vec(record).map_err(Error::io("write", &file))?;
        std::fs::write(&beside, text).map_err(Error::io("write", &beside))?;
        std::fs::rename(&beside, &file).map_err(Error::io("rename", &beside))
    }

    /// What is known of a namespace; nothing if that is unusable.
    pub(crate) fn read(&self, id: &str) -> Option<Record> {
        use std::io::Read as _;
        let mut bytes = Vec::new();
        std::fs::File::open(self.file(id)).ok()?.take(MAX_RECORD).read_to_end(&mut bytes).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    pub(crate) fn remove(&self, id: &str) {
        remove(&self.file(id));
    }

    /// The namespaces that there is anything of. What was being written is taken away.
    pub(crate) fn ids(&self) -> Result<Vec<String>> {
        let mut ids = std::collections::BTreeSet::new();
        for entry in std::fs::read_dir(&self.dir).map_err(Error::io("list", &self.dir))?.flatten() {
            let path = entry.path();
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("new") => remove(&path),
                None | Some(EXTENSION) => {
                    ids.extend(path.file_stem().and_then(|stem| stem.to_str()).map(str::to_owned));
                }
                Some(_) => {}
            }
        }
        Ok(ids.into_iter().collect())
    }
}

fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "a file about a network is left");
    }
}
