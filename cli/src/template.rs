//! The values of `--format`.

use serde::Serialize;

use crate::error::{Error, Result};

/// How records are printed on request. Of the reference's Go templates this one is known: the whole value as JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// `json` or `{{json .}}`.
    Json,
}

impl Format {
    /// Reads the value of `--format`; nothing for an empty one.
    ///
    /// # Errors
    /// If it is any other template.
    pub fn parse(text: &str) -> Result<Option<Self>> {
        if text.is_empty() {
            return Ok(None);
        }
        let inner = text.trim().strip_prefix("{{").and_then(|rest| rest.strip_suffix("}}"));
        let words: Vec<&str> = inner.unwrap_or_default().split_whitespace().collect();
        if text == "json" || words == ["json", "."] {
            return Ok(Some(Self::Json));
        }
        Err(Error::option(format!("--format `{text}` is not supported yet: use json or '{{{{json .}}}}'")))
    }

    /// One line for this value.
    ///
    /// # Errors
    /// If it cannot be JSON.
    pub fn line(self, value: &impl Serialize) -> Result<String> {
        let json = kiln_llb::gojson::to_string(value).map_err(|error| Error::option(error.to_string()))?;
        Ok(json + "\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats() {
        for text in ["json", "{{json .}}", "{{ json . }}"] {
            assert_eq!(Format::parse(text).unwrap(), Some(Format::Json));
        }
        assert_eq!(Format::parse("").unwrap(), None);
        let refused = Format::parse("{{.ID}}").unwrap_err().to_string();
        assert_eq!(refused, "--format `{{.ID}}` is not supported yet: use json or '{{json .}}'");
        assert_eq!(Format::Json.line(&"a<b").unwrap(), "\"a\\u003cb\"\n");
    }
}
