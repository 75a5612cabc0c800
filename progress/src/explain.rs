//! Why steps ran, in sentences.

use std::collections::HashMap;
use std::io::{self, Write};

use crate::reason::{Difference, Reason};
use crate::status::{SolveStatus, Timestamp, Vertex};

/// Characters of a value or name that are shown.
const MAX_VALUE: usize = 72;
/// Characters shown before the first one that differs.
const BEFORE: usize = 24;
/// Steps that are remembered; of further ones nothing is said.
const MAX_STEPS: usize = 100_000;

/// Collects the reasons of a build's steps.
#[derive(Clone, Debug, Default)]
pub struct Explanation {
    /// The last state of each step, in the order in which they were first heard of.
    steps: Vec<Vertex>,
    places: HashMap<String, usize>,
}

impl Explanation {
    /// Takes note of one update.
    pub fn take(&mut self, status: &SolveStatus) {
        for vertex in &status.vertexes {
            let known = self.places.get(&vertex.digest).copied();
            if let Some(step) = known.and_then(|place| self.steps.get_mut(place)) {
                // What a later event leaves out has been said before.
                let reason = vertex.reason.clone().or_else(|| step.reason.take());
                *step = Vertex { reason, ..vertex.clone() };
            } else if self.steps.len() < MAX_STEPS {
                self.places.insert(vertex.digest.clone(), self.steps.len());
                self.steps.push(vertex.clone());
            }
        }
    }

    /// Writes why each step ran; with `all`, also how the others were found.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn write(&self, out: &mut dyn Write, all: bool, now: Timestamp) -> io::Result<()> {
        let mut text = String::new();
        let (mut ran, mut found, mut unneeded) = (0, 0, 0);
        let mut steps: Vec<&Vertex> = self.steps.iter().collect();
        steps.sort_by_key(|step| step.started);
        for step in steps {
            let Some(reason) = &step.reason else {
                // Steps of the client and of frontends have no result that could be found.
                unneeded += usize::from(step.cached);
                continue;
            };
            let runs = matches!(reason.outcome.as_str(), "ran" | "forced");
            if reason.miss == "session" {
                if all {
                    text.push_str(&format!("  {}\n    {}\n", one_line(&step.name), sentence(reason, now)));
                }
                continue;
            }
            *(if runs { &mut ran } else { &mut found }) += 1;
            if runs || all {
                text.push_str(&format!("  {}\n    {}\n", one_line(&step.name), sentence(reason, now)));
            }
        }
        let steps = |count: usize| if count == 1 { "1 step".to_owned() } else { format!("{count} steps") };
        let title = match (ran, all) {
            (0, false) => "Every step was cached".to_owned(),
            (_, true) => "What became of each step".to_owned(),
            (_, false) => "Why steps ran".to_owned(),
        };
        let colon = if text.is_empty() { "." } else { ":" };
        let summary = format!("{} ran, {} cached, {} below them not needed", steps(ran), found, unneeded);
        writeln!(out, "\n{title}{colon}\n{text}{summary}.")?;
        out.flush()
    }
}

