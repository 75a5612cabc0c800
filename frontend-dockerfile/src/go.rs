//! Values in the spellings that the reference's runtime accepts and prints.

/// Reads a boolean: `1 t T true TRUE True` and their opposites.
pub(crate) fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Reads a duration such as `1h2m3.5s`, in nanoseconds.
pub(crate) fn parse_duration(text: &str) -> Result<i64, String> {
    let invalid = || format!("time: invalid duration {}", crate::text::quote(text));
    let (negative, mut rest) = match text.strip_prefix(['-', '+']) {
        Some(rest) => (text.starts_with('-'), rest),
        None => (false, text),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(rest.len());
        let (number, after) = rest.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
            return Err(invalid());
        }
        let unit_end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, next) = after.split_at(unit_end);
        let scale: i128 = match unit {
            "ns" => 1,
            "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            "" => return Err(format!("time: missing unit in duration {}", crate::text::quote(text))),
            unit => {
                let unit = crate::text::quote(unit);
                return Err(format!("time: unknown unit {unit} in duration {}", crate::text::quote(text)));
            }
        };
        let whole: i128 =
            if whole.is_empty() { 0 } else { whole.parse::<i64>().map_err(|_| invalid())?.into() };
        total += whole * scale;
        let mut part = scale;
        for digit in fraction.bytes().take(18) {
            part /= 10;
            total += i128::from(digit - b'0') * part;
        }
        if total > i128::from(i64::MAX) {
            return Err(invalid());
        }
        rest = next;
    }
    let total = i64::try_from(total).map_err(|_| invalid())?;
    Ok(if negative { -total } else { total })
}

/// Prints nanoseconds as a duration.
pub(crate) fn format_duration(nanos: i64) -> String {
    let trimmed = |value: u64, unit: u64, digits: usize| {
        let fraction = format!("{:0digits$}", value % unit);
        let fraction = fraction.trim_end_matches('0');
        let dot = if fraction.is_empty() { "" } else { "." };
        format!("{}{dot}{fraction}", value / unit)
    };
    let sign = if nanos < 0 { "-" } else { "" };
    let value = nanos.unsigned_abs();
    match value {
        0 => "0s".to_owned(),
        1..1_000 => format!("{sign}{value}ns"),
        1_000..1_000_000 => format!("{sign}{}\u{b5}s", trimmed(value, 1_000, 3)),
        1_000_000..1_000_000_000 => format!("{sign}{}ms", trimmed(value, 1_000_000, 6)),
        _ => {
            let seconds = value / 1_000_000_000;
            let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
            let rest = trimmed(value % 60_000_000_000, 1_000_000_000, 9);
            match (hours, minutes) {
                (0, 0) => format!("{sign}{rest}s"),
                (0, _) => format!("{sign}{minutes}m{rest}s"),
                _ => format!("{sign}{hours}h{minutes}m{rest}s"),
            }
        }
    }
}

/// Reads a size such as `1.5m`; units are powers of 1024.
pub(crate) fn parse_ram(text: &str) -> Option<i64> {
    let lower = text.to_lowercase();
    let end = lower.rfind(|c: char| c.is_ascii_digit() || c == '.')? + 1;
    let (number, unit) = lower.split_at(end);
    let number = number.trim_end();
    let unit = unit.strip_prefix(' ').unwrap_or(unit);
    let scale: f64 = match unit {
        "" | "b" => 1.0,
        "k" | "kb" | "kib" => 1024.0,
        "m" | "mb" | "mib" => 1024.0 * 1024.0,
        "g" | "gb" | "gib" => 1024.0 * 1024.0 * 1024.0,
        "t" | "tb" | "tib" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        "p" | "pb" | "pib" => 1024.0 * 1024.0 * 1024.0 * 1024.0 * 1024.0,
        _ => return None,
    };
    let value: f64 = number.parse().ok()?;
    // Truncation is what the reference does.
    (value >= 0.0 && value * scale < 9.2e18).then_some((value * scale) as i64)
}

/// The error of reading a number, as clients see it.
pub(crate) fn number_error(function: &str, text: &str) -> String {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let valid = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    let reason = if valid { "value out of range" } else { "invalid syntax" };
    format!("strconv.{function}: parsing {}: {reason}", crate::text::quote(text))
}
