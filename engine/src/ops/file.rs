//! The file op: a list of actions, each on the result of an earlier one or on an input.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use kiln_cache::{MutableRef, RecordOptions, RecordType, Ref};
use kiln_llb::pb;
use kiln_rootdir::Root;
use kiln_solver::{OpContext, OpError, ResultRef};

use crate::fileop::{
    self, CopyAction, FileError, MkdirAction, MkfileAction, ModeChange, Owner, RmAction, SymlinkAction,
};
use crate::ops::common::{self, Provider};
use crate::ops::keyed::Action;
use crate::worker::Worker;

/// Passwd and group files beyond this are refused.
const MAX_USER_FILE: u64 = 10 << 20;

/// A file op on a worker.
#[derive(Debug)]
pub(crate) struct FileOp {
    pub(crate) files: Arc<Files>,
}

/// What its actions need.
#[derive(Debug)]
pub(crate) struct Files {
    pub(crate) worker: Arc<Worker>,
    /// The whole definition, which is one of a file op.
    pub(crate) definition: Arc<pb::Op>,
}

impl Files {
    fn op(&self) -> Result<&pb::FileOp, OpError> {
        match &self.definition.op {
            Some(pb::op::Op::File(op)) => Ok(op),
            _ => Err(OpError::failed("this is no file op")),
        }
    }
}