fn sentence(reason: &Reason, now: Timestamp) -> String {
    let made = reason.created.map(|created| format!(", made {}", ago(created, now))).unwrap_or_default();
    match (reason.outcome.as_str(), reason.miss.as_str()) {
        ("hit", _) => {
            let by = if reason.by_content { "by the content of its inputs" } else { "by its definition" };
            let from = match reason.origin.as_str() {
                "" => String::new(),
                cache => format!(" in the imported cache {}", quoted(cache)),
            };
            format!("cached: found {by}{from}: record {}{made}", one_line(&reason.record))
        }
        ("shared", _) => "shared with another build that is still active".to_owned(),
        ("forced", _) => "ran because it was asked to ignore the cache".to_owned(),
        (_, "session") => "is looked at in every build: it is known within one session only".to_owned(),
        (_, "same") => {
            let when = reason.gone_at.map(|at| format!(" {}", ago(at, now))).unwrap_or_default();
            match reason.gone.as_str() {
                "pruned" => format!("ran because the result of this very step{made}, was pruned{when}"),
                "lost" => format!("ran because the result of this very step{made}, was lost{when}"),
                _ => format!("ran although this very step is recorded{made}: its result could not be used"),
            }
        }
        (_, "differs") => {
            let mut text = String::new();
            match reason.differences.first() {
                Some(first) => text.push_str(&difference(first)),
                None => text.push_str("it differs"),
            }
            let more = reason.differences.len().saturating_sub(1) + reason.further;
            if let (1, Some(second)) = (more, reason.differences.get(1)) {
                text.push_str(&format!("; also, {}", difference(second)));
            } else if more > 0 {
                text.push_str(&format!("; and {more} more differences"));
            }
            format!("{text}\n    (compared with {}{made})", quoted(&reason.nearest))
        }
        (_, "not imported") => {
            "is in none of the imported caches, which do not say what their results were made of, and nothing like it was recorded here yet"
                .to_owned()
        }
        (_, "new") => "nothing like it was recorded yet".to_owned(),
        _ => "ran".to_owned(),
    }
}

fn difference(difference: &Difference) -> String {
    let name = one_line(&difference.name);
    match difference.kind.as_str() {
        "op" if difference.hidden => match (&difference.was, &difference.now) {
            (None, Some(_)) => format!("{name} is new (not shown)"),
            (Some(_), None) => format!("{name} is gone (not shown)"),
            _ => format!("{name} is not what it was (not shown)"),
        },
        "op" => match (&difference.was, &difference.now) {
            (Some(was), Some(now)) => {
                let (was, now) = both(was, now);
                format!("{name} was {was}, is {now}")
            }
            (None, Some(now)) if now.is_empty() => format!("{name} is new"),
            (None, Some(now)) => format!("{name} is new: {}", quoted(now)),
            (Some(was), None) if was.is_empty() => format!("{name} is gone"),
            (Some(was), None) => format!("{name} is gone; it was {}", quoted(was)),
            (None, None) => format!("the {name} differs"),
        },
        "input" => {
            let input = format!("input {}", difference.input);
            match (&difference.was, &difference.now) {
                (_, Some(now)) if difference.anew => format!("{input}, {}, was made anew", quoted(now)),
                (None, Some(now)) => format!("{input}, {}, is new", quoted(now)),
                (Some(was), None) => format!("{input} is gone; it was {}", quoted(was)),
                (Some(was), Some(now)) if was != now => match is_long(was) || is_long(now) {
                    true => format!("{input}, {}, is another", quoted(now)),
                    false => format!("{input} was {}, is {}", quoted(was), quoted(now)),
                },
                _ => format!("{input}, {}, has another result", quoted(&difference.name)),
            }
        }
        _ => content(difference),
    }
}

fn content(difference: &Difference) -> String {
    let (name, path) = (quoted(&difference.name), one_line(&difference.path));
    let further = match difference.further {
        0 => String::new(),
        1 => " (and in 1 more place)".to_owned(),
        more => format!(" (and in {more} more places)"),
    };
    let values = match (&difference.was, &difference.now) {
        (Some(was), Some(now)) => format!("was {}, is {}", one_line(was), one_line(now)),
        _ => "differs".to_owned(),
    };
    let text = match (path.as_str(), difference.what.as_str()) {
        ("", "") => format!("the content of input {}, {name}, differs", difference.input),
        ("", what) => format!("{what} in input {}, {name}, differs", difference.input),
        (path, "added") => format!("{path} in {name} is new"),
        (path, "removed") => format!("{path} in {name} is gone"),
        (path, what) if what.starts_with("something below") => {
            format!("something below {path} in {name} differs")
        }
        (path, what) => match what.strip_prefix("content and ") {
            Some(what) => format!("content of {path} in {name} differs, and its {what} {values}"),
            None => format!("{what} of {path} in {name} {values}"),
        },
    };
    text + &further
}

