use crate::error::{Error, Result};
use crate::go::{number_error, parse_duration};
use crate::instruction::flags::{Flags, Type};
use crate::instruction::{
    ArgPair, Command, CommandLine, Content, CopyArgs, Health, KeyValue, Kind, RunArgs, check_description,
    device, doc_comment, mount,
};
use crate::lint::{Linter, Rule};
use crate::parser::{Args, Node, Pair, heredoc_word, strip_tabs};
use crate::text::{quote, suggest};

const KEYWORDS: [&str; 18] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

/// Reads any instruction but FROM.
pub(crate) fn parse_command(node: &Node, lint: &mut Linter) -> Result<Command> {
    let ranges = node.ranges();
    if node.is("maintainer") {
        let message = "Maintainer instruction is deprecated in favor of using label".to_owned();
        lint.report(Rule::MaintainerDeprecated, &node.comments, &ranges, message);
    }
    let kind = kind(node).map_err(|error| error.at(&ranges))?;
    if let Kind::Arg(pairs) = &kind {
        let names: Vec<&str> = pairs.iter().map(|pair| pair.key.as_str()).collect();
        check_description("ARG", &names, &node.comments, &ranges, lint);
    }
    Ok(Command {
        name: node.keyword.clone(),
        code: node.text.trim().to_owned(),
        ranges,
        comments: node.comments.clone(),
        kind,
        invalid_utf8: node.invalid_utf8,
    })
}

fn kind(node: &Node) -> Result<Kind> {
    let no_flags = || Flags::new(&[]).parse(&node.flags);
    Ok(match node.keyword.to_lowercase().as_str() {
        "env" => {
            no_flags()?;
            Kind::Env(key_values(&node.args, "ENV")?)
        }
        "label" => {
            no_flags()?;
            Kind::Label(key_values(&node.args, "LABEL")?)
        }
        "arg" => Kind::Arg(arg(node)?),
        "maintainer" => {
            let text = only(node, "MAINTAINER")?;
            no_flags()?;
            Kind::Maintainer(text)
        }
        "add" => Kind::Add(Box::new(copy(node, "ADD")?)),
        "copy" => Kind::Copy(Box::new(copy(node, "COPY")?)),
        "run" => Kind::Run(Box::new(run(node)?)),
        "cmd" => {
            no_flags()?;
            Kind::Cmd(command_line(&node.args))
        }
        "entrypoint" => {
            no_flags()?;
            Kind::Entrypoint(command_line(&node.args))
        }
        "shell" => {
            no_flags()?;
            Kind::Shell(shell(node)?)
        }
        "workdir" => {
            let path = only(node, "WORKDIR")?;
            no_flags()?;
            Kind::Workdir(path)
        }
        "user" => {
            let user = only(node, "USER")?;
            no_flags()?;
            Kind::User(user)
        }
        "volume" => {
            let paths = some(node, "VOLUME")?;
            no_flags()?;
            let paths: Vec<String> = paths.iter().map(|path| path.trim().to_owned()).collect();
            if paths.iter().any(String::is_empty) {
                return Err(Error::new("VOLUME specified can not be an empty string"));
            }
            Kind::Volume(paths)
        }
        "expose" => {
            let mut ports = some(node, "EXPOSE")?.to_vec();
            no_flags()?;
            ports.sort();
            Kind::Expose(ports)
        }
        "stopsignal" => Kind::StopSignal(only(node, "STOPSIGNAL")?),
        "healthcheck" => Kind::Healthcheck(healthcheck(node)?),
        "onbuild" => Kind::Onbuild(onbuild(node)?),
        "from" => return Err(Error::new("*instructions.Stage is not a command type")),
        _ => {
            let message = format!("unknown instruction: {}", node.keyword);
            let hint = suggest(&node.keyword, KEYWORDS, false).map(|option| {
                if node.keyword == node.keyword.to_lowercase() {
                    option.to_lowercase()
                } else {
                    option.to_owned()
                }
            });
            return Err(Error::new(match hint {
                Some(hint) => format!("{message} (did you mean {hint}?)"),
                None => message,
            }));
        }
    })
}

fn only(node: &Node, keyword: &str) -> Result<String> {
    match node.args.list() {
        [text] => Ok(text.clone()),
        _ => Err(Error::new(format!("{keyword} requires exactly one argument"))),
    }
}