/// Why a file op failed as a whole.
#[derive(Debug, thiserror::Error)]
enum FileOpError {
    #[error("invalid input index {index}, {total} provided")]
    InputIndex { index: i64, total: usize },
    #[error("loop from index {index}")]
    Loop { index: i64 },
    #[error("duplicate output {output}")]
    DuplicateOutput { output: i64 },
    #[error("missing output index {output}")]
    MissingOutput { output: usize },
    #[error("no outputs specified")]
    NoOutputs,
    #[error("action {index} of the file op has no kind")]
    NoAction { index: usize },
    #[error("{0}")]
    Action(String, #[source] FileError),
    #[error("`{path}` is larger than {limit} bytes")]
    UserFile { path: &'static str, limit: u64 },
    #[error("invalid user index")]
    UserInput,
}

/// The state an action made.
#[derive(Clone)]
enum State {
    /// Nobody has used it yet: the next action may go on in it.
    Open(MutableRef),
    /// Committed.
    Done(Option<Ref>),
}

#[async_trait]
impl Action for FileOp {
    async fn exec(
        &self,
        cx: &OpContext,
        inputs: Vec<Option<ResultRef>>,
    ) -> Result<Vec<Option<ResultRef>>, OpError> {
        let inputs = common::refs(&inputs)?;
        let plan = Plan::new(self.files.op()?, inputs.len()).map_err(OpError::failed)?;
        let provider = common::provider(&self.files.worker, cx);
        common::unlazy_all(&inputs, &provider, cx).await?;
        let (files, cx) = (Arc::clone(&self.files), cx.clone());
        let runtime = tokio::runtime::Handle::current();
        // Nearly all of it blocks.
        common::blocking(move || {
            kiln_snapshot::in_place(|| runtime.block_on(files.run(&cx, plan, &inputs, &provider)))
        })
        .await
    }
}

impl Files {
    async fn run(
        &self,
        cx: &OpContext,
        plan: Plan,
        inputs: &[Option<Ref>],
        provider: &Provider,
    ) -> Result<Vec<Option<ResultRef>>, OpError> {
        let op = self.op()?;
        let states = vec![None; op.actions.len()];
        let mut run = Run { worker: &self.worker, op, inputs, provider, states, uses: plan.uses };
        for index in plan.order {
            if cx.cancel.is_cancelled() {
                return Err(OpError::cancelled());
            }
            run.action(index).await?;
        }
        let mut results = Vec::with_capacity(plan.outputs.len());
        for action in plan.outputs {
            results.push(run.commit(action).await?.map(common::result));
        }
        Ok(results)
    }
}

/// Which actions to do, in which order.
struct Plan {
    /// Actions that an output needs, what they need first.
    order: Vec<usize>,
    /// Per output, its action.
    outputs: Vec<usize>,
    /// Per action, how often its state is used by actions and outputs.
    uses: Vec<usize>,
}

impl Plan {
    fn new(op: &pb::FileOp, inputs: usize) -> Result<Self, FileOpError> {
        let total = inputs + op.actions.len();
        let mut outputs: Vec<Option<usize>> = Vec::new();
        for (index, action) in op.actions.iter().enumerate() {
            for input in [action.input, action.secondary_input] {
                if input < -1 || input >= i64::try_from(total).unwrap_or(i64::MAX) {
                    return Err(FileOpError::InputIndex { index: input, total });
                }
            }
            let Ok(output) = usize::try_from(action.output) else { continue };
            if output >= op.actions.len() {
                return Err(FileOpError::MissingOutput {
                    output: outputs.iter().position(Option::is_none).unwrap_or(outputs.len()),
                });
            }
            if outputs.len() <= output {
                outputs.resize(output + 1, None);
            }
            if outputs[output].replace(index).is_some() {
                return Err(FileOpError::DuplicateOutput { output: action.output });
            }
        }
        if outputs.is_empty() {
            return Err(FileOpError::NoOutputs);
        }
        let outputs = outputs
            .into_iter()
            .enumerate()
            .map(|(output, action)| action.ok_or(FileOpError::MissingOutput { output }))
            .collect::<Result<Vec<_>, _>>()?;

        let mut uses = vec![0; op.actions.len()];
        let mut order = Vec::new();
        // 0: not seen, 1: below something on the stack, 2: in the order.
        let mut marks = vec![0u8; op.actions.len()];
        for output in &outputs {
            uses[*output] += 1;
            let mut stack = vec![(*output, false)];
            while let Some((index, ready)) = stack.pop() {
                if ready {
                    marks[index] = 2;
                    order.push(index);
                    continue;
                }
                match marks[index] {
                    2 => continue,
                    1 => {
                        return Err(FileOpError::Loop {
                            index: i64::try_from(index + inputs).unwrap_or(i64::MAX),
                        });
                    }
                    _ => marks[index] = 1,
                }
                stack.push((index, true));
                for needed in needs(&op.actions[index], inputs) {
                    uses[needed] += 1;
                    if marks[needed] != 2 {
                        if marks[needed] == 1 {
                            return Err(FileOpError::Loop {
                                index: i64::try_from(needed + inputs).unwrap_or(i64::MAX),
                            });
                        }
                        stack.push((needed, false));
                    }
                }
            }
        }
        Ok(Self { order, outputs, uses })
    }
}

/// The actions whose results an action reads.
fn needs(action: &pb::FileAction, inputs: usize) -> Vec<usize> {
    [action.input, action.secondary_input]
        .into_iter()
        .filter_map(|i| usize::try_from(i).ok()?.checked_sub(inputs))
        .collect()
}

struct Run<'a> {
    worker: &'a Worker,
    op: &'a pb::FileOp,
    inputs: &'a [Option<Ref>],
    provider: &'a Provider,
    states: Vec<Option<State>>,
    uses: Vec<usize>,
}

impl Run<'_> {
    async fn action(&mut self, index: usize) -> Result<(), OpError> {
        let action = self.op.actions[index].clone();
        let kind = action.action.clone().ok_or_else(|| OpError::failed(FileOpError::NoAction { index }))?;
        // What is copied from is settled first: it may be the very state that is copied to.
        let source = match (&kind, usize::try_from(action.secondary_input)) {
            (pb::file_action::Action::Copy(_), Ok(secondary)) => Some(self.readable(secondary).await?),
            _ => None,
        };
        let owners = self.owners(&kind).await?;
        let dest = self.writable(action.input, &kind).await?;
        let secondary = self.input_index(action.secondary_input);
        let lost = |error| common::lost_or_failed(error, self.input_index(action.input));
        let unmounted = match made_at(&kind) {
            Some(path) => dest.to_make(path).await.map_err(lost)?,
            None => None,
        };
        let shown = match unmounted {
            Some(shown) => Ok(shown),
            None => Err(dest.mount().await.map_err(lost)?),
        };
        let source_mount = match &source {
            Some(Some(source)) => Some(common::view(Some(source), self.provider, secondary).await?),
            _ => None,
        };
        common::blocking(move || {
            let dest = shown.or_else(|mount| mount.with_temp()).map_err(OpError::failed)?;
            let root = Root::open(dest.path()).map_err(OpError::failed)?;
            let source = source_mount.map(|m| m.with_temp()).transpose().map_err(OpError::failed)?;
            let empty;
            let source = match &source {
                Some(source) => Some(Root::open(source.path()).map_err(OpError::failed)?),
                None if matches!(kind, pb::file_action::Action::Copy(_)) => {
                    empty = tempfile::tempdir().map_err(OpError::failed)?;
                    Some(Root::open(empty.path()).map_err(OpError::failed)?)
                }
                None => None,
            };
            apply(&kind, owners, source.as_ref(), &root).map_err(|error| {
                let message = error.to_string();
                tracing::debug!(error = %message, "file action failed");
                OpError::failed(FileOpError::Action(message, error))
            })
        })
        .await?;
        // Held until here: what was read must not go while it is read.
        drop(source);
        self.states[index] = Some(State::Open(dest));
        Ok(())
    }

