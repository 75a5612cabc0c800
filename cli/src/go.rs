//! Texts as Go prints and parses them.

use std::fmt;
use std::io;

use kiln_progress::Timestamp;

use crate::error::{Error, Result};

const NANOSECOND: f64 = 1.0;
const MICROSECOND: f64 = 1e3;
const MILLISECOND: f64 = 1e6;
const SECOND: f64 = 1e9;
const MINUTE: f64 = 60.0 * SECOND;
const HOUR: f64 = 60.0 * MINUTE;

/// A length of time in nanoseconds, read and written as `1h30m0s`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Duration(pub i64);

impl Duration {
    /// Reads `1h30m`, `1.5s`, `-2ms`, `0`.
    ///
    /// # Errors
    /// With Go's text, which begins with `time: `.
    pub fn parse(text: &str) -> Result<Self, String> {
        let invalid = || format!("time: invalid duration {}", quote(text));
        let (negative, mut rest) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        if rest == "0" {
            return Ok(Self(0));
        }
        if rest.is_empty() {
            return Err(invalid());
        }
        let mut total = 0.0;
        while !rest.is_empty() {
            let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
            let (number, tail) = rest.split_at(end);
            let number: f64 = number.parse().map_err(|_| invalid())?;
            let end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
            let (unit, tail) = tail.split_at(end);
            let scale = match unit {
                "" => return Err(format!("time: missing unit in duration {}", quote(text))),
                "ns" => NANOSECOND,
                "us" | "µs" | "μs" => MICROSECOND,
                "ms" => MILLISECOND,
                "s" => SECOND,
                "m" => MINUTE,
                "h" => HOUR,
                unit => {
                    return Err(format!("time: unknown unit {} in duration {}", quote(unit), quote(text)));
                }
            };
            total += number * scale;
            rest = tail;
        }
        if total > i64::MAX as f64 {
            return Err(invalid());
        }
        // Checked against the range just above.
        let total = total as i64;
        Ok(Self(if negative { -total } else { total }))
    }

    /// As the standard library has it; negative ones are zero.
    pub fn to_std(self) -> std::time::Duration {
        std::time::Duration::from_nanos(u64::try_from(self.0).unwrap_or_default())
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 < 0 {
            f.write_str("-")?;
        }
        let nanos = self.0.unsigned_abs();
        let fraction = |value: u64, scale: u64| {
            let digits = scale.ilog10() as usize;
            let text = format!("{}.{:0digits$}", value / scale, value % scale);
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        };
        match nanos {
            0 => f.write_str("0s"),
            1..1_000 => write!(f, "{nanos}ns"),
            1_000..1_000_000 => write!(f, "{}µs", fraction(nanos, 1_000)),
            1_000_000..1_000_000_000 => write!(f, "{}ms", fraction(nanos, 1_000_000)),
            _ => {
                let seconds = nanos / 1_000_000_000;
                let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
                if hours > 0 {
                    write!(f, "{hours}h")?;
                }
                if hours > 0 || minutes > 0 {
                    write!(f, "{minutes}m")?;
                }
                write!(f, "{}s", fraction(nanos % 60_000_000_000, 1_000_000_000))
            }
        }
    }
}

/// Bytes with a decimal unit and two digits: `4.10kB`.
pub fn bytes(size: i64) -> String {
    let (value, unit) = scaled(size);
    if unit == "B" { format!("{size}B") } else { format!("{value:.2}{unit}") }
}

/// Bytes with a decimal unit and the digits that are needed: `512MB`.
pub fn short_bytes(size: i64) -> String {
    let (value, unit) = scaled(size);
    format!("{value}{unit}")
}

fn scaled(size: i64) -> (f64, &'static str) {
    let mut value = size as f64;
    for unit in ["B", "kB", "MB", "GB", "TB"] {
        if value.abs() < 1000.0 {
            return (value, unit);
        }
        value /= 1000.0;
    }
    (value, "PB")
}

/// The system's words for an error, without its number.
pub fn io_text(error: &io::Error) -> String {
    let text = error.to_string();
    let Some((text, _)) = text.split_once(" (os error") else { return text };
    let mut chars = text.chars();
    chars.next().map(|first| first.to_lowercase().chain(chars).collect()).unwrap_or_default()
}

/// A text in double quotes, as Go's `%q` writes it.
pub fn quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() && u32::from(c) < 0x80 => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A time of the wire.
pub fn timestamp(seconds: i64, nanos: i32) -> Timestamp {
    Timestamp { seconds, nanos: u32::try_from(nanos).unwrap_or_default() }
}

/// RFC 3339 in UTC.
pub fn timestamp_text(time: Timestamp) -> String {
    match serde_json::to_value(time) {
        Ok(serde_json::Value::String(text)) => text,
        _ => String::new(),
    }
}

/// Reads a boolean in the spellings that Go knows.
pub(crate) fn parse_bool(text: &str) -> Result<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(Error::option(format!("strconv.ParseBool: parsing {}: invalid syntax", quote(text)))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_written() {
        for (text, want) in [
            ("48h", "48h0m0s"),
            ("1h30m", "1h30m0s"),
            ("1.5s", "1.5s"),
            ("90m", "1h30m0s"),
            ("-2ms", "-2ms"),
            ("1500us", "1.5ms"),
            ("0", "0s"),
            ("1d", r#"time: unknown unit "d" in duration "1d""#),
            ("5", r#"time: missing unit in duration "5""#),
            ("x", r#"time: invalid duration "x""#),
            ("", r#"time: invalid duration """#),
            ("9999999999h", r#"time: invalid duration "9999999999h""#),
        ] {
            let got = Duration::parse(text).map_or_else(|error| error, |duration| duration.to_string());
            assert_eq!(got, want, "{text}");
        }
    }

    #[test]
    fn sizes() {
        assert_eq!((bytes(0), bytes(4096)), ("0B".to_owned(), "4.10kB".to_owned()));
        assert_eq!(
            (short_bytes(512_000_000), short_bytes(51_500_000_000)),
            ("512MB".into(), "51.5GB".into())
        );
    }

    #[test]
    fn system_errors_in_small_letters() {
        let error = io::Error::from_raw_os_error(2);
        assert_eq!(io_text(&error), "no such file or directory");
        assert_eq!(io_text(&io::Error::other("As it is")), "As it is");
    }
}