fn at_least_one(keyword: &str) -> Error {
    Error::new(format!("{keyword} requires at least one argument"))
}

fn some<'a>(node: &'a Node, keyword: &str) -> Result<&'a [String]> {
    match node.args.list() {
        [] => Err(at_least_one(keyword)),
        list => Ok(list),
    }
}

fn pairs(args: &Args) -> &[Pair] {
    match args {
        Args::Pairs(pairs) => pairs,
        _ => &[],
    }
}

fn key_values(args: &Args, keyword: &str) -> Result<Vec<KeyValue>> {
    let pairs = pairs(args);
    if pairs.is_empty() {
        return Err(at_least_one(keyword));
    }
    let key_value = |pair: &Pair| {
        if pair.name.is_empty() {
            return Err(Error::new(format!("{keyword} names can not be blank")));
        }
        let value = pair.value.clone().unwrap_or_default();
        Ok(KeyValue { key: pair.name.clone(), value, legacy: !pair.has_delimiter })
    };
    pairs.iter().map(key_value).collect()
}

fn arg(node: &Node) -> Result<Vec<ArgPair>> {
    let pairs = pairs(&node.args);
    if pairs.is_empty() {
        return Err(at_least_one("ARG"));
    }
    let arg = |pair: &Pair| {
        if pair.name.is_empty() && pair.has_delimiter {
            return Err(Error::new("ARG names can not be blank"));
        }
        let doc = doc_comment(&node.comments, &pair.name);
        Ok(ArgPair { key: pair.name.clone(), value: pair.value.clone(), doc })
    };
    pairs.iter().map(arg).collect()
}

fn command_line(args: &Args) -> CommandLine {
    CommandLine { args: args.list().to_vec(), shell_form: !args.is_json() }
}

fn copy(node: &Node, keyword: &str) -> Result<CopyArgs> {
    let words = node.args.list();
    let [paths @ .., dest] = words else { return Err(no_destination(keyword)) };
    if paths.is_empty() {
        return Err(no_destination(keyword));
    }
    let mut flags = if keyword == "ADD" {
        Flags::new(&[
            ("chown", Type::Text),
            ("chmod", Type::Text),
            ("link", Type::Bool),
            ("keep-git-dir", Type::Bool),
            ("checksum", Type::Text),
            ("unpack", Type::Bool),
            ("exclude", Type::List),
        ])
    } else {
        Flags::new(&[
            ("chown", Type::Text),
            ("from", Type::Text),
            ("chmod", Type::Text),
            ("link", Type::Bool),
            ("exclude", Type::List),
            ("parents", Type::Bool),
        ])
    };
    flags.parse(&node.flags)?;
    if heredoc_word(dest).is_some() {
        return Err(Error::new(format!("{keyword} cannot accept a heredoc as a destination")));
    }
    let mut args = CopyArgs {
        dest: dest.clone(),
        from: flags.text("from"),
        chown: flags.text("chown"),
        chmod: flags.text("chmod"),
        link: flags.bool("link").unwrap_or_default(),
        parents: flags.bool("parents").unwrap_or_default(),
        exclude: flags.list("exclude"),
        keep_git_dir: flags.bool("keep-git-dir"),
        checksum: flags.text("checksum"),
        unpack: flags.bool("unpack"),
        ..CopyArgs::default()
    };
    for path in paths {
        let Some(heredoc) = heredoc_word(path) else {
            args.sources.push(path.clone());
            continue;
        };
        // The same word twice has the last body for both.
        let body = node.heredocs.iter().rev().find(|body| body.name == heredoc.name);
        let data = body.map(|body| body.data.as_str()).unwrap_or_default();
        let data = if heredoc.chomp { strip_tabs(data) } else { data.to_owned() };
        args.contents.push(Content { path: heredoc.name, data, expand: heredoc.expand });
    }
    Ok(args)
}

fn no_destination(keyword: &str) -> Error {
    Error::new(format!(
        "{keyword} requires at least two arguments, but only one was provided. Destination could not be determined"
    ))
}

