//! Durations and disk sizes as the configuration file writes them.

use std::time::Duration;

use anyhow::{Result, bail};
use serde::Deserialize;

/// A duration in Go's text form (`48h`, `1h30m`, `500ms`) or an integer number of seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ConfigDuration(pub(crate) Duration);

/// A disk size: bytes, bytes with a binary unit, or a share of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DiskSpace {
    Bytes(i64),
    Percent(i64),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum TextOrInteger {
    Integer(i64),
    Text(String),
}

impl<'de> Deserialize<'de> for ConfigDuration {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let parsed = match TextOrInteger::deserialize(deserializer)? {
            TextOrInteger::Integer(seconds) => u64::try_from(seconds)
                .map(Duration::from_secs)
                .map_err(|_| anyhow::anyhow!("invalid duration {seconds}")),
            TextOrInteger::Text(text) => parse_duration(&text),
        };
        parsed.map(Self).map_err(serde::de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for DiskSpace {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match TextOrInteger::deserialize(deserializer)? {
            TextOrInteger::Integer(bytes) => Ok(Self::Bytes(bytes)),
            TextOrInteger::Text(text) => parse_disk_space(&text).map_err(serde::de::Error::custom),
        }
    }
}

impl DiskSpace {
    /// Bytes, where `disk` is the size of the disk in bytes.
    pub(crate) fn bytes(self, disk: u64) -> i64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Percent(percent) => {
                let disk = i64::try_from(disk).unwrap_or(i64::MAX);
                disk / 100 * percent
            }
        }
    }
}

/// Parses Go's duration text, or a plain number of seconds.
pub(crate) fn parse_duration(text: &str) -> Result<Duration> {
    if let Ok(seconds) = text.parse::<u64>() {
        return Ok(Duration::from_secs(seconds));
    }
    let mut rest = text;
    let mut total = 0f64;
    if rest.is_empty() {
        bail!("invalid duration {text}");
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, tail) = rest.split_at(digits);
        let unit_len = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, next) = tail.split_at(unit_len);
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => bail!("invalid duration {text}"),
        };
        let Ok(number) = number.parse::<f64>() else { bail!("invalid duration {text}") };
        total += number * seconds;
        rest = next;
    }
    Ok(Duration::try_from_secs_f64(total)?)
}

fn parse_disk_space(text: &str) -> Result<DiskSpace> {
    let text = text.trim();
    if let Some(percent) = text.strip_suffix('%') {
        match percent.trim().parse::<i64>() {
            Ok(percent @ 0..=100) => return Ok(DiskSpace::Percent(percent)),
            _ => bail!("invalid disk space {text}"),
        }
    }
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let power = match unit.trim().to_ascii_lowercase().trim_end_matches("ib").trim_end_matches('b') {
        "" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        "p" => 5,
        _ => bail!("invalid disk space {text}"),
    };
    let Ok(number) = number.parse::<f64>() else { bail!("invalid disk space {text}") };
    #[expect(clippy::cast_possible_truncation, reason = "a size past i64 saturates, which means no limit")]
    Ok(DiskSpace::Bytes((number * 1024f64.powi(power)) as i64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, want) in [
            ("48h", Some(172_800.0)),
            ("1h30m", Some(5400.0)),
            ("90", Some(90.0)),
            ("250ms", Some(0.25)),
            ("", None),
            ("4 parsecs", None),
            ("h", None),
        ] {
            assert_eq!(parse_duration(text).ok().map(|d| d.as_secs_f64()), want, "{text}");
        }
    }

    #[test]
    fn disk_spaces() {
        for (text, want) in [
            ("10%", Some(100)),
            ("512MB", Some(512 << 20)),
            ("2GiB", Some(2 << 30)),
            ("100", Some(100)),
            ("1.5k", Some(1536)),
            ("101%", None),
            ("much", None),
        ] {
            assert_eq!(parse_disk_space(text).ok().map(|d| d.bytes(1000)), want, "{text}");
        }
    }
}
