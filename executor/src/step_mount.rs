use std::path::PathBuf;

use kiln_snapshot::Mount;

/// One mount of a step.
#[derive(Clone, Debug)]
pub struct StepMount {
    /// Where in the container; absolute. `/` for the root filesystem.
    pub dest: PathBuf,
    /// What.
    pub kind: MountKind,
    /// The part of it that is mounted, by a path that cannot leave it; links are followed.
    pub selector: Option<PathBuf>,
    /// Whether writing is refused.
    pub read_only: bool,
}

impl StepMount {
    /// A filesystem state, whole.
    pub fn snapshot(dest: impl Into<PathBuf>, mount: Mount) -> Self {
        Self::new(dest, MountKind::Snapshot(mount))
    }

    /// An empty filesystem in memory; `size` in bytes, zero for the kernel's default.
    pub fn tmpfs(dest: impl Into<PathBuf>, size: u64) -> Self {
        Self::new(dest, MountKind::Tmpfs { size })
    }

    /// A file or directory of the host, bind-mounted with `options` such as `ro` or `nosuid`.
    pub fn host(dest: impl Into<PathBuf>, source: impl Into<PathBuf>, options: &[&str]) -> Self {
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        Self::new(dest, MountKind::Host { source: source.into(), options })
    }

    /// The same, read-only.
    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// The same, of a part.
    pub fn select(mut self, selector: impl Into<PathBuf>) -> Self {
        self.selector = Some(selector.into());
        self
    }

    fn new(dest: impl Into<PathBuf>, kind: MountKind) -> Self {
        Self { dest: dest.into(), kind, selector: None, read_only: false }
    }
}

/// What is mounted.
#[derive(Clone, Debug)]
pub enum MountKind {
    /// A filesystem state; the executor mounts it.
    Snapshot(Mount),
    /// An empty filesystem in memory.
    Tmpfs {
        /// In bytes; zero for the kernel's default.
        size: u64,
    },
    /// A file, socket or directory of the host.
    Host {
        /// Its path there.
        source: PathBuf,
        /// Mount options besides `bind`.
        options: Vec<String>,
    },
}