fn run(node: &Node) -> Result<RunArgs> {
    let mut flags = Flags::new(&[
        ("mount", Type::List),
        ("device", Type::List),
        ("network", Type::Text),
        ("security", Type::Text),
    ]);
    flags.parse(&node.flags)?;
    let mounts = flags.list("mount");
    let mut mount_from = Vec::new();
    // Order of the checks is that of the reference's hooks.
    for device in flags.list("device") {
        device::check(&device)?;
    }
    for text in &mounts {
        mount_from.push(mount::parse_mount_from(text)?);
    }
    let (network, security) = (flags.list("network").pop(), flags.list("security").pop());
    if let Some(network) = network.as_deref().filter(|mode| !["default", "none", "host"].contains(mode)) {
        return Err(Error::new(format!("invalid network mode {}", quote(network))));
    }
    if let Some(security) = security.as_deref().filter(|mode| !["sandbox", "insecure"].contains(mode)) {
        return Err(Error::new(format!("security {} is not valid", quote(security))));
    }
    Ok(RunArgs {
        line: command_line(&node.args),
        files: node.heredocs.clone(),
        mounts,
        mount_from,
        network: network.unwrap_or_default(),
        security: security.unwrap_or_default(),
        has_devices: !flags.list("device").is_empty(),
    })
}

fn shell(node: &Node) -> Result<Vec<String>> {
    match &node.args {
        args if args.list().is_empty() => Err(at_least_one("SHELL")),
        Args::Json(list) => Ok(list.clone()),
        _ => Err(Error::new("SHELL requires the arguments to be in JSON form")),
    }
}

fn healthcheck(node: &Node) -> Result<Health> {
    let Args::Typed(kind, rest) = &node.args else { return Err(at_least_one("HEALTHCHECK")) };
    if kind.is_empty() {
        return Err(at_least_one("HEALTHCHECK"));
    }
    let kind = kind.to_uppercase();
    if kind == "NONE" {
        if !rest.list().is_empty() {
            return Err(Error::new("HEALTHCHECK NONE takes no arguments"));
        }
        return Ok(Health { test: vec![kind], ..Health::default() });
    }
    let mut flags = Flags::new(&[
        ("interval", Type::Text),
        ("timeout", Type::Text),
        ("start-period", Type::Text),
        ("start-interval", Type::Text),
        ("retries", Type::Text),
    ]);
    flags.parse(&node.flags)?;
    if kind != "CMD" {
        return Err(Error::new(format!("Unknown type {} in HEALTHCHECK (try CMD)", quote(&kind))));
    }
    if rest.list().is_empty() {
        return Err(Error::new("Missing command after HEALTHCHECK CMD"));
    }
    let mut test = vec![if rest.is_json() { "CMD" } else { "CMD-SHELL" }.to_owned()];
    test.extend_from_slice(rest.list());
    let duration = |name: &str| match flags.text(name).as_str() {
        "" => Ok(0),
        text => match parse_duration(text).map_err(Error::new)? {
            0 => Ok(0),
            short if short < 1_000_000 => {
                Err(Error::new(format!("Interval {} cannot be less than 1ms", quote(name))))
            }
            nanos => Ok(nanos),
        },
    };
    let mut health = Health {
        test,
        interval: duration("interval")?,
        timeout: duration("timeout")?,
        start_period: duration("start-period")?,
        start_interval: duration("start-interval")?,
        retries: 0,
    };
    let retries = flags.text("retries");
    if !retries.is_empty() {
        let count: i32 = retries.parse().map_err(|_| Error::new(number_error("ParseInt", &retries)))?;
        if count < 0 {
            return Err(Error::new(format!("--retries cannot be negative ({count})")));
        }
        health.retries = count.into();
    }
    Ok(health)
}

fn onbuild(node: &Node) -> Result<String> {
    let Args::Trigger(Some(trigger)) = &node.args else { return Err(at_least_one("ONBUILD")) };
    Flags::new(&[]).parse(&node.flags)?;
    match trigger.keyword.to_uppercase().as_str() {
        "ONBUILD" => return Err(Error::new("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")),
        keyword @ ("MAINTAINER" | "FROM") => {
            return Err(Error::new(format!("{keyword} isn't allowed as an ONBUILD trigger")));
        }
        _ => {}
    }
    let text = node.text.trim_start();
    let mut expression = text.get("ONBUILD".len()..).unwrap_or_default().trim_start().to_owned();
    for heredoc in &node.heredocs {
        expression.push('\n');
        expression.push_str(&heredoc.data);
        expression.push_str(&heredoc.name);
    }
    Ok(expression)
}
