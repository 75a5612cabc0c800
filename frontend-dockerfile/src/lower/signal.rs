use crate::error::{Error, Result};

const NAMES: [&str; 37] = [
    "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL", "PIPE",
    "POLL", "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP", "TTIN", "TTOU",
    "URG", "USR1", "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ", "RTMIN", "RTMAX", "UNUSED",
];

/// Checks that a signal is a number other than zero or a name.
pub(super) fn check(text: &str) -> Result<()> {
    let valid = match text.parse::<i64>() {
        Ok(number) => number != 0,
        Err(_) => {
            let upper = text.to_uppercase();
            let name = upper.strip_prefix("SIG").unwrap_or(&upper);
            NAMES.contains(&name) || real_time(name)
        }
    };
    if valid { Ok(()) } else { Err(Error::new(format!("invalid signal: {text}"))) }
}

/// `RTMIN+1` to `RTMIN+15`, `RTMAX-1` to `RTMAX-14`.
fn real_time(name: &str) -> bool {
    let offset = |prefix: &str, limit: u8| {
        let number = name
            .strip_prefix(prefix)
            .filter(|text| !text.starts_with('0'))
            .and_then(|text| text.parse().ok());
        number.is_some_and(|number: u8| (1..=limit).contains(&number))
    };
    offset("RTMIN+", 15) || offset("RTMAX-", 14)
}
