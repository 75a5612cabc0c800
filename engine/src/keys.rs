//! Op digests and what ops want to know of their inputs: the parts of cache keys that an op computes alone.
//!
//! The bytes hashed here must stay those of the reference, or caches exported by one side miss on the
//! other. Follows `cache-keys.md` section 4 and moby/buildkit: solver/llbsolver/ops/.

mod exec;
mod file;
pub(crate) mod fingerprint;
mod selector;
#[cfg(test)]
mod tests;

use kiln_digest::Digest;
use kiln_llb::gojson;
use kiln_llb::pb::{self, op::Op as Kind};

pub use crate::keys::selector::ContentSelector;

/// What an op contributes to its cache key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpKey {
    /// The op digest.
    pub digest: Digest,
    /// One for each input that takes part in the key.
    pub deps: Vec<DepKey>,
}

/// What an op wants to know of one input.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DepKey {
    /// Which part of the input matters, mixed into the fast key.
    pub selector: Option<Digest>,
    /// What a content key is computed of: an empty list stands for the whole root, `None` means that there
    /// is no content key.
    pub content: Option<Vec<ContentSelector>>,
    /// The input is fetched and unpacked before the op uses it.
    pub unlazy: bool,
}

/// Why an op has no key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// A mount names an input that is not there.
    #[error("invalid mountinput {0}")]
    MountInput(String),
    /// A content key was demanded where it would be wrong.
    #[error("invalid mount cache content {0}")]
    MountContent(String),
    /// A file action looks into an input that is not there.
    #[error("invalid input index {index} in file op with {inputs} inputs")]
    FileInput {
        /// The index.
        index: i64,
        /// How many inputs there are.
        inputs: usize,
    },
    /// The op lacks something it cannot do without.
    #[error("invalid op: {0}")]
    Invalid(&'static str),
    /// The op cannot be written as JSON.
    #[error("cannot encode op")]
    Encode(#[from] kiln_llb::Error),
}

/// Computes the key of `op`, `None` for sources (their keys come from outside) and empty ops.
///
/// # Errors
/// [`KeyError`], with the reference's texts.
pub fn op_key(op: &pb::Op) -> Result<Option<OpKey>, KeyError> {
    let inputs = op.inputs.len();
    let unlazy = DepKey { unlazy: true, ..DepKey::default() };
    let key = match &op.op {
        None | Some(Kind::Source(_)) => return Ok(None),
        Some(Kind::Exec(exec)) => exec::key(exec, op.platform.as_ref(), inputs, unlazy)?,
        Some(Kind::File(file)) => file::key(file, inputs, &unlazy)?,
        Some(Kind::Merge(merge)) => {
            plain("buildkit.merge.v0", "Merge", &gojson::pb("pb.MergeOp", merge)?, merge.inputs.len())
        }
        Some(Kind::Diff(diff)) => {
            let sides = [diff.lower.map(|l| l.input), diff.upper.map(|u| u.input)];
            let deps = sides.into_iter().flatten().filter(|&input| input != -1).count();
            plain("buildkit.diff.v0", "Diff", &gojson::pb("pb.DiffOp", diff)?, deps)
        }
        Some(Kind::Build(build)) => {
            plain("buildkit.build.v0", "Exec", &gojson::pb("pb.BuildOp", build)?, inputs)
        }
        Some(Kind::Passthrough(passthrough)) => {
            let json = gojson::pb("pb.PassthroughOp", passthrough)?;
            plain("buildkit.passthrough.v0", "Passthrough", &json, inputs)
        }
    };
    Ok(Some(key))
}

fn plain(kind: &str, field: &str, json: &str, deps: usize) -> OpKey {
    let mut out = String::new();
    let mut object = gojson::Object::new(&mut out);
    gojson::write_text(kind, object.key("Type"));
    object.key(field).push_str(json);
    object.end();
    OpKey { digest: Digest::of(&out), deps: vec![DepKey::default(); deps] }
}
