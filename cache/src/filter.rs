//! Filters over records, in containerd's syntax (containerd/containerd: pkg/filters).
//!
//! A filter is selectors joined by commas, all of which have to match; of several filters one has to.
//! A selector is a field, or a field with `==`, `!=` or `~=` (a regular expression found anywhere) and a value.
//! Values with commas or spaces are quoted.

use regex::Regex;

use crate::{Error, RecordType, Result, UsageRecord};

/// Text that one filter may have.
const MAX_FILTER: usize = 16 * 1024;

/// A list of filters; an empty one matches everything.
#[derive(Debug, Default)]
pub(crate) struct Filters(Vec<Vec<Selector>>);

#[derive(Debug)]
struct Selector {
    field: String,
    test: Test,
}

#[derive(Debug)]
enum Test {
    Present,
    Equal(String),
    NotEqual(String),
    Matches(Regex),
}

/// Which fields a filter sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fields {
    /// All, as for listing.
    All,
    /// Those of a removal: neither parents nor use.
    Removal,
}

impl Filters {
    pub(crate) fn parse(filters: &[String]) -> Result<Self> {
        filters.iter().map(|filter| Parser::new(filter)?.filter()).collect::<Result<_>>().map(Self)
    }

    /// The types that records must have to match, if every filter asks for one.
    pub(crate) fn types(&self) -> Option<Vec<RecordType>> {
        let of_filter = |all: &Vec<Selector>| {
            all.iter().find_map(|selector| match &selector.test {
                Test::Equal(name) if selector.field == "type" => Some(RecordType::parse(name)),
                _ => None,
            })
        };
        let types: Option<Vec<RecordType>> = self.0.iter().map(of_filter).collect();
        types.filter(|types| !types.is_empty())
    }

    pub(crate) fn matches(&self, record: &UsageRecord, fields: Fields) -> bool {
        self.0.is_empty()
            || self.0.iter().any(|all| all.iter().all(|selector| selector.matches(record, fields)))
    }
}

impl Selector {
    fn matches(&self, record: &UsageRecord, fields: Fields) -> bool {
        let value = field(record, &self.field, fields);
        match &self.test {
            Test::Present => value.is_some(),
            Test::Equal(want) => value.as_deref() == Some(want),
            Test::NotEqual(other) => value.as_deref().unwrap_or_default() != other,
            Test::Matches(regex) => regex.is_match(value.as_deref().unwrap_or_default()),
        }
    }
}

/// A field's value; flags are present without one.
fn field(record: &UsageRecord, name: &str, fields: Fields) -> Option<String> {
    let flag = |set: bool| set.then(String::new);
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    match name {
        "id" => text(record.id.as_str()),
        "parents" if fields == Fields::All => {
            text(&record.parents.iter().map(|parent| parent.as_str()).collect::<Vec<_>>().join(";"))
        }
        "description" => text(&record.description),
        "type" => text(record.record_type.as_str()),
        "inuse" => flag(fields == Fields::All && record.in_use),
        "mutable" => flag(record.mutable),
        "immutable" => flag(!record.mutable),
        "shared" => flag(record.shared),
        "private" => flag(!record.shared),
        _ => None,
    }
}

