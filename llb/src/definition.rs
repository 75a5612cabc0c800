//! Marshalled graphs: digests, canonical bytes, what a definition asks for.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use kiln_digest::Digest;
use prost::Message as _;

use crate::canonical::is_canonical_op;
use crate::error::{Error, Result};
use crate::pb;
use crate::schema::Schema;
use crate::wire::{Key, Message, Value, Values};

/// Checksum of a vertex's definition and everything below it. Compare it within one solve only.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VertexDigest(Digest);

impl VertexDigest {
    /// Hashes the bytes of an Op as they are.
    pub fn of(op: &[u8]) -> Self {
        Self(Digest::of(op))
    }

    /// Returns the checksum itself.
    pub const fn digest(&self) -> Digest {
        self.0
    }
}

impl From<Digest> for VertexDigest {
    fn from(digest: Digest) -> Self {
        Self(digest)
    }
}

impl FromStr for VertexDigest {
    type Err = kiln_digest::ParseError;

    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

impl fmt::Display for VertexDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for VertexDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Returns the canonical bytes of a typed Op.
///
/// # Errors
/// Only for messages nested deeper than the decoder allows.
pub fn marshal_op(op: &pb::Op) -> Result<Vec<u8>> {
    // Members of oneofs come last; all else is as the generated encoder has it, unless it is a rare value.
    let rest = pb::Op {
        op: None,
        inputs: op.inputs.clone(),
        platform: op.platform.clone(),
        constraints: op.constraints.clone(),
    };
    let mut bytes = rest.encode_to_vec();
    if let Some(member) = &op.op {
        member.encode(&mut bytes);
    }
    if is_canonical_op(&bytes) { Ok(bytes) } else { canonical_op(&bytes) }
}

/// Returns the canonical bytes of an Op that was marshalled in any valid way, unknown fields included.
///
/// # Errors
/// If `bytes` is not an Op.
pub fn canonical_op(bytes: &[u8]) -> Result<Vec<u8>> {
    Message::decode(Schema::llb(), "pb.Op", bytes)?.encode()
}

/// An Op at wire level, for changing what a loader may change without losing what it does not know.
#[derive(Debug)]
pub struct RawOp(Message);

impl RawOp {
    /// Decodes any valid encoding of an Op.
    ///
    /// # Errors
    /// If `bytes` is not an Op.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        Message::decode(Schema::llb(), "pb.Op", bytes).map(Self)
    }

    /// Replaces the digests of all inputs, in order.
    ///
    /// # Errors
    /// Only if the schema is inconsistent.
    pub fn set_input_digests(&mut self, digests: Vec<String>) -> Result<()> {
        self.0.set_each_text("inputs", "digest", digests)
    }

    /// Replaces identifier and attributes of a source; other ops stay as they are.
    ///
    /// # Errors
    /// Only if the schema is inconsistent.
    pub fn set_source(&mut self, identifier: String, attrs: &BTreeMap<String, String>) -> Result<()> {
        let Some((schema, body)) = self.0.child("source")? else { return Ok(()) };
        body.set(schema, "identifier", Values::One(Value::Text(identifier)))?;
        let attrs = attrs.iter().map(|(k, v)| (Key::Text(k.clone()), Value::Text(v.clone()))).collect();
        body.set(schema, "attrs", Values::Map(attrs))
    }

    /// Returns the canonical bytes.
    ///
    /// # Errors
    /// Only if the schema is inconsistent.
    pub fn encode(&self) -> Result<Vec<u8>> {
        self.0.encode()
    }
}

impl pb::Definition {
    /// Whether this is the definition of an empty state.
    pub fn is_scratch(&self) -> bool {
        self.def.is_empty()
    }

    /// Returns the edge the definition asks for, `None` for an empty state.
    ///
    /// # Errors
    /// If the last entry is not an Op.
    pub fn head(&self) -> Result<Option<pb::Input>> {
        match self.def.last() {
            None => Ok(None),
            Some(last) => Ok(pb::Op::decode(last.as_slice())?.inputs.into_iter().next()),
        }
    }

    /// Decodes every entry, in the order sent, with its digest and metadata.
    ///
    /// # Errors
    /// At the first entry that is not an Op.
    pub fn entries(&self) -> impl Iterator<Item = Result<Entry<'_>>> {
        self.def.iter().map(|bytes| {
            let digest = VertexDigest::of(bytes);
            let op = pb::Op::decode(bytes.as_slice())?;
            Ok(Entry { digest, bytes, op, metadata: self.metadata.get(&digest.to_string()) })
        })
    }
}

/// One vertex of a marshalled graph.
#[derive(Clone, Debug)]
pub struct Entry<'a> {
    /// Digest of `bytes`.
    pub digest: VertexDigest,
    /// The Op as it was sent.
    pub bytes: &'a [u8],
    /// The same, decoded.
    pub op: pb::Op,
    /// What the definition says about it.
    pub metadata: Option<&'a pb::OpMetadata>,
}

/// Orders vertices so that inputs come before their users, starting from `roots` and following `inputs`.
///
/// Iterative, so that deep graphs need heap only.
///
/// # Errors
/// Whatever `inputs` fails with, and [`Error::Cycle`].
pub fn walk(
    roots: impl IntoIterator<Item = VertexDigest>,
    mut inputs: impl FnMut(VertexDigest) -> Result<Vec<VertexDigest>>,
) -> Result<Vec<VertexDigest>> {
    enum Step {
        Enter(VertexDigest),
        Leave(VertexDigest),
    }
    let mut done = std::collections::HashMap::new();
    let mut order = Vec::new();
    let mut stack: Vec<Step> = roots.into_iter().map(Step::Enter).collect();
    stack.reverse();
    while let Some(step) = stack.pop() {
        match step {
            Step::Leave(digest) => {
                done.insert(digest, true);
                order.push(digest);
            }
            Step::Enter(digest) => match done.get(&digest) {
                Some(true) => {}
                Some(false) => return Err(Error::Cycle(digest.digest())),
                None => {
                    done.insert(digest, false);
                    stack.push(Step::Leave(digest));
                    let children = inputs(digest)?;
                    stack.extend(children.into_iter().rev().map(Step::Enter));
                }
            },
        }
    }
    Ok(order)
}
