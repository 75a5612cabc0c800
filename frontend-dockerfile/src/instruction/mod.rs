//! Nodes to instructions: argument counts, flags and the forms of each kind.

mod device;
mod flags;
mod forms;
mod mount;

pub(crate) use self::forms::parse_command;
pub(crate) use self::mount::{Mount, MountKind, Sharing, parse_mount};
use crate::error::{Error, Result};
use crate::lint::{Linter, Rule};
use crate::parser::{Heredoc, Node};
use crate::source::LineRange;

/// What all instructions have.
#[derive(Clone, Debug)]
pub(crate) struct Command {
    /// The word as spelt in the file.
    pub(crate) name: String,
    /// The whole instruction, continuations joined, trimmed.
    pub(crate) code: String,
    pub(crate) ranges: Vec<LineRange>,
    pub(crate) comments: Vec<String>,
    pub(crate) kind: Kind,
    pub(crate) invalid_utf8: bool,
}

#[derive(Clone, Debug)]
pub(crate) enum Kind {
    Env(Vec<KeyValue>),
    Label(Vec<KeyValue>),
    Arg(Vec<ArgPair>),
    Maintainer(String),
    Add(Box<CopyArgs>),
    Copy(Box<CopyArgs>),
    Run(Box<RunArgs>),
    Cmd(CommandLine),
    Entrypoint(CommandLine),
    Shell(Vec<String>),
    Workdir(String),
    User(String),
    Volume(Vec<String>),
    Expose(Vec<String>),
    StopSignal(String),
    Healthcheck(Health),
    Onbuild(String),
}

