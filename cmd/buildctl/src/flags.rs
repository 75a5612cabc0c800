//! Flags in Go's spelling: one dash or two, values after `=` or a space.

use std::collections::HashMap;

use kiln_cli::{Duration, quote};

/// What a flag takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Bool,
    Text,
    /// A text that may be given several times.
    List,
    Int,
    Float,
    Duration,
}

/// A flag that a command knows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flag {
    pub(crate) name: &'static str,
    /// A second name, of one letter.
    pub(crate) short: &'static str,
    pub(crate) kind: Kind,
    pub(crate) help: &'static str,
}

/// The flags that were given, and what is left.
#[derive(Clone, Debug, Default)]
pub(crate) struct Parsed {
    values: HashMap<&'static str, Vec<String>>,
    pub(crate) arguments: Vec<String>,
}

impl Flag {
    pub(crate) const fn new(name: &'static str, kind: Kind, help: &'static str) -> Self {
        Self { name, short: "", kind, help }
    }

    pub(crate) const fn short(mut self, short: &'static str) -> Self {
        self.short = short;
        self
    }

    fn check(&self, value: &str) -> Result<(), String> {
        let reason = match self.kind {
            Kind::Text | Kind::List => return Ok(()),
            Kind::Bool => parse_bool(value).map(drop).ok_or_else(|| "parse error".to_owned()),
            Kind::Int => value
                .parse::<i64>()
                .map(drop)
                .map_err(|_| format!("strconv.ParseInt: parsing {}: invalid syntax", quote(value))),
            Kind::Float => value
                .parse::<f64>()
                .map(drop)
                .map_err(|_| format!("strconv.ParseFloat: parsing {}: invalid syntax", quote(value))),
            Kind::Duration => Duration::parse(value).map(drop),
        };
        reason.map_err(|reason| format!("invalid value {} for flag -{}: {reason}", quote(value), self.name))
    }
}

impl Parsed {
    /// Reads flags; with `until_command` only up to the first argument that is none.
    ///
    /// # Errors
    /// With the reference's text for an unknown flag, a missing value or a wrong one.
    pub(crate) fn parse(known: &[Flag], arguments: Vec<String>, until_command: bool) -> Result<Self, String> {
        let mut parsed = Self::default();
        let mut rest = arguments.into_iter();
        while let Some(argument) = rest.next() {
            if argument == "--" {
                parsed.arguments.extend(rest);
                break;
            }
            let Some(text) = argument.strip_prefix('-').filter(|text| !text.is_empty()) else {
                parsed.arguments.push(argument);
                if until_command {
                    parsed.arguments.extend(rest);
                    break;
                }
                continue;
            };
            let text = text.strip_prefix('-').unwrap_or(text);
            let (name, value) = match text.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (text, None),
            };
            let flag = known
                .iter()
                .find(|flag| flag.name == name || (!flag.short.is_empty() && flag.short == name))
                .ok_or_else(|| format!("flag provided but not defined: -{name}"))?;
            let value = match (value, flag.kind) {
                (Some(value), _) => value,
                (None, Kind::Bool) => "true".to_owned(),
                (None, _) => rest.next().ok_or_else(|| format!("flag needs an argument: {argument}"))?,
            };
            flag.check(&value)?;
            parsed.values.entry(flag.name).or_default().push(value);
        }
        Ok(parsed)
    }

    /// The last value of a flag, or nothing.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.list(name).last().map(String::as_str)
    }

    /// All values of a flag.
    pub(crate) fn list(&self, name: &str) -> &[String] {
        self.values.get(name).map(Vec::as_slice).unwrap_or_default()
    }

    /// Whether a flag is on.
    pub(crate) fn is(&self, name: &str) -> bool {
        self.text(name).and_then(parse_bool).unwrap_or_default()
    }

    /// A whole number.
    pub(crate) fn int(&self, name: &str) -> Option<i64> {
        self.text(name).and_then(|text| text.parse().ok())
    }

    /// A length of time; zero if it was not given.
    pub(crate) fn duration(&self, name: &str) -> Duration {
        self.text(name).and_then(|text| Duration::parse(text).ok()).unwrap_or_default()
    }

    /// Bytes from a number of megabytes; zero if it was not given.
    pub(crate) fn megabytes(&self, name: &str) -> i64 {
        let value: f64 = self.text(name).and_then(|text| text.parse().ok()).unwrap_or_default();
        // Saturates; nobody has so many bytes.
        (value * 1e6) as i64
    }
}

fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: &[Flag] = &[
        Flag::new("filter", Kind::List, "").short("f"),
        Flag::new("all", Kind::Bool, ""),
        Flag::new("keep-storage", Kind::Float, ""),
        Flag::new("keep-duration", Kind::Duration, ""),
        Flag::new("timeout", Kind::Int, ""),
        Flag::new("addr", Kind::Text, ""),
    ];

    #[track_caller]
    fn check(line: &str, want: &str) {
        let arguments = line.split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect();
        let got = match Parsed::parse(KNOWN, arguments, false) {
            Ok(parsed) => {
                let mut values: Vec<_> = parsed.values.iter().collect();
                values.sort();
                let values: Vec<_> = values.iter().map(|(k, v)| format!("{k}={}", v.join(","))).collect();
                format!("{} | {}", values.join(" "), parsed.arguments.join(" "))
            }
            Err(error) => error,
        };
        assert_eq!(got, want);
    }

    #[test]
    fn spellings() {
        check("-addr a --filter=b -f c x", "addr=a filter=b,c | x");
        check("--all --all=false x -f y", "all=true,false filter=y | x");
        check("--addr unix:///a=b -- --all", "addr=unix:///a=b | --all");
        check("-", " | -");
        check("--keep-storage 1.5 --keep-duration 1h", "keep-duration=1h keep-storage=1.5 | ");
    }

    #[test]
    fn mistakes() {
        check("--nosuch", "flag provided but not defined: -nosuch");
        check("--addr", "flag needs an argument: --addr");
        check("--all=x", "invalid value \"x\" for flag -all: parse error");
        check(
            "--keep-storage x",
            "invalid value \"x\" for flag -keep-storage: strconv.ParseFloat: parsing \"x\": invalid syntax",
        );
        check(
            "--timeout x",
            "invalid value \"x\" for flag -timeout: strconv.ParseInt: parsing \"x\": invalid syntax",
        );
        check(
            "--keep-duration 5x",
            "invalid value \"5x\" for flag -keep-duration: time: unknown unit \"x\" in duration \"5x\"",
        );
    }
}