    /// The state behind an index, to be written to.
    async fn writable(&mut self, index: i64, kind: &pb::file_action::Action) -> Result<MutableRef, OpError> {
        let parent = match usize::try_from(index) {
            Err(_) => None,
            Ok(index) if index < self.inputs.len() => self.inputs[index].clone(),
            Ok(index) => {
                let action = index - self.inputs.len();
                if self.uses[action] == 1
                    && let Some(State::Open(_)) = &self.states[action]
                    && let Some(State::Open(mutable)) = self.states[action].take()
                {
                    return Ok(mutable);
                }
                self.commit(action).await?
            }
        };
        let options = RecordOptions::new(description(kind), RecordType::Regular);
        self.worker
            .cache
            .new_mutable(parent.as_ref(), options)
            .await
            .map_err(|e| common::lost_or_failed(e, self.input_index(index)))
    }

    /// Which input an index means, if it means one.
    fn input_index(&self, index: i64) -> Option<usize> {
        usize::try_from(index).ok().filter(|index| *index < self.inputs.len())
    }

    /// The state behind an index, to be read.
    async fn readable(&mut self, index: usize) -> Result<Option<Ref>, OpError> {
        match index.checked_sub(self.inputs.len()) {
            None => Ok(self.inputs[index].clone()),
            Some(action) => self.commit(action).await,
        }
    }

    async fn commit(&mut self, action: usize) -> Result<Option<Ref>, OpError> {
        let done = match self.states[action].take() {
            Some(State::Open(mutable)) => Some(mutable.commit().await.map_err(OpError::failed)?),
            Some(State::Done(done)) => done,
            None => None,
        };
        self.states[action] = Some(State::Done(done.clone()));
        Ok(done)
    }

