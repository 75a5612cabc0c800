//! What every op must have, checked before it is used.

use kiln_llb::pb::{self, op::Op as Kind};

use crate::load::LoadError;

pub(super) fn op(op: &pb::Op) -> Result<(), LoadError> {
    let fail = |text: &str| Err(LoadError::InvalidOp(text.to_owned()));
    match &op.op {
        Some(Kind::Exec(exec)) => match &exec.meta {
            None => return fail("invalid exec op with no meta"),
            Some(meta) if meta.args.is_empty() => return fail("invalid exec op with no args"),
            Some(_) if exec.mounts.is_empty() => return fail("invalid exec op with no mounts"),
            Some(_) if exec.mounts.iter().all(|m| m.dest != "/") => {
                return fail("invalid exec op with no rootfs");
            }
            Some(_) => {}
        },
        Some(Kind::File(file)) if file.actions.is_empty() => return fail("invalid file op with no actions"),
        Some(Kind::Diff(diff)) if diff.lower.is_none() || diff.upper.is_none() => {
            return fail("invalid diff op with nil lower or upper input");
        }
        Some(Kind::Passthrough(passthrough)) => {
            if passthrough.id.is_empty() {
                return fail("invalid passthrough op with no id");
            }
            if passthrough.outputs.is_empty() {
                return fail("invalid passthrough op with no outputs");
            }
            let inputs = i64::try_from(op.inputs.len()).unwrap_or(i64::MAX);
            for &output in &passthrough.outputs {
                if output < 0 || inputs > 0 && output >= inputs {
                    return fail(&format!("invalid passthrough output input index {output}"));
                }
            }
        }
        _ => {}
    }
    Ok(())
}
