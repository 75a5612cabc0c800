//! Digests that may be local to one daemon.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{Digest, ParseError};

/// An op digest or cache key: `sha256:…`, or `random:…` when it means nothing outside this daemon and must
/// not be exported. Orders like its text form.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum KeyDigest {
    /// Valid in this daemon only. The hex part is that of the wrapped digest.
    Random(Digest),
    /// Valid everywhere.
    Sha256(Digest),
}

impl KeyDigest {
    /// Whether the key must stay in this daemon.
    pub const fn is_random(&self) -> bool {
        matches!(self, Self::Random(_))
    }

    /// Returns the checksum, whichever the kind.
    pub const fn checksum(&self) -> &Digest {
        match self {
            Self::Random(digest) | Self::Sha256(digest) => digest,
        }
    }

    /// Returns the digest if the key is valid everywhere.
    pub const fn sha256(&self) -> Option<Digest> {
        match self {
            Self::Random(_) => None,
            Self::Sha256(digest) => Some(*digest),
        }
    }
}

impl From<Digest> for KeyDigest {
    fn from(digest: Digest) -> Self {
        Self::Sha256(digest)
    }
}

impl fmt::Display for KeyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Random(digest) => write!(f, "random:{}", digest.hex()),
            Self::Sha256(digest) => fmt::Display::fmt(digest, f),
        }
    }
}

impl fmt::Debug for KeyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for KeyDigest {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        match text.split_once(':') {
            Some(("random", hex)) => Digest::from_hex(hex).map(Self::Random),
            Some(("sha256", hex)) => Digest::from_hex(hex).map(Self::Sha256),
            Some((algorithm, _)) => Err(ParseError::Algorithm(algorithm.to_owned())),
            None => Err(ParseError::Format(text.to_owned())),
        }
    }
}

impl Serialize for KeyDigest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for KeyDigest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, random: bool) {
        let key: KeyDigest = text.parse().unwrap();
        assert_eq!((key.to_string().as_str(), key.is_random()), (text, random));
        assert_eq!(format!("{key:?}"), text);
    }

    #[test]
    fn both_kinds_print_as_parsed() {
        let hex = Digest::of("x").hex();
        check(&format!("random:{hex}"), true);
        check(&format!("sha256:{hex}"), false);
    }

    #[test]
    fn order_is_that_of_the_text() {
        let (a, b) = (Digest::of("a"), Digest::of("b"));
        let keys = [KeyDigest::Random(a), KeyDigest::Random(b), KeyDigest::Sha256(a), KeyDigest::Sha256(b)];
        for x in &keys {
            for y in &keys {
                assert_eq!(x.cmp(y), x.to_string().cmp(&y.to_string()));
            }
        }
    }
}
