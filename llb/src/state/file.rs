//! Changes to files.

use std::collections::BTreeSet;

use crate::pb::{self, file_action::Action};
use crate::state::{Body, Output, State, Vertex, VertexMeta, paths};

/// A chain of changes, each on the result of the one before.
#[derive(Clone, Debug, Default)]
pub struct FileActions {
    actions: Vec<Pending>,
    meta: VertexMeta,
}

#[derive(Clone, Debug)]
enum Pending {
    Mkdir { path: String, mode: i32, parents: bool, owner: ChownTo, timestamp: i64 },
    Mkfile { path: String, mode: i32, data: Vec<u8>, owner: ChownTo, timestamp: i64 },
    Symlink { target: String, path: String, owner: ChownTo, timestamp: i64 },
    Remove { path: String, allow_not_found: bool, allow_wildcard: bool },
    Copy { from: State, src: String, dest: String, options: Box<Copy> },
}

/// An owner to set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// By number.
    Id(u32),
    /// By name, looked up in the file system that is changed.
    Name(String),
}

/// Owner and group to set; `None` leaves the choice to the action.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChownTo {
    /// The user; alone it also decides the group.
    pub user: Option<Owner>,
    /// The group.
    pub group: Option<Owner>,
}

/// How to copy.
#[derive(Clone, Debug, Default)]
pub struct Copy {
    /// Owner of the copies.
    pub owner: ChownTo,
    /// Mode of the copies; `None` keeps it.
    pub mode: Option<i32>,
    /// Mode as text, octal or symbolic; wins over `mode`.
    pub mode_text: String,
    /// Nanoseconds since the epoch; `None` keeps times.
    pub timestamp: Option<i64>,
    /// Follow the source if it is a link.
    pub follow_symlinks: bool,
    /// Copy what is in a directory instead of the directory.
    pub contents_only: bool,
    /// Unpack archives like ADD.
    pub unpack: bool,
    /// Make missing parents of the destination.
    pub create_dest_path: bool,
    /// The source is a pattern.
    pub allow_wildcard: bool,
    /// A pattern may match nothing.
    pub allow_empty_wildcard: bool,
    /// Only these.
    pub include_patterns: Vec<String>,
    /// Not these.
    pub exclude_patterns: Vec<String>,
    /// These must exist.
    pub required_paths: Vec<String>,
    /// Remove what is in the way.
    pub replace: bool,
}

/// An action whose inputs are slots of its vertex.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) action: Action,
    /// Slot that a copy reads from.
    pub(super) from: Option<usize>,
}

impl FileActions {
    /// Starts with nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes a directory.
    #[must_use]
    pub fn mkdir(self, path: &str, mode: i32, parents: bool) -> Self {
        self.mkdir_owned(path, mode, parents, ChownTo::default(), None)
    }

    /// Makes a directory with owner and time (nanoseconds since the epoch).
    #[must_use]
    pub fn mkdir_owned(
        self,
        path: &str,
        mode: i32,
        parents: bool,
        owner: ChownTo,
        timestamp: Option<i64>,
    ) -> Self {
        let timestamp = timestamp.unwrap_or(-1);
        self.push(Pending::Mkdir { path: path.to_owned(), mode: mode & 0o777, parents, owner, timestamp })
    }

    /// Writes a file.
    #[must_use]
    pub fn mkfile(self, path: &str, mode: i32, data: impl Into<Vec<u8>>) -> Self {
        self.mkfile_owned(path, mode, data, ChownTo::default(), None)
    }

    /// Writes a file with owner and time (nanoseconds since the epoch).
    #[must_use]
    pub fn mkfile_owned(
        self,
        path: &str,
        mode: i32,
        data: impl Into<Vec<u8>>,
        owner: ChownTo,
        timestamp: Option<i64>,
    ) -> Self {
        let (data, timestamp) = (data.into(), timestamp.unwrap_or(-1));
        self.push(Pending::Mkfile { path: path.to_owned(), mode: mode & 0o777, data, owner, timestamp })
    }

    /// Makes a symbolic link at `path`.
    #[must_use]
    pub fn symlink(self, target: &str, path: &str, owner: ChownTo, timestamp: Option<i64>) -> Self {
        let timestamp = timestamp.unwrap_or(-1);
        self.push(Pending::Symlink { target: target.to_owned(), path: path.to_owned(), owner, timestamp })
    }

    /// Removes a path.
    #[must_use]
    pub fn remove(self, path: &str, allow_not_found: bool, allow_wildcard: bool) -> Self {
        self.push(Pending::Remove { path: path.to_owned(), allow_not_found, allow_wildcard })
    }

    /// Copies `src` of `from` to `dest`.
    #[must_use]
    pub fn copy(self, from: &State, src: &str, dest: &str, options: Copy) -> Self {
        let options = Box::new(options);
        self.push(Pending::Copy { from: from.clone(), src: src.to_owned(), dest: dest.to_owned(), options })
    }

    /// Sets what is known besides the definition.
    #[must_use]
    pub fn meta(mut self, meta: VertexMeta) -> Self {
        self.meta = meta;
        self
    }

    fn push(mut self, action: Pending) -> Self {
        self.actions.push(action);
        self
    }

