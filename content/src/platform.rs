//! Which system an image is for.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Which operating system and processor something is for. Field order is that of the OCI document.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Platform {
    /// Processor in Go's words, for example `amd64`.
    #[serde(default)]
    pub architecture: String,
    /// Operating system in Go's words, for example `linux`.
    #[serde(default)]
    pub os: String,
    /// Version of the operating system.
    #[serde(default, rename = "os.version", skip_serializing_if = "String::is_empty")]
    pub os_version: String,
    /// Features the operating system must have.
    #[serde(default, rename = "os.features", skip_serializing_if = "Vec::is_empty")]
    pub os_features: Vec<String>,
    /// Variant of the processor, for example `v7`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub variant: String,
}

impl Platform {
    /// Makes a platform of its three usual parts; `variant` may be empty.
    pub fn new(os: &str, architecture: &str, variant: &str) -> Self {
        Self {
            architecture: architecture.to_owned(),
            os: os.to_owned(),
            variant: variant.to_owned(),
            ..Self::default()
        }
    }

    /// Returns the platform this program was built for.
    pub fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", ""),
            "x86" => ("386", ""),
            "aarch64" => ("arm64", ""),
            "arm" => ("arm", "v7"),
            "powerpc64" => ("ppc64le", ""),
            other => (other, ""),
        };
        Self::new("linux", architecture, variant)
    }

    /// Parses `os/arch`, `os/arch/variant` or `os(version)/arch`, and normalises the parts.
    ///
    /// # Errors
    /// [`Error::InvalidPlatform`] for an empty part, other characters than letters, digits, `-`, `_` and `.`, or
    /// more than three parts.
    pub fn parse(text: &str) -> Result<Self> {
        let invalid = || Error::InvalidPlatform(text.to_owned());
        let mut parts = text.split('/');
        let (os, architecture, variant) = match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(os), Some(architecture), variant, None) => (os, architecture, variant.unwrap_or("")),
            (Some(single), None, ..) => {
                let host = Self::host();
                let lower = single.to_ascii_lowercase();
                return if matches!(lower.as_str(), "linux" | "windows" | "darwin" | "freebsd" | "macos") {
                    Ok(Self { os: lower, ..host }.normalized())
                } else if is_component(single) {
                    Ok(Self::new("linux", single, "").normalized())
                } else {
                    Err(invalid())
                };
            }
            _ => return Err(invalid()),
        };
        let (os, os_version) = match os.split_once('(') {
            Some((os, rest)) => (os, rest.strip_suffix(')').ok_or_else(invalid)?),
            None => (os, ""),
        };
        if !is_component(os) || !is_component(architecture) || (!variant.is_empty() && !is_component(variant))
        {
            return Err(invalid());
        }
        Ok(Self { os_version: os_version.to_owned(), ..Self::new(os, architecture, variant) }.normalized())
    }

    /// Returns the platform with aliases replaced (`x86_64` is `amd64`, `arm64/v8` is `arm64`, …).
    #[must_use]
    pub fn normalized(&self) -> Self {
        let os = match self.os.to_ascii_lowercase().as_str() {
            "" => "linux".to_owned(),
            "macos" => "darwin".to_owned(),
            other => other.to_owned(),
        };
        let architecture = self.architecture.to_ascii_lowercase();
        let variant = self.variant.to_ascii_lowercase();
        let (architecture, variant) = match (architecture.as_str(), variant.as_str()) {
            ("i386", _) => ("386", ""),
            ("x86_64" | "x86-64" | "amd64", "v1") => ("amd64", ""),
            ("x86_64" | "x86-64" | "amd64", other) => ("amd64", other),
            ("aarch64" | "arm64", "8" | "v8" | "v8.0") => ("arm64", ""),
            ("aarch64" | "arm64", other) => ("arm64", other),
            ("armhf", _) => ("arm", "v7"),
            ("armel", _) => ("arm", "v6"),
            ("arm", "" | "7") => ("arm", "v7"),
            ("arm", "5") => ("arm", "v5"),
            ("arm", "6") => ("arm", "v6"),
            ("arm", "8") => ("arm", "v8"),
            (architecture, variant) => (architecture, variant),
        };
        Self { architecture: architecture.to_owned(), os, variant: variant.to_owned(), ..self.clone() }
    }
}

impl fmt::Display for Platform {
    /// Writes `os/arch[/variant]`, or `os(version)/arch[/variant]`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.os.is_empty() {
            return f.write_str("unknown");
        }
        f.write_str(&self.os)?;
        if !self.os_version.is_empty() {
            write!(f, "({})", self.os_version)?;
        }
        for part in [&self.architecture, &self.variant] {
            if !part.is_empty() {
                write!(f, "/{part}")?;
            }
        }
        Ok(())
    }
}

fn is_component(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.'))
}