    /// Owners by name are looked up in the passwd and group files of the inputs they name.
    async fn owners(&mut self, kind: &pb::file_action::Action) -> Result<Option<Owner>, OpError> {
        use pb::file_action::Action;
        let owner = match kind {
            Action::Copy(a) => &a.owner,
            Action::Mkfile(a) => &a.owner,
            Action::Mkdir(a) => &a.owner,
            Action::Symlink(a) => &a.owner,
            Action::Rm(_) => &None,
        };
        let Some(owner) = owner else { return Ok(None) };
        let mut ids = Owner { uid: 0, gid: 0 };
        match owner.user.as_ref().and_then(|u| u.user.as_ref()) {
            Some(pb::user_opt::User::ById(id)) => ids = Owner { uid: *id, gid: *id },
            Some(pb::user_opt::User::ByName(named)) => {
                if let Some(fields) = self.lookup(named, "/etc/passwd").await? {
                    ids = Owner { uid: number(&fields, 2), gid: number(&fields, 3) };
                }
            }
            None => {}
        }
        match owner.group.as_ref().and_then(|u| u.user.as_ref()) {
            Some(pb::user_opt::User::ById(id)) => ids.gid = *id,
            Some(pb::user_opt::User::ByName(named)) => {
                // An unknown group leaves the user's.
                if let Some(fields) = self.lookup(named, "/etc/group").await? {
                    ids.gid = number(&fields, 2);
                }
            }
            None => {}
        }
        Ok(Some(ids))
    }

    async fn lookup(
        &mut self,
        named: &pb::NamedUserOpt,
        path: &'static str,
    ) -> Result<Option<Vec<String>>, OpError> {
        let index = usize::try_from(named.input).map_err(|_| OpError::failed(FileOpError::UserInput))?;
        if index >= self.inputs.len() + self.states.len() {
            return Err(OpError::failed(FileOpError::UserInput));
        }
        let Some(state) = self.readable(index).await? else { return Ok(None) };
        let mount = common::view(Some(&state), self.provider, self.input_index(named.input)).await?;
        let name = named.name.clone();
        common::blocking(move || {
            let mounted = mount.with_temp().map_err(OpError::failed)?;
            let root = Root::open(mounted.path()).map_err(OpError::failed)?;
            match root.stat(path, true).map_err(OpError::failed)? {
                None => return Ok(None),
                Some(found) if found.size > MAX_USER_FILE => {
                    return Err(OpError::failed(FileOpError::UserFile { path, limit: MAX_USER_FILE }));
                }
                Some(_) => {}
            }
            let text = root.read(path, MAX_USER_FILE).map_err(OpError::failed)?;
            let text = String::from_utf8_lossy(&text);
            let mut lines = text.lines().map(|line| line.split(':').map(str::to_owned).collect::<Vec<_>>());
            Ok(lines.find(|fields| fields.first().is_some_and(|f| *f == name)))
        })
        .await
    }
}

fn number(fields: &[String], index: usize) -> u32 {
    fields.get(index).and_then(|f| f.parse().ok()).unwrap_or(0)
}

fn description(kind: &pb::file_action::Action) -> String {
    use pb::file_action::Action;
    match kind {
        Action::Copy(a) => format!("copy {} {}", a.src, a.dest),
        Action::Mkfile(a) => format!("mkfile {}", a.path),
        Action::Mkdir(a) => format!("mkdir {}", a.path),
        Action::Symlink(a) => format!("symlink {} -> {}", a.newpath, a.oldpath),
        Action::Rm(a) => format!("rm {}", a.path),
    }
}

/// The path below which an action does all it does, provided that nothing is there. Archives and several sources may
/// bring links, through which the next file could go anywhere.
fn made_at(kind: &pb::file_action::Action) -> Option<&Path> {
    use pb::file_action::Action;
    match kind {
        Action::Copy(a) => {
            let several = a.allow_wildcard && kiln_patterns::has_wildcard(&a.src);
            (!several && !a.attempt_unpack_docker_compatibility).then_some(a.dest.as_ref())
        }
        Action::Mkfile(a) => Some(a.path.as_ref()),
        Action::Mkdir(a) => Some(a.path.as_ref()),
        Action::Symlink(a) => Some(a.newpath.as_ref()),
        Action::Rm(_) => None,
    }
}