#[derive(Clone, Debug)]
pub(crate) struct KeyValue {
    pub(crate) key: String,
    pub(crate) value: String,
    pub(crate) legacy: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct ArgPair {
    pub(crate) key: String,
    pub(crate) value: Option<String>,
    /// Text of the comment that describes it.
    pub(crate) doc: String,
}

/// COPY and ADD.
#[derive(Clone, Debug, Default)]
pub(crate) struct CopyArgs {
    pub(crate) sources: Vec<String>,
    pub(crate) contents: Vec<Content>,
    pub(crate) dest: String,
    pub(crate) from: String,
    pub(crate) chown: String,
    pub(crate) chmod: String,
    pub(crate) link: bool,
    pub(crate) parents: bool,
    pub(crate) exclude: Vec<String>,
    pub(crate) keep_git_dir: Option<bool>,
    pub(crate) checksum: String,
    pub(crate) unpack: Option<bool>,
}

/// A file written in the Dockerfile.
#[derive(Clone, Debug)]
pub(crate) struct Content {
    pub(crate) path: String,
    pub(crate) data: String,
    pub(crate) expand: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct RunArgs {
    pub(crate) line: CommandLine,
    pub(crate) files: Vec<Heredoc>,
    pub(crate) mounts: Vec<String>,
    /// What `from` names in each mount.
    pub(crate) mount_from: Vec<String>,
    pub(crate) network: String,
    pub(crate) security: String,
    pub(crate) has_devices: bool,
}

/// A command line; in shell form it is one text that the shell gets.
#[derive(Clone, Debug)]
pub(crate) struct CommandLine {
    pub(crate) args: Vec<String>,
    pub(crate) shell_form: bool,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Health {
    pub(crate) test: Vec<String>,
    pub(crate) interval: i64,
    pub(crate) timeout: i64,
    pub(crate) start_period: i64,
    pub(crate) start_interval: i64,
    pub(crate) retries: i64,
}

/// A stage: its FROM and what follows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stage {
    /// FROM as spelt.
    pub(crate) keyword: String,
    pub(crate) base: String,
    /// Lower case; empty if it has none.
    pub(crate) name: String,
    pub(crate) platform: String,
    pub(crate) code: String,
    pub(crate) ranges: Vec<LineRange>,
    pub(crate) comments: Vec<String>,
    pub(crate) doc: String,
    pub(crate) commands: Vec<Command>,
}

/// A file as stages, with the ARGs in front of the first one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stages {
    pub(crate) global_args: Vec<Command>,
    pub(crate) stages: Vec<Stage>,
}

/// Reads all instructions.
pub(crate) fn parse_stages(nodes: &[Node], lint: &mut Linter) -> Result<Stages> {
    let mut out = Stages::default();
    for node in nodes {
        let place = |error: Error| {
            let line = node.start;
            error.map_message(|message| format!("dockerfile parse error on line {line}: {message}"))
        };
        if node.is("from") {
            out.stages.push(parse_from(node, lint).map_err(place)?);
            continue;
        }
        let command = parse_command(node, lint).map_err(place)?;
        match (out.stages.last_mut(), &command.kind) {
            (Some(stage), _) => stage.commands.push(command),
            (None, Kind::Arg(_)) => out.global_args.push(command),
            (None, _) => return Err(Error::new("no build stage in current context").at(&node.ranges())),
        }
    }
    Ok(out)
}

fn parse_from(node: &Node, lint: &mut Linter) -> Result<Stage> {
    let (args, ranges) = (node.args.list(), node.ranges());
    if let [_, _, name] = args
        && *name != name.to_lowercase()
    {
        let message = format!("Stage name '{name}' should be lowercase");
        lint.report(Rule::StageNameCasing, &node.comments, &ranges, message);
    }
    if let [_, keyword, _, ..] = args {
        let (lower, upper) = (node.keyword.to_lowercase(), node.keyword.to_uppercase());
        let matches = if node.keyword == lower {
            *keyword == keyword.to_lowercase()
        } else {
            node.keyword != upper || *keyword == keyword.to_uppercase()
        };
        if !matches {
            let message = format!("'{keyword}' and '{}' keywords' casing do not match", node.keyword);
            lint.report(Rule::FromAsCasing, &node.comments, &ranges, message);
        }
    }
    let stage = from_stage(node).map_err(|error| error.at(&ranges))?;
    if !stage.name.is_empty() {
        check_description("FROM", &[&stage.name], &node.comments, &ranges, lint);
    }
    Ok(stage)
}

fn from_stage(node: &Node) -> Result<Stage> {
    let (base, name) = match node.args.list() {
        [base] => (base, String::new()),
        [base, keyword, name] if keyword.eq_ignore_ascii_case("as") => {
            let lower = name.to_lowercase();
            let valid = lower.starts_with(|c: char| c.is_ascii_lowercase())
                && lower.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c));
            if !valid {
                return Err(Error::new(format!(
                    "invalid name for build stage: {}, name can't start with a number or contain symbols",
                    crate::text::quote(name)
                )));
            }
            (base, lower)
        }
        _ => return Err(Error::new("FROM requires either one or three arguments")),
    };
    let mut flags = flags::Flags::new(&[("platform", flags::Type::Text)]);
    flags.parse(&node.flags)?;
    Ok(Stage {
        keyword: node.keyword.clone(),
        base: base.clone(),
        platform: flags.text("platform"),
        code: node.text.trim().to_owned(),
        ranges: node.ranges(),
        comments: node.comments.clone(),
        doc: doc_comment(&node.comments, &name),
        name,
        commands: Vec::new(),
    })
}

/// The rest of the first comment that starts with `name`.
pub(crate) fn doc_comment(comments: &[String], name: &str) -> String {
    if name.is_empty() {
        return String::new();
    }
    let rest = |comment: &String| comment.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned);
    comments.iter().find_map(rest).unwrap_or_default()
}

pub(crate) fn check_description(
    keyword: &str,
    names: &[&str],
    comments: &[String],
    ranges: &[LineRange],
    lint: &mut Linter,
) {
    let (Some(last), Some(first)) = (comments.last(), names.first()) else { return };
    if names.contains(&last.split(' ').next().unwrap_or_default()) {
        return;
    }
    let example = if names.len() > 1 { "<arg_key>" } else { first };
    let message = format!("Comment for {keyword} should follow the format: `# {example} <description>`");
    lint.report(Rule::InvalidDefinitionDescription, comments, ranges, message);
}