/// Two values side by side; what long ones have in common at their start is left out.
fn both(was: &str, now: &str) -> (String, String) {
    let same = was.chars().zip(now.chars()).take_while(|(a, b)| a == b).count();
    if was == now {
        return (quoted(was), "another that begins alike".to_owned());
    }
    if !(is_long(was) || is_long(now)) || same <= BEFORE {
        return (quoted(was), quoted(now));
    }
    let cut = |text: &str| format!("…{}", text.chars().skip(same - BEFORE).collect::<String>());
    (quoted(&cut(was)), quoted(&cut(now)))
}

fn quoted(text: &str) -> String {
    let line = one_line(text);
    if !is_long(&line) {
        return format!("`{line}`");
    }
    format!("`{}…`", line.chars().take(MAX_VALUE).collect::<String>())
}

fn is_long(text: &str) -> bool {
    text.chars().count() > MAX_VALUE
}

/// Text for a terminal, in one line: what comes from a build must not move the cursor of who reads.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_whitespace() { ' ' } else { c }).filter(|c| !c.is_control()).collect()
}

fn ago(then: Timestamp, now: Timestamp) -> String {
    let seconds = now.since(then).max(0.0) as u64;
    let (count, unit) = match seconds {
        0..=1 => return "just now".to_owned(),
        2..=119 => (seconds, "second"),
        120..=7199 => (seconds / 60, "minute"),
        7200..=172_799 => (seconds / 3600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    format!("{count} {unit}s ago")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp { seconds, nanos: 0 }
    }

    fn op(name: &str, was: Option<&str>, now: Option<&str>) -> Difference {
        let text = |value: Option<&str>| value.map(str::to_owned);
        Difference {
            kind: "op".into(),
            name: name.into(),
            was: text(was),
            now: text(now),
            ..Difference::default()
        }
    }

    fn file(path: &str, what: &str, values: Option<(&str, &str)>) -> Difference {
        Difference {
            kind: "content".into(),
            name: "the context".into(),
            path: path.into(),
            what: what.into(),
            was: values.map(|(was, _)| was.to_owned()),
            now: values.map(|(_, now)| now.to_owned()),
            input: 1,
            ..Difference::default()
        }
    }

    fn input(was: Option<&str>, now: Option<&str>, anew: bool) -> Difference {
        let name = now.or(was).unwrap_or_default();
        Difference { kind: "input".into(), anew, ..op(name, was, now) }
    }

    #[test]
    fn differences_are_sentences() {
        let long = |end: &str| format!("{}{end}", "x".repeat(200));
        for (found, want) in [
            (op("argument 2", Some("echo a"), Some("echo b")), "argument 2 was `echo a`, is `echo b`"),
            (op("env A", None, Some("1")), "env A is new: `1`"),
            (op("env A", Some("1"), None), "env A is gone; it was `1`"),
            (op("mount /x", None, Some("")), "mount /x is new"),
            (
                Difference { hidden: true, ..op("env T", Some(""), Some("")) },
                "env T is not what it was (not shown)",
            ),
            (
                op("argument 2", Some(&long("a")), Some(&long("b"))),
                "argument 2 was `…xxxxxxxxxxxxxxxxxxxxxxxxa`, is `…xxxxxxxxxxxxxxxxxxxxxxxxb`",
            ),
            (op("operation", None, None), "the operation differs"),
            (op("a\u{1b}[2J", Some("x\ny"), Some("z")), "a[2J was `x y`, is `z`"),
            (input(Some("RUN a"), Some("RUN a"), false), "input 0, `RUN a`, has another result"),
            (input(Some("RUN a"), Some("RUN b"), false), "input 0 was `RUN a`, is `RUN b`"),
            (
                input(Some(&long("a")), Some(&long("b")), false),
                &format!("input 0, `{}…`, is another", &long("")[..MAX_VALUE]),
            ),
            (input(Some("RUN a"), Some("RUN a"), true), "input 0, `RUN a`, was made anew"),
            (input(None, Some("RUN a"), false), "input 0, `RUN a`, is new"),
            (input(Some("RUN a"), None, false), "input 0 is gone; it was `RUN a`"),
            (file("/f", "content", None), "content of /f in `the context` differs"),
            (file("/f", "mode", Some(("0644", "0755"))), "mode of /f in `the context` was 0644, is 0755"),
            (
                file("/f", "content and mode", Some(("0644", "0755"))),
                "content of /f in `the context` differs, and its mode was 0644, is 0755",
            ),
            (file("/f", "added", None), "/f in `the context` is new"),
            (file("/d", "something below it", None), "something below /d in `the context` differs"),
            (file("", "", None), "the content of input 1, `the context`, differs"),
            (
                Difference { further: 2, ..file("/f", "removed", None) },
                "/f in `the context` is gone (and in 2 more places)",
            ),
        ] {
            assert_eq!(difference(&found), want);
        }
    }

    fn check(steps: &[(&str, bool, Option<Reason>)], all: bool, want: &str) {
        let mut explanation = Explanation::default();
        let vertex = |(name, cached, reason): &(&str, bool, Option<Reason>)| Vertex {
            digest: (*name).to_owned(),
            name: (*name).to_owned(),
            cached: *cached,
            reason: reason.clone(),
            ..Vertex::default()
        };
        let vertexes: Vec<_> = steps.iter().map(vertex).collect();
        explanation.take(&SolveStatus { vertexes: vertexes.clone(), ..SolveStatus::default() });
        // A later event without a reason does not take it away.
        let bare = vertexes.into_iter().map(|vertex| Vertex { reason: None, ..vertex }).collect();
        explanation.take(&SolveStatus { vertexes: bare, ..SolveStatus::default() });
        let mut out = Vec::new();
        explanation.write(&mut out, all, at(1000)).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), want);
    }

    #[test]
    fn every_step_has_its_say() {
        let ran = |miss: &str| Reason { outcome: "ran".into(), miss: miss.into(), ..Reason::default() };
        let differs = Reason {
            nearest: "RUN a".into(),
            created: Some(at(700)),
            differences: vec![op("user", Some(""), Some("me")), op("network", Some("sandbox"), Some("none"))],
            ..ran("differs")
        };
        let pruned =
            Reason { created: Some(at(0)), gone: "pruned".into(), gone_at: Some(at(995)), ..ran("same") };
        let hit = Reason {
            outcome: "hit".into(),
            record: "r1".into(),
            created: Some(at(1000)),
            by_content: true,
            ..Reason::default()
        };
        let steps = [
            ("context", false, Some(ran("session"))),
            ("below", true, None),
            ("COPY", true, Some(hit)),
            ("RUN b", false, Some(differs)),
            ("RUN c", false, Some(pruned)),
            ("RUN d", false, Some(ran("new"))),
            ("RUN e", false, Some(Reason { outcome: "forced".into(), ..Reason::default() })),
        ];
        let runs = "  RUN b\n    user was ``, is `me`; also, network was `sandbox`, is `none`\n    (compared with `RUN a`, made 5 minutes ago)\n  \
             RUN c\n    ran because the result of this very step, made 16 minutes ago, was pruned 5 seconds ago\n  \
             RUN d\n    nothing like it was recorded yet\n  \
             RUN e\n    ran because it was asked to ignore the cache\n\
             4 steps ran, 1 cached, 1 below them not needed.\n";
        check(&steps, false, &format!("\nWhy steps ran:\n{runs}"));
        let found = "  context\n    is looked at in every build: it is known within one session only\n  \
             COPY\n    cached: found by the content of its inputs: record r1, made just now\n";
        check(&steps, true, &format!("\nWhat became of each step:\n{found}{runs}"));
        check(&[], false, "\nEvery step was cached.\n0 steps ran, 0 cached, 0 below them not needed.\n");
    }
}
