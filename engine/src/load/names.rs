//! What a vertex is called when nobody named it.

use kiln_llb::pb::{self, file_action::Action, op::Op as Kind};

use crate::load::{Edge, LoadError, LoadedVertex};

/// Bytes of a name. It goes with every event of the vertex, several of which share a message.
const MAX_NAME: usize = 64 << 10;
/// Bytes of a name made of those of inputs: in a chain of merges these could double with every step.
const MAX_COMPOSED: usize = 2 << 10;

/// A name cut to the longest that is shown.
pub(super) fn bounded(name: &str) -> String {
    if name.len() <= MAX_NAME {
        return name.to_owned();
    }
    let end = (0..=MAX_NAME).rev().find(|end| name.is_char_boundary(*end)).unwrap_or(0);
    format!("{}…", name.get(..end).unwrap_or_default())
}

/// Checks what naming relies on.
pub(super) fn check(op: &pb::Op) -> Result<(), LoadError> {
    let Some(Kind::Diff(diff)) = &op.op else { return Ok(()) };
    let sides = [diff.lower.map(|l| l.input), diff.upper.map(|u| u.input)];
    for side in sides.into_iter().flatten().filter(|&side| side != -1) {
        if usize::try_from(side).map_or(true, |side| side >= op.inputs.len()) {
            return Err(LoadError::InvalidOp(format!("invalid diff input index {side}")));
        }
    }
    Ok(())
}

/// The name of a vertex with these inputs, which are among `vertices`.
pub(super) fn of(op: &pb::Op, inputs: &[Edge], vertices: &[LoadedVertex]) -> String {
    let input_name = |position: usize| {
        inputs.get(position).and_then(|edge| vertices.get(edge.vertex)).map_or("", |v| v.name.as_str())
    };
    match &op.op {
        Some(Kind::Source(source)) => bounded(&source.identifier),
        Some(Kind::Exec(exec)) => bounded(&exec.meta.as_ref().map(|m| m.args.join(" ")).unwrap_or_default()),
        Some(Kind::File(file)) => bounded(&file_name(&file.actions)),
        Some(Kind::Build(_)) => "build".to_owned(),
        Some(Kind::Merge(_)) => {
            let mut name = "merge (".to_owned();
            for position in 0..inputs.len() {
                if position > 0 {
                    push_bounded(&mut name, ", ");
                }
                push_bounded(&mut name, input_name(position));
            }
            name.push(')');
            name
        }
        Some(Kind::Diff(diff)) => {
            let side = |name: &mut String, input: Option<i64>| match usize::try_from(input.unwrap_or(-1)) {
                Ok(position) => {
                    name.push('(');
                    push_bounded(name, input_name(position));
                    name.push(')');
                }
                Err(_) => name.push_str("scratch"),
            };
            let mut name = "diff ".to_owned();
            side(&mut name, diff.lower.map(|l| l.input));
            name.push_str(" -> ");
            side(&mut name, diff.upper.map(|u| u.input));
            name
        }
        Some(Kind::Passthrough(passthrough)) => bounded(&format!("passthrough {}", passthrough.id)),
        None => "unknown".to_owned(),
    }
}

fn push_bounded(name: &mut String, part: &str) {
    if name.len() + part.len() <= MAX_COMPOSED {
        name.push_str(part);
    } else if !name.ends_with('…') {
        name.push('…');
    }
}

fn file_name(actions: &[pb::FileAction]) -> String {
    let names: Vec<String> = actions
        .iter()
        .filter_map(|action| match action.action.as_ref()? {
            Action::Mkdir(a) => Some(format!("mkdir {}", a.path)),
            Action::Mkfile(a) => Some(format!("mkfile {}", a.path)),
            Action::Symlink(a) => Some(format!("symlink {} -> {}", a.newpath, a.oldpath)),
            Action::Rm(a) => Some(format!("rm {}", a.path)),
            Action::Copy(a) => Some(format!("copy {} {}", a.src, a.dest)),
        })
        .collect();
    names.join(", ")
}