    /// Slot 0 is the state that is changed.
    pub(super) fn into_vertex(self, state: &State) -> Option<Vertex> {
        if self.actions.is_empty() {
            return None;
        }
        let mut inputs: Vec<Option<Output>> = vec![state.output.clone()];
        let mut caps = BTreeSet::from(["file.base"]);
        let cwd = state.cwd();
        let steps = self
            .actions
            .into_iter()
            .map(|pending| match pending {
                Pending::Mkdir { path, mode, parents, owner, timestamp } => {
                    Step::plain(Action::Mkdir(pb::FileActionMkDir {
                        path: paths::absolute(cwd, &path, false),
                        mode,
                        make_parents: parents,
                        owner: owner.into_pb(),
                        timestamp,
                    }))
                }
                Pending::Mkfile { path, mode, data, owner, timestamp } => {
                    Step::plain(Action::Mkfile(pb::FileActionMkFile {
                        path: paths::absolute(cwd, &path, false),
                        mode,
                        data,
                        owner: owner.into_pb(),
                        timestamp,
                    }))
                }
                Pending::Symlink { target, path, owner, timestamp } => {
                    caps.insert("file.symlink.create");
                    Step::plain(Action::Symlink(pb::FileActionSymlink {
                        oldpath: target,
                        newpath: path,
                        owner: owner.into_pb(),
                        timestamp,
                    }))
                }
                Pending::Remove { path, allow_not_found, allow_wildcard } => {
                    if allow_wildcard {
                        caps.insert("file.rm.wildcard");
                    }
                    let path = paths::absolute(cwd, &path, false);
                    Step::plain(Action::Rm(pb::FileActionRm { path, allow_not_found, allow_wildcard }))
                }
                Pending::Copy { from, src, dest, options } => {
                    inputs.push(from.output.clone());
                    caps.extend(options.caps());
                    let mut src = paths::clean(&src);
                    if !src.starts_with('/') {
                        src = paths::join(from.cwd(), &src);
                    }
                    let dest = paths::absolute(cwd, &dest, true);
                    Step { action: Action::Copy(options.into_pb(src, dest)), from: Some(inputs.len() - 1) }
                }
            })
            .collect();
        Some(Vertex { body: Body::File(steps), inputs, meta: self.meta, caps })
    }
}

impl Step {
    fn plain(action: Action) -> Self {
        Self { action, from: None }
    }

    /// Returns the action with names of owners looked up in input `base`.
    pub(super) fn with_base(&self, base: i64) -> Action {
        let mut action = self.action.clone();
        let owner = match &mut action {
            Action::Copy(a) => &mut a.owner,
            Action::Mkfile(a) => &mut a.owner,
            Action::Mkdir(a) => &mut a.owner,
            Action::Symlink(a) => &mut a.owner,
            Action::Rm(_) => return action,
        };
        let parts = owner.iter_mut().flat_map(|owner| [&mut owner.user, &mut owner.group]);
        for part in parts.flatten() {
            if let Some(pb::user_opt::User::ByName(named)) = &mut part.user {
                named.input = base;
            }
        }
        action
    }
}

impl Copy {
    /// The mode text has a capability too, but no daemon registers it.
    fn caps(&self) -> impl Iterator<Item = &'static str> {
        let filtered = !self.include_patterns.is_empty() || !self.exclude_patterns.is_empty();
        let caps = [
            (filtered, "file.copy.includeexcludepatterns"),
            (!self.required_paths.is_empty(), "file.copy.requiredpaths"),
            (self.replace, "file.copy.alwaysreplaceexistingdestpaths"),
        ];
        caps.into_iter().filter(|(used, _)| *used).map(|(_, cap)| cap)
    }

    fn into_pb(self, src: String, dest: String) -> pb::FileActionCopy {
        let mode = if self.mode_text.is_empty() { self.mode.unwrap_or(-1) } else { 0 };
        pb::FileActionCopy {
            src,
            dest,
            owner: self.owner.into_pb(),
            mode,
            follow_symlink: self.follow_symlinks,
            dir_copy_contents: self.contents_only,
            attempt_unpack_docker_compatibility: self.unpack,
            create_dest_path: self.create_dest_path,
            allow_wildcard: self.allow_wildcard,
            allow_empty_wildcard: self.allow_empty_wildcard,
            timestamp: self.timestamp.unwrap_or(-1),
            include_patterns: self.include_patterns,
            exclude_patterns: self.exclude_patterns,
            always_replace_existing_dest_paths: self.replace,
            mode_str: self.mode_text,
            required_paths: self.required_paths,
        }
    }
}

impl ChownTo {
    /// Sets user and group by number.
    pub fn ids(uid: u32, gid: u32) -> Self {
        Self { user: Some(Owner::Id(uid)), group: Some(Owner::Id(gid)) }
    }

    fn into_pb(self) -> Option<pb::ChownOpt> {
        if self == Self::default() {
            return None;
        }
        Some(pb::ChownOpt { user: self.user.map(Owner::into_pb), group: self.group.map(Owner::into_pb) })
    }
}

impl Owner {
    fn into_pb(self) -> pb::UserOpt {
        let user = match self {
            Self::Id(id) => pb::user_opt::User::ById(id),
            Self::Name(name) => pb::user_opt::User::ByName(pb::NamedUserOpt { name, input: 0 }),
        };
        pb::UserOpt { user: Some(user) }
    }
}
