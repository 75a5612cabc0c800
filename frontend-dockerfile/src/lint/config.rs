use crate::go::parse_bool;
use crate::lint::Rule;
use crate::text::quote;

/// Which rules run, from the `check` directive or the build argument of that meaning.
#[derive(Clone, Debug, Default)]
pub(crate) struct LintConfig {
    skip_all: bool,
    skip: Vec<String>,
    experimental_all: bool,
    experimental: Vec<String>,
    /// Anything found fails the build.
    pub(crate) fails: bool,
}

impl LintConfig {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut config = Self::default();
        if text.trim().is_empty() {
            return Ok(config);
        }
        let list = |value: &str| value.split(',').map(|name| name.trim().to_owned()).collect::<Vec<_>>();
        for part in text.trim().splitn(3, ';') {
            let (key, value) =
                part.split_once('=').ok_or_else(|| format!("invalid check option {}", quote(part)))?;
            let value = value.trim();
            match key.trim() {
                "skip" if value == "all" => config.skip_all = true,
                "skip" => config.skip = list(value),
                "experimental" if value == "all" => config.experimental_all = true,
                "experimental" => config.experimental = list(value),
                "error" => {
                    config.fails = parse_bool(value).ok_or_else(|| {
                        let cause = format!("strconv.ParseBool: parsing {}: invalid syntax", quote(value));
                        format!("failed to parse check option {}: {cause}", quote(part))
                    })?;
                }
                key => return Err(format!("invalid check option {}", quote(key))),
            }
        }
        Ok(config)
    }

    /// Whether `rule` runs for an instruction with these comments above it.
    pub(super) fn applies(&self, rule: Rule, comments: &[String]) -> bool {
        let local = comments
            .iter()
            .find_map(|comment| check_value(comment))
            .and_then(|value| Self::parse(value).ok());
        let all = [Some(self), local.as_ref()];
        let any = |test: &dyn Fn(&Self) -> bool| all.iter().flatten().any(|config| test(config));
        let named = |list: &[String]| list.iter().any(|name| name == rule.name());
        if rule.is_experimental() {
            any(&|config| config.experimental_all || named(&config.experimental))
        } else {
            !any(&|config| config.skip_all || named(&config.skip))
        }
    }
}

/// The value of a comment `check=…`, up to its first space.
fn check_value(comment: &str) -> Option<&str> {
    let (key, value) = comment.split_once('=')?;
    key.trim().eq_ignore_ascii_case("check").then(|| value.trim().split(' ').next().unwrap_or_default())
}
