//! Filters over records of builds.
//!
//! A filter is conditions joined by commas, all of which have to match; of several filters one has to. Texts (`ref`,
//! `status`, `repository`) are compared with `==`, `!=` and `~=`, a regular expression found anywhere; times
//! (`startedAt`, `completedAt`) and `duration` with `==`, `<`, `<=`, `>` and `>=`. A time is RFC 3339, or how long ago.

use std::time::{Duration, SystemTime};

use kiln_api::control::BuildHistoryRecord;
use regex::Regex;

/// Filters of one request, and the length of each.
const MAX_FILTERS: usize = 100;
const MAX_FILTER: usize = 16 * 1024;
const OPERATORS: [&str; 7] = ["==", "!=", "~=", "<=", ">=", "<", ">"];

/// An empty list matches everything.
#[derive(Debug)]
pub(super) struct Filters(Vec<Vec<Condition>>);

#[derive(Debug)]
enum Condition {
    Text { field: TextField, test: TextTest },
    Time { field: TimeField, order: Order, than: SystemTime },
    Duration { order: Order, than: Duration },
}

#[derive(Clone, Copy, Debug)]
enum TextField {
    Ref,
    Status,
    Repository,
}

#[derive(Debug)]
enum TextTest {
    Equal(String),
    NotEqual(String),
    Matches(Regex),
}

#[derive(Clone, Copy, Debug)]
enum TimeField {
    Started,
    Completed,
}

#[derive(Clone, Copy, Debug)]
enum Order {
    Equal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Filters {
    /// Reads filters; an age in them is one before `now`.
    pub(super) fn parse(filters: &[String], now: SystemTime) -> Result<Self, String> {
        if filters.len() > MAX_FILTERS {
            return Err(format!("{} filters: use at most {MAX_FILTERS}", filters.len()));
        }
        let parsed = filters.iter().map(|filter| {
            let shown: String = filter.chars().take(200).collect();
            if filter.len() > MAX_FILTER {
                return Err(format!("invalid filter `{shown}`: it is longer than {MAX_FILTER} bytes"));
            }
            let conditions = fields(filter).into_iter().map(|field| condition(&field, now));
            conditions
                .collect::<Result<Vec<_>, _>>()
                .map_err(|why| format!("invalid filter `{shown}`: {why}"))
        });
        parsed.collect::<Result<_, _>>().map(Self)
    }

    pub(super) fn matches(&self, record: &BuildHistoryRecord) -> bool {
        self.0.is_empty() || self.0.iter().any(|all| all.iter().all(|one| one.matches(record)))
    }
}

impl Condition {
    fn matches(&self, record: &BuildHistoryRecord) -> bool {
        match self {
            Self::Text { field, test } => {
                let value = match field {
                    TextField::Ref => record.r#ref.clone(),
                    TextField::Status => status(record).to_owned(),
                    TextField::Repository => repository(record).unwrap_or_default().to_owned(),
                };
                match test {
                    TextTest::Equal(wanted) => value == *wanted,
                    TextTest::NotEqual(other) => value != *other,
                    TextTest::Matches(regex) => regex.is_match(&value),
                }
            }
            Self::Time { field, order, than } => {
                let value = match field {
                    TimeField::Started => time(record.created_at.as_ref()),
                    TimeField::Completed => time(record.completed_at.as_ref()),
                };
                value.is_some_and(|value| order.holds(&value, than))
            }
            Self::Duration { order, than } => {
                let ended = time(record.completed_at.as_ref()).unwrap_or_else(SystemTime::now);
                let took =
                    time(record.created_at.as_ref()).and_then(|began| ended.duration_since(began).ok());
                took.is_some_and(|took| order.holds(&took, than))
            }
        }
    }
}

impl Order {
    fn holds<T: Ord>(self, value: &T, than: &T) -> bool {
        match self {
            Self::Equal => value == than,
            Self::Less => value < than,
            Self::LessOrEqual => value <= than,
            Self::Greater => value > than,
            Self::GreaterOrEqual => value >= than,
        }
    }
}

/// How a build went, in the words of clients.
pub(super) fn status(record: &BuildHistoryRecord) -> &'static str {
    match &record.error {
        _ if record.completed_at.is_none() => "running",
        None => "completed",
        Some(error) if error.message.contains("context canceled") => "canceled",
        Some(_) => "error",
    }
}

/// Where the sources came from: what the client says, else the remote that was the context.
fn repository(record: &BuildHistoryRecord) -> Option<&str> {
    if let Some(said) = record.frontend_attrs.get("vcs:source") {
        return Some(said);
    }
    let context = record.frontend_attrs.get("context")?.split('#').next()?;
    let web = context.starts_with("http://") || context.starts_with("https://");
    let git = ["git://", "git@", "ssh://"].iter().any(|scheme| context.starts_with(scheme));
    (git || (web && context.ends_with(".git"))).then_some(context)
}

fn time(time: Option<&prost_types::Timestamp>) -> Option<SystemTime> {
    SystemTime::try_from(*time?).ok()
}

