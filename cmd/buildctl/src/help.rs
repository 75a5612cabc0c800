//! Help texts, made from the tables of commands and flags.

use std::fmt::Write as _;

use crate::VERSION;
use crate::commands::{COMMANDS, Command, DEBUG_COMMANDS, GLOBAL};
use crate::flags::{Flag, Kind};

/// Help of the program.
pub(crate) fn program() -> String {
    let mut out = String::from("NAME:\n   buildctl - build utility\n\nUSAGE:\n");
    out.push_str("   buildctl [global options] [command [command options]]\n\nVERSION:\n");
    let _ = writeln!(out, "   {}\n\nCOMMANDS:", VERSION.split(' ').nth(1).unwrap_or_default());
    commands(&mut out, COMMANDS);
    out.push_str("\nGLOBAL OPTIONS:\n");
    flags(&mut out, GLOBAL);
    out
}

/// Help of the group of debugging commands.
pub(crate) fn debug() -> String {
    let mut out = String::from("NAME:\n   buildctl debug - debug utilities\n\nUSAGE:\n");
    out.push_str("   buildctl debug [command [command options]]\n\nCOMMANDS:\n");
    commands(&mut out, DEBUG_COMMANDS);
    out
}

/// Help of a command.
pub(crate) fn command(path: &str, command: &Command) -> String {
    let mut out = format!("NAME:\n   buildctl {path} - {}\n\n", command.help);
    let _ = writeln!(out, "USAGE:\n   buildctl {path} [options]{}\n\nOPTIONS:", command.arguments);
    flags(&mut out, command.flags);
    out.push_str("\nGLOBAL OPTIONS:\n");
    flags(&mut out, GLOBAL);
    out
}

fn commands(out: &mut String, commands: &[Command]) {
    for command in commands.iter().filter(|command| !command.hidden) {
        let name = match command.short {
            "" => command.name.to_owned(),
            short => format!("{}, {short}", command.name),
        };
        let _ = writeln!(out, "   {name:<17}{}", command.help);
    }
}

fn flags(out: &mut String, flags: &[Flag]) {
    let mut rows: Vec<(String, &str)> = flags
        .iter()
        .map(|flag| {
            let value = match flag.kind {
                Kind::Bool => "",
                Kind::Text => " string",
                Kind::List => " string ...",
                Kind::Int => " int",
                Kind::Float => " float",
                Kind::Duration => " duration",
            };
            let short = if flag.short.is_empty() { String::new() } else { format!(", -{}", flag.short) };
            (format!("--{}{short}{value}", flag.name), flag.help)
        })
        .collect();
    rows.push(("--help, -h".to_owned(), "show help"));
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    for (name, help) in rows {
        let _ = writeln!(out, "   {name:<width$}  {help}");
    }
}