/// `source` is there for copies.
fn apply(
    kind: &pb::file_action::Action,
    owner: Option<Owner>,
    source: Option<&Root>,
    dest: &Root,
) -> Result<(), FileError> {
    use pb::file_action::Action;
    match kind {
        Action::Copy(a) => {
            let source = source.ok_or_else(|| FileError::SourceNotFound { path: a.src.clone() })?;
            let mode = match (a.mode_str.as_str(), u32::try_from(a.mode)) {
                ("", Ok(mode)) => Some(ModeChange::Octal(mode & 0o7777)),
                ("", Err(_)) => None,
                (text, _) => Some(ModeChange::parse(text)?),
            };
            fileop::copy(
                source,
                dest,
                &CopyAction {
                    src: a.src.clone(),
                    dest: a.dest.clone(),
                    owner,
                    mode,
                    follow_symlink: a.follow_symlink,
                    dir_copy_contents: a.dir_copy_contents,
                    attempt_unpack: a.attempt_unpack_docker_compatibility,
                    create_dest_path: a.create_dest_path,
                    allow_wildcard: a.allow_wildcard,
                    allow_empty_wildcard: a.allow_empty_wildcard,
                    timestamp: a.timestamp,
                    include: a.include_patterns.clone(),
                    exclude: a.exclude_patterns.clone(),
                    always_replace: a.always_replace_existing_dest_paths,
                },
            )
        }
        Action::Mkfile(a) => fileop::mkfile(
            dest,
            &MkfileAction {
                path: a.path.clone(),
                mode: a.mode.cast_unsigned(),
                data: a.data.clone(),
                owner,
                timestamp: a.timestamp,
            },
        ),
        Action::Mkdir(a) => fileop::mkdir(
            dest,
            &MkdirAction {
                path: a.path.clone(),
                mode: a.mode.cast_unsigned(),
                make_parents: a.make_parents,
                owner,
                timestamp: a.timestamp,
            },
        ),
        Action::Symlink(a) => fileop::symlink(
            dest,
            &SymlinkAction {
                target: a.oldpath.clone(),
                path: a.newpath.clone(),
                owner,
                timestamp: a.timestamp,
            },
        ),
        Action::Rm(a) => fileop::rm(
            dest,
            &RmAction {
                path: a.path.clone(),
                allow_not_found: a.allow_not_found,
                allow_wildcard: a.allow_wildcard,
            },
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(inputs: usize, actions: &[(i64, i64, i64)]) -> String {
        let actions = actions
            .iter()
            .map(|(input, secondary_input, output)| pb::FileAction {
                input: *input,
                secondary_input: *secondary_input,
                output: *output,
                action: None,
            })
            .collect();
        match Plan::new(&pb::FileOp { actions }, inputs) {
            Ok(plan) => format!("{:?} -> {:?}", plan.order, plan.outputs),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn plans() {
        for (inputs, actions, want) in [
            (1, &[(0, -1, 0)][..], "[0] -> [0]"),
            (2, &[(0, 1, -1), (2, 1, 0)], "[0, 1] -> [1]"),
            (1, &[(2, -1, 0), (0, -1, -1)], "[1, 0] -> [0]"),
            (1, &[(0, -1, -1), (0, -1, 0)], "[1] -> [1]"),
            (1, &[(0, -1, 1), (0, -1, 0)], "[1, 0] -> [1, 0]"),
            (1, &[(0, -1, 0), (0, -1, 0)], "duplicate output 0"),
            (1, &[(0, -1, -1), (0, -1, 1)], "missing output index 0"),
            (1, &[(0, -1, -1)], "no outputs specified"),
            (1, &[(5, -1, 0)], "invalid input index 5, 2 provided"),
            (0, &[(1, -1, 0), (0, -1, -1)], "loop from index 0"),
            (0, &[(0, -1, 0)], "loop from index 0"),
        ] {
            assert_eq!(plan(inputs, actions), want, "{actions:?}");
        }
    }
}
