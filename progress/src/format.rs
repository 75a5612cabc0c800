//! Sizes, times and control characters as they are shown.

use crate::status::Status;

/// Decimal units with two digits after the point: `183B`, `5.49kB`.
pub(crate) fn size(bytes: i64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    let mut value = bytes as f64;
    if value.abs() < 1000.0 {
        return format!("{bytes}B");
    }
    let mut unit = "";
    for name in UNITS {
        value /= 1000.0;
        unit = name;
        if value.abs() < 1000.0 {
            break;
        }
    }
    format!("{value:.2}{unit}")
}

/// Seconds since the step began, as log lines carry them.
pub(crate) fn log_seconds(seconds: f64) -> String {
    let seconds = seconds.max(0.0);
    if seconds < 10.0 {
        format!("{seconds:.3}")
    } else if seconds < 100.0 {
        format!("{seconds:.2}")
    } else {
        format!("{seconds:.1}")
    }
}

/// `1.2kB / 3.4kB`, `1.2kB`, or nothing.
pub(crate) fn amounts(status: &Status) -> String {
    if status.total != 0 {
        format!("{} / {}", size(status.current), size(status.total))
    } else if status.current != 0 {
        size(status.current)
    } else {
        String::new()
    }
}

/// Text for a terminal: what the step wrote must not move the cursor of who watches. Colours stay.
pub(crate) fn printable(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\t' => out.push_str("    "),
            '\u{1b}' if chars.peek() == Some(&'[') => {
                chars.next();
                let mut parameters = String::new();
                let end = loop {
                    match chars.next() {
                        Some(c) if c.is_ascii_digit() || c == ';' => parameters.push(c),
                        other => break other,
                    }
                };
                if end == Some('m') {
                    out.push_str(&format!("\u{1b}[{parameters}m"));
                }
            }
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (bytes, want) in [
            (0, "0B"),
            (183, "183B"),
            (999, "999B"),
            (5490, "5.49kB"),
            (1_000_000, "1.00MB"),
            (67_108_864, "67.11MB"),
        ] {
            assert_eq!(size(bytes), want);
        }
    }

    #[test]
    fn control_sequences_do_not_reach_the_terminal() {
        assert_eq!(printable("a\u{1b}[2Jb\u{1b}[31mred\u{1b}[0m\r\u{7}"), "ab\u{1b}[31mred\u{1b}[0m");
    }
}