fn condition(field: &str, now: SystemTime) -> Result<Condition, String> {
    let found = OPERATORS.iter().filter_map(|operator| Some((field.find(operator)?, *operator)));
    // The first one counts; of those at one place, the longest.
    let first = found.min_by_key(|(at, operator)| (*at, std::cmp::Reverse(operator.len())));
    let (at, operator) = first.ok_or_else(|| format!("`{field}` has no operator"))?;
    let (name, value) = (field[..at].trim(), &field[at + operator.len()..]);
    let text = |field| {
        let test = match operator {
            "==" => TextTest::Equal(value.to_owned()),
            "!=" => TextTest::NotEqual(value.to_owned()),
            "~=" => TextTest::Matches(Regex::new(value).map_err(|error| error.to_string())?),
            other => return Err(format!("`{name}` cannot be compared with `{other}`")),
        };
        Ok(Condition::Text { field, test })
    };
    let order = || match operator {
        "==" => Ok(Order::Equal),
        "<" => Ok(Order::Less),
        "<=" => Ok(Order::LessOrEqual),
        ">" => Ok(Order::Greater),
        ">=" => Ok(Order::GreaterOrEqual),
        other => Err(format!("`{name}` cannot be compared with `{other}`")),
    };
    let at = |field| Ok(Condition::Time { field, order: order()?, than: point(value, now)? });
    match name {
        "ref" => text(TextField::Ref),
        "status" => text(TextField::Status),
        "repository" => text(TextField::Repository),
        "startedAt" => at(TimeField::Started),
        "completedAt" => at(TimeField::Completed),
        "duration" => {
            let than = kiln_engine::parse_duration(value).ok_or_else(|| no_duration(value))?;
            Ok(Condition::Duration { order: order()?, than })
        }
        other => Err(format!(
            "unknown field `{other}`: use ref, status, repository, startedAt, completedAt or duration"
        )),
    }
}

fn no_duration(value: &str) -> String {
    format!("`{value}` is no duration such as 90s or 1h30m")
}

/// A point in time, or how long ago.
fn point(value: &str, now: SystemTime) -> Result<SystemTime, String> {
    if let Ok(time) = value.parse::<prost_types::Timestamp>() {
        return SystemTime::try_from(time).map_err(|_| format!("the time `{value}` is out of range"));
    }
    let ago = kiln_engine::parse_duration(value)
        .ok_or_else(|| format!("{}, and no time such as 2006-01-02T15:04:05Z", no_duration(value)))?;
    now.checked_sub(ago).ok_or_else(|| format!("`{value}` is too long ago"))
}

/// Splits at commas that are not between quotes; quotes go, doubled ones are one.
fn fields(filter: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut quoted = false;
    let mut characters = filter.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '"' if quoted && characters.peek() == Some(&'"') => {
                characters.next();
                fields.last_mut().into_iter().for_each(|field| field.push('"'));
            }
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            other => fields.last_mut().into_iter().for_each(|field| field.push(other)),
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use kiln_api::rpc::Status;

    use super::*;

    fn record(began: u64, took: Option<u64>, error: Option<&str>) -> BuildHistoryRecord {
        let at = |seconds: u64| Some(prost_types::Timestamp { seconds: seconds.cast_signed(), nanos: 0 });
        BuildHistoryRecord {
            r#ref: "abc".into(),
            created_at: at(began),
            completed_at: took.and_then(|took| at(began + took)),
            error: error.map(|message| Status { message: message.into(), ..Status::default() }),
            frontend_attrs: BTreeMap::from([(
                "context".into(),
                "https://example.org/it.git#main:sub".into(),
            )]),
            ..BuildHistoryRecord::default()
        }
    }

    #[test]
    fn filters_match_as_clients_expect() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let done = record(900, Some(50), None);
        let failed = record(100, Some(5), Some("failed: exit code 1"));
        let cancelled = record(100, Some(5), Some("context canceled"));
        let running = record(990, None, None);
        for (filter, want) in [
            ("ref==abc", [true; 4]),
            ("ref~=^a.c$,ref!=x", [true; 4]),
            ("status==completed", [true, false, false, false]),
            ("status==error", [false, true, false, false]),
            ("status==canceled", [false, false, true, false]),
            ("status==running", [false, false, false, true]),
            ("status!=running,startedAt>=1970-01-01T00:15:00Z", [true, false, false, false]),
            ("startedAt>2m", [true, false, false, true]),
            ("completedAt<=1970-01-01T00:01:45Z", [false, true, true, false]),
            ("completedAt>1970-01-01T00:15:00Z", [true, false, false, false]),
            ("duration>=50s", [true, false, false, true]),
            ("duration<50s", [false, true, true, false]),
            ("duration==5s", [false, true, true, false]),
            ("repository==https://example.org/it.git", [true; 4]),
            ("\"ref==a,b\"", [false; 4]),
        ] {
            let filters = Filters::parse(&[filter.to_owned()], now).unwrap();
            let got = [&done, &failed, &cancelled, &running].map(|record| filters.matches(record));
            assert_eq!(got, want, "{filter}");
        }
        let either = ["ref==x".to_owned(), "status==error".to_owned()];
        assert!(Filters::parse(&either, now).unwrap().matches(&failed));
        assert!(!Filters::parse(&either, now).unwrap().matches(&done));
        assert!(Filters::parse(&[], now).unwrap().matches(&done));
    }

    #[test]
    fn what_is_no_filter_says_why() {
        for (filter, why) in [
            ("", "has no operator"),
            ("ref", "`ref` has no operator"),
            ("colour==red", "unknown field `colour`"),
            ("ref>a", "`ref` cannot be compared with `>`"),
            ("duration~=5s", "`duration` cannot be compared with `~=`"),
            ("duration>soon", "`soon` is no duration"),
            ("startedAt>soon", "no time such as"),
            ("ref~=(", "unclosed group"),
        ] {
            let error = Filters::parse(&[filter.to_owned()], SystemTime::now()).unwrap_err();
            assert!(error.contains(why), "{filter}: {error}");
        }
        let many = vec!["ref==a".to_owned(); MAX_FILTERS + 1];
        assert!(Filters::parse(&many, SystemTime::now()).is_err());
        assert!(Filters::parse(&["x".repeat(MAX_FILTER + 1)], SystemTime::now()).is_err());
    }
}
