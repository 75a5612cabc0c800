//! Limits of time: the daemon's, and those that a request sets below them.

use std::collections::BTreeMap;
use std::time::Duration;

use kiln_solver::TimeLimits;

use crate::error::{Error, Result};

/// Attributes of a request, with what each limits.
const ATTRS: [&str; 3] = ["kiln.step-timeout", "kiln.silence-timeout", "kiln.build-timeout"];

/// How long builds and their steps may take; none for as long as they like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BuildLimits {
    /// For one run of a step.
    pub step: Option<Duration>,
    /// For the next output of a process, or progress of its step.
    pub silence: Option<Duration>,
    /// For a build, its exports included.
    pub build: Option<Duration>,
}

impl BuildLimits {
    /// Takes limits out of a request's attributes. They count where they are tighter than these.
    ///
    /// # Errors
    /// A value that is no duration above zero.
    pub(crate) fn tightened(self, attrs: &mut BTreeMap<String, String>) -> Result<Self> {
        let [step, silence, build] = ATTRS.map(|name| {
            let Some(text) = attrs.remove(name) else { return Ok(None) };
            parse_duration(&text).map(Some).ok_or_else(|| {
                Error::request(format!(
                    "invalid value {text:?} of `{name}`: use a duration such as 90s or 1h30m"
                ))
            })
        });
        let tighter = |ours: Option<Duration>, theirs: Option<Duration>| ours.into_iter().chain(theirs).min();
        Ok(Self {
            step: tighter(self.step, step?),
            silence: tighter(self.silence, silence?),
            build: tighter(self.build, build?),
        })
    }

    /// Those that the solver watches.
    pub(crate) fn of_steps(self) -> TimeLimits {
        let mut limits = TimeLimits::default();
        limits.step = self.step;
        limits.silence = self.silence;
        limits
    }
}

/// Reads a duration above zero as Go writes them: `1h30m`, `2.5s`, `300ms`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(digits);
        let end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let unit = match unit {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        seconds += number.parse::<f64>().ok()? * unit;
        rest = after;
    }
    Duration::try_from_secs_f64(seconds).ok().filter(|duration| !duration.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read() {
        for (text, want) in [
            ("90s", Some(90_000)),
            ("1h30m", Some(5_400_000)),
            ("2.5s", Some(2500)),
            ("300ms", Some(300)),
            ("", None),
            ("0s", None),
            ("10", None),
            ("s", None),
            ("-1s", None),
            ("5 s", None),
            ("99999999999999999999999h", None),
            ("1d", None),
        ] {
            assert_eq!(parse_duration(text), want.map(Duration::from_millis), "{text}");
        }
    }

    #[test]
    fn a_request_can_only_tighten() {
        let ours = BuildLimits { step: Some(Duration::from_secs(60)), ..BuildLimits::default() };
        let with = |name: &str, value: &str| {
            let mut attrs = BTreeMap::from([(name.to_owned(), value.to_owned()), ("x".into(), "y".into())]);
            let limits = ours.tightened(&mut attrs).map_err(|error| error.to_string());
            assert_eq!(attrs.len(), 1);
            limits
        };
        assert_eq!(with("kiln.step-timeout", "2h").unwrap(), ours);
        assert_eq!(with("kiln.step-timeout", "5s").unwrap().step, Some(Duration::from_secs(5)));
        assert_eq!(with("kiln.build-timeout", "5m").unwrap().build, Some(Duration::from_secs(300)));
        let error = with("kiln.silence-timeout", "soon").unwrap_err();
        assert!(error.contains("`kiln.silence-timeout`") && error.contains("\"soon\""), "{error}");
    }
}
