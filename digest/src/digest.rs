//! The value itself: text form, order, serde.

use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::hasher::Hasher;

const PREFIX: &str = "sha256:";
const BYTES: usize = 32;
const TEXT: usize = PREFIX.len() + 2 * BYTES;
const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// A sha256 checksum of bytes. Its text form is `sha256:` and 64 lower case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; BYTES]);

/// Why a text is no digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseError {
    /// The text does not have the form `<algorithm>:<hex>`.
    #[error("invalid checksum digest format: `{0}`")]
    Format(String),
    /// The algorithm is not sha256.
    #[error("unsupported digest algorithm: `{0}`")]
    Algorithm(String),
    /// The hex part has the wrong length or other characters than lower case hex digits.
    #[error("invalid checksum digest length or characters: `{0}`")]
    Hex(String),
}

impl Digest {
    /// Hashes `data`.
    pub fn of(data: impl AsRef<[u8]>) -> Self {
        let mut hasher = Hasher::new();
        hasher.update(data.as_ref());
        hasher.finish()
    }

    /// Makes a digest of its 32 bytes.
    pub const fn from_bytes(bytes: [u8; BYTES]) -> Self {
        Self(bytes)
    }

    /// Returns the 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; BYTES] {
        &self.0
    }

    /// Returns the 64 hex digits without the algorithm.
    pub fn hex(&self) -> String {
        std::str::from_utf8(&self.text()).unwrap_or_default().replacen(PREFIX, "", 1)
    }

    /// The text form, which is ASCII.
    fn text(&self) -> [u8; TEXT] {
        let mut text = [0; TEXT];
        let (prefix, hex) = text.split_at_mut(PREFIX.len());
        prefix.copy_from_slice(PREFIX.as_bytes());
        for (pair, byte) in hex.chunks_exact_mut(2).zip(self.0) {
            pair.copy_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
        }
        text
    }

    /// Returns the name of the algorithm, `sha256`.
    pub const fn algorithm(&self) -> &'static str {
        "sha256"
    }

    /// Parses the hex part alone, as file names in a blob store have it.
    ///
    /// # Errors
    /// [`ParseError::Hex`] unless `text` is 64 lower case hex digits.
    pub fn from_hex(text: &str) -> Result<Self, ParseError> {
        let mut bytes = [0; BYTES];
        if text.bytes().any(|byte| byte.is_ascii_uppercase())
            || hex::decode_to_slice(text, &mut bytes).is_err()
        {
            return Err(ParseError::Hex(text.to_owned()));
        }
        Ok(Self(bytes))
    }
}

impl FromStr for Digest {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        if let Some(hex) = text.strip_prefix(PREFIX) {
            return Self::from_hex(hex);
        }
        match text.split_once(':') {
            Some((algorithm, hex)) if !algorithm.is_empty() && !hex.is_empty() => {
                Err(ParseError::Algorithm(algorithm.to_owned()))
            }
            _ => Err(ParseError::Format(text.to_owned())),
        }
    }
}

impl TryFrom<&str> for Digest {
    type Error = ParseError;

    fn try_from(text: &str) -> Result<Self, ParseError> {
        text.parse()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(&self.text()).unwrap_or_default())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, want: Result<(), &str>) {
        let got = text.parse::<Digest>();
        assert_eq!(
            got.as_ref().map(ToString::to_string).map_err(ToString::to_string),
            match want {
                Ok(()) => Ok(text.to_owned()),
                Err(error) => Err(error.to_owned()),
            }
        );
    }

    #[test]
    fn text_form() {
        check("sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", Ok(()));
        check("", Err("invalid checksum digest format: ``"));
        check("sha512:ab", Err("unsupported digest algorithm: `sha512`"));
        check("sha256:ab", Err("invalid checksum digest length or characters: `ab`"));
        let upper = "E3B0C44298FC1C149AFBF4C8996FB92427AE41E4649B934CA495991B7852B855";
        check(
            &format!("sha256:{upper}"),
            Err(&format!("invalid checksum digest length or characters: `{upper}`")),
        );
    }

    #[test]
    fn of_nothing() {
        assert_eq!(
            Digest::of(b"").to_string(),
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
    }
}
