//! A memo as it is stored.

use std::time::SystemTime;

use kiln_digest::Digest;
use kiln_solver::{
    Component, Fingerprint, GoneWhy, KeyAndSelector, KeyDigest, KeyId, Memo, MemoInput, NewKey, Remembered,
};

use crate::memos::{ALTERNATIVES, Reader, Writer};

/// Leads every body; a body of another form is not read.
const FORM: u64 = 1;

/// What a memo and its key say, listings apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Body {
    pub(super) digest: KeyDigest,
    pub(super) deps: Vec<Vec<KeyAndSelector>>,
    name: String,
    fingerprint: Fingerprint,
    inputs: Vec<String>,
}

impl Body {
    pub(super) fn new(key: &NewKey, memo: &Memo) -> Self {
        let lasting = |alternatives: &Vec<KeyAndSelector>| {
            let lasting = alternatives.iter().filter(|alternative| !alternative.key.is_random());
            lasting.take(ALTERNATIVES).cloned().collect()
        };
        Self {
            digest: key.digest,
            deps: key.deps.iter().take(memo.inputs.len()).map(lasting).collect(),
            name: memo.name.clone(),
            fingerprint: memo.fingerprint.clone(),
            inputs: memo.inputs.iter().map(|input| input.name.clone()).collect(),
        }
    }

    pub(super) fn remembered(
        self,
        key: KeyId,
        created_at: SystemTime,
        gone: Option<(SystemTime, GoneWhy)>,
    ) -> Remembered {
        let inputs = self.inputs.into_iter().map(|name| MemoInput::new(name, None)).collect();
        let memo = Memo::new(self.name, self.fingerprint, inputs);
        Remembered { memo, key, digest: self.digest, deps: self.deps, created_at, gone }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.number(FORM);
        out.text(&self.digest.to_string());
        out.text(&self.name);
        out.text(self.fingerprint.kin());
        out.number(self.fingerprint.components().len() as u64);
        for component in self.fingerprint.components() {
            out.text(&component.part);
            out.text(&component.name);
            out.raw(&component.mark.to_le_bytes());
            match &component.shown {
                None => out.number(0),
                Some(shown) => {
                    out.number(1);
                    out.text(shown);
                }
            }
        }
        out.number(self.inputs.len() as u64);
        for (name, alternatives) in self.inputs.iter().zip(&self.deps) {
            out.text(name);
            out.number(alternatives.len() as u64);
            for alternative in alternatives {
                out.text(alternative.key.as_str());
                match &alternative.selector {
                    None => out.number(0),
                    Some(selector) => {
                        out.number(1);
                        out.raw(selector.as_bytes());
                    }
                }
            }
        }
        out.finish()
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut from = Reader(bytes);
        if from.number()? != FORM {
            return None;
        }
        let digest = from.text()?.parse().ok()?;
        let name = from.text()?;
        let kin = from.text()?;
        let mut components = Vec::new();
        for _ in 0..from.count()? {
            components.push(Component {
                part: from.text()?,
                name: from.text()?,
                mark: u64::from_le_bytes(*from.raw(8)?.first_chunk()?),
                shown: match from.number()? {
                    0 => None,
                    _ => Some(from.text()?),
                },
            });
        }
        let (mut inputs, mut deps) = (Vec::new(), Vec::new());
        for _ in 0..from.count()? {
            inputs.push(from.text()?);
            let mut alternatives = Vec::new();
            for _ in 0..from.count()? {
                let key = KeyId::new(from.text()?);
                let selector = match from.number()? {
                    0 => None,
                    _ => Some(Digest::from_bytes(*from.raw(32)?.first_chunk()?)),
                };
                alternatives.push(KeyAndSelector { key, selector });
            }
            deps.push(alternatives);
        }
        let fingerprint = Fingerprint::from_parts(kin, components);
        from.is_empty().then_some(Self { digest, deps, name, fingerprint, inputs })
    }
}

#[cfg(test)]
mod tests {
    use kiln_solver::OutputIndex;

    use super::*;

    #[test]
    fn what_is_read_is_what_was_written() {
        let mut fingerprint = Fingerprint::default();
        fingerprint.set_kin("a kin");
        fingerprint.add("argument 0", "sh");
        fingerprint.add_to("mount /x", "type", "bind");
        fingerprint.add_hidden("", "env TOKEN", "secret");
        let alternative = |key: &str, selector: Option<&str>| KeyAndSelector {
            key: KeyId::new(key),
            selector: selector.map(Digest::of),
        };
        let key = NewKey {
            digest: Digest::of("op").into(),
            output: OutputIndex(0),
            deps: vec![
                vec![alternative("random:aa", None), alternative("k", Some("part"))],
                vec![alternative("content", None)],
            ],
        };
        let inputs = vec![MemoInput::new("one", Some(vec![1])), MemoInput::new("two", None)];
        let memo = Memo::new("[2/3] RUN x", fingerprint, inputs);
        let body = Body::new(&key, &memo);
        assert_eq!(body.deps[0], [alternative("k", Some("part"))], "what holds in one session is left out");
        let bytes = body.encode();
        assert!(!bytes.windows(6).any(|part| part == b"secret"));
        let read = Body::decode(&bytes).unwrap();
        assert_eq!(read.deps, body.deps);
        let remembered = read.remembered(KeyId::new("id"), SystemTime::UNIX_EPOCH, None);
        assert_eq!(remembered.memo.name, memo.name);
        assert_eq!(remembered.memo.fingerprint.kin(), "a kin");
        assert_eq!(remembered.memo.fingerprint.components(), memo.fingerprint.components());
        for cut in 0..bytes.len() {
            assert_eq!(Body::decode(&bytes[..cut]), None, "cut at {cut}");
        }
    }
}