struct Parser<'a> {
    filter: &'a str,
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn new(filter: &'a str) -> Result<Self> {
        let parser = Self { filter, rest: filter };
        if filter.len() > MAX_FILTER { Err(parser.error("it is too long")) } else { Ok(parser) }
    }

    fn error(&self, reason: &str) -> Error {
        let at = self.filter.len() - self.rest.len();
        let filter: String = self.filter.chars().take(200).collect();
        Error::Filter { filter, reason: format!("{reason} at byte {at}") }
    }

    fn filter(mut self) -> Result<Vec<Selector>> {
        let mut selectors = vec![self.selector()?];
        while let Some(rest) = self.rest.strip_prefix(',') {
            self.rest = rest;
            selectors.push(self.selector()?);
        }
        if self.rest.is_empty() { Ok(selectors) } else { Err(self.error("unexpected text")) }
    }

    fn selector(&mut self) -> Result<Selector> {
        let mut field = self.field()?;
        while let Some(rest) = self.rest.strip_prefix('.') {
            self.rest = rest;
            field = format!("{field}.{}", self.field()?);
        }
        let Some(operator) = ["==", "!=", "~="].into_iter().find(|operator| self.rest.starts_with(operator))
        else {
            return Ok(Selector { field, test: Test::Present });
        };
        self.rest = self.rest.strip_prefix(operator).unwrap_or(self.rest);
        let value = self.value()?;
        let test = match operator {
            "==" => Test::Equal(value),
            "!=" => Test::NotEqual(value),
            _ => Test::Matches(Regex::new(&value).map_err(|error| self.error(&format!("{error}")))?),
        };
        Ok(Selector { field, test })
    }

    fn field(&mut self) -> Result<String> {
        if self.rest.starts_with('"') {
            return self.quoted('"');
        }
        let end = self.rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(self.rest.len());
        let (name, rest) = self.rest.split_at(end);
        if !name.starts_with(|c: char| c.is_ascii_alphabetic()) {
            return Err(self.error("expected the name of a field"));
        }
        self.rest = rest;
        Ok(name.to_owned())
    }

    fn value(&mut self) -> Result<String> {
        match self.rest.chars().next() {
            Some(quote @ ('"' | '/' | '|')) => self.quoted(quote),
            _ => {
                let end = self.rest.find(|c: char| c == ',' || c.is_whitespace()).unwrap_or(self.rest.len());
                let (value, rest) = self.rest.split_at(end);
                if value.is_empty() {
                    return Err(self.error("expected a value"));
                }
                self.rest = rest;
                Ok(value.to_owned())
            }
        }
    }

    /// Text between quotes. Between `/` or `|`, as expressions are written, a backslash stays unless it escapes the
    /// quote.
    fn quoted(&mut self, quote: char) -> Result<String> {
        let mut text = String::new();
        let mut chars = self.rest.char_indices().skip(1);
        while let Some((at, c)) = chars.next() {
            if c == quote {
                self.rest = self.rest.get(at + c.len_utf8()..).unwrap_or_default();
                return Ok(text);
            }
            if c != '\\' {
                text.push(c);
                continue;
            }
            let Some((_, escaped)) = chars.next() else { break };
            match escaped {
                c if c == quote => text.push(c),
                c if quote != '"' => text.extend(['\\', c]),
                'n' => text.push('\n'),
                't' => text.push('\t'),
                'r' => text.push('\r'),
                c => text.push(c),
            }
        }
        Err(self.error("the quote is not closed"))
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn record() -> UsageRecord {
        UsageRecord {
            id: "abc".parse().unwrap(),
            mutable: true,
            in_use: true,
            size: 1,
            parents: vec!["p1".parse().unwrap(), "p2".parse().unwrap()],
            created_at: SystemTime::UNIX_EPOCH,
            last_used_at: None,
            usage_count: 0,
            description: "mount / from exec, twice".into(),
            record_type: RecordType::CacheMount,
            shared: false,
        }
    }

    #[track_caller]
    fn check(filters: &[&str], want: bool) {
        let parsed = Filters::parse(&filters.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap();
        assert_eq!(parsed.matches(&record(), Fields::All), want, "{filters:?}");
    }

    #[test]
    fn selectors() {
        check(&[], true);
        check(&["id==abc"], true);
        check(&["id==abd"], false);
        check(&["id!=abd"], true);
        check(&["id~=^a.c$"], true);
        check(&["parents==p1;p2"], true);
        check(&["type==exec.cachemount"], true);
        check(&["type==regular", "mutable"], true);
        check(&["type==exec.cachemount,immutable"], false);
        check(&["inuse,mutable,private"], true);
        check(&["shared"], false);
        check(&["inuse==true"], false);
        check(&["inuse!=true"], true);
        check(&["nosuch"], false);
        check(&["nosuch!=x"], true);
        check(&["description==\"mount / from exec, twice\""], true);
        check(&["description~=/exec, \\w+/"], true);
        check(&["labels.\"a b\""], false);
    }

    #[test]
    fn types_are_known_beforehand_if_every_filter_has_one() {
        let types = |filters: &[&str]| {
            let filters: Vec<String> = filters.iter().map(ToString::to_string).collect();
            Filters::parse(&filters).unwrap().types()
        };
        use RecordType::{CacheMount, LocalSource};
        assert_eq!(
            types(&["mutable,type==source.local", "type==exec.cachemount"]),
            Some(vec![LocalSource, CacheMount])
        );
        assert_eq!(types(&["type==source.local", "mutable"]), None);
        assert_eq!(types(&["type!=source.local"]), None);
        assert_eq!(types(&[]), None);
    }

    #[test]
    fn a_removal_sees_less() {
        let parsed = Filters::parse(&["inuse".into(), "parents~=p1".into()]).unwrap();
        assert!(!parsed.matches(&record(), Fields::Removal));
    }

    #[test]
    fn malformed() {
        for filter in ["", ",", "id==", "id==a,", "==a", "id==a b", "id==\"a", "id~=(", "1d==a", "id=a"] {
            assert!(Filters::parse(&[filter.into()]).is_err(), "{filter}");
        }
    }
}
