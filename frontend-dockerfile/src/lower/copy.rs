use kiln_digest::Digest;
use kiln_frontend::pb;
use kiln_frontend::pb::file_action::Action;
use kiln_patterns::has_wildcard;

use crate::error::{Error, Result};
use crate::git_url;
use crate::graph::{Edge, FileStep, Meta, State};
use crate::instruction::{Command, Content, CopyArgs};
use crate::lint::Rule;
use crate::lower::{Lowering, names};
use crate::paths::{base, clean, join, keep_slash, rooted, strip_drive};
use crate::platform::Platform;
use crate::reference::check_digest;
use crate::shell::Lex;
use crate::text::quote;

/// Where paths are taken from.
pub(super) struct Source {
    pub(super) edge: Option<Edge>,
    pub(super) from_context: bool,
    pub(super) is_add: bool,
}

enum Mode {
    Keep,
    Octal(i32),
    Symbolic(String),
}

impl Lowering<'_> {
    /// Expands what COPY and ADD expand.
    pub(super) fn expand_copy(
        &mut self,
        index: usize,
        command: &Command,
        args: &CopyArgs,
    ) -> Result<CopyArgs> {
        let mut args = args.clone();
        args.chown = self.expand(index, command, &args.chown)?;
        args.chmod = self.expand(index, command, &args.chmod)?;
        args.checksum = self.expand(index, command, &args.checksum)?;
        for source in &mut args.sources {
            *source = self.expand(index, command, source)?;
        }
        args.dest = self.expand(index, command, &args.dest)?;
        let body = Lex { plain_quotes: true, escape: '\\', ..self.lex.clone() };
        for content in args.contents.iter_mut().filter(|content| content.expand) {
            content.data = self.expand_with(&body, index, command, &content.data)?;
        }
        Ok(args)
    }

    /// Lowers a COPY or ADD; returns the paths it takes from its source.
    pub(super) fn copy(
        &mut self,
        index: usize,
        command: &Command,
        args: &CopyArgs,
        source: Source,
    ) -> Result<Vec<String>> {
        let mut args = self.expand_copy(index, command, args)?;
        let stage = &self.stages[index];
        let platform = stage.platform.clone().unwrap_or_default();
        let windows = platform.is_windows();
        let dest = dest(&stage.state, &args.dest, windows)?;
        let mode = mode(&args.chmod)?;
        check_checksum(&args)?;
        let env = stage.state.env.clone();
        let text = names::shown(&self.lex, &command.code, &env);
        let name = self.vertex_name(index, &text, &platform, &env);

        let mut template = pb::FileActionCopy {
            dest,
            owner: (!args.chown.is_empty()).then(|| owner(&args.chown)),
            mode: -1,
            create_dest_path: true,
            timestamp: -1,
            exclude_patterns: args.exclude.clone(),
            ..pb::FileActionCopy::default()
        };
        match mode {
            Mode::Keep => {}
            Mode::Octal(mode) => template.mode = mode,
            Mode::Symbolic(text) => (template.mode, template.mode_str) = (0, text),
        }
        let mut steps = Vec::new();
        for path in args.sources.clone() {
            let step = match git_url::parse(&path) {
                Some(Err(error)) => return Err(Error::new(error)),
                Some(Ok(url)) if !url.looks_local => {
                    self.git_step(url, &mut args, &source, &name, &template)?
                }
                _ if path.starts_with("http://") || path.starts_with("https://") => {
                    self.http_step(&path, &args, &source, &name, &template)?
                }
                _ => {
                    self.check_ignored(command, &path, &source)?;
                    path_step(&path, &args, &source, &template, windows)?
                }
            };
            steps.push(step);
        }
        for content in &args.contents {
            let step = self.content_step(content, &template, windows)?;
            steps.push(step);
        }
        self.history(index, history(&args, source.is_add), true);
        self.stages[index].state.output = self.place(index, command, &args, steps, (name, &text), &platform);

        let paths: Vec<String> = args.sources.iter().map(|path| rooted(path)).collect();
        if source.from_context {
            let is_url = |path: &&String| path.starts_with("http://") || path.starts_with("https://");
            let used = args.sources.iter().filter(|path| !(source.is_add && is_url(path)));
            let used: Vec<String> = used.map(|path| rooted(path)).collect();
            self.stages[index].context_paths.extend(used);
        }
        Ok(paths)
    }

    /// Puts the copies onto the stage, or beside it with `--link`.
    fn place(
        &mut self,
        index: usize,
        command: &Command,
        args: &CopyArgs,
        steps: Vec<FileStep>,
        (name, text): (String, &str),
        platform: &Platform,
    ) -> Option<Edge> {
        let stage = &self.stages[index];
        let base = stage.state.output;
        let meta = Meta {
            ignore_cache: stage.ignores_cache,
            lines: Some(command.ranges.clone()),
            ..Meta::named(name.clone())
        };
        if !(args.link && args.chmod.is_empty() && self.client.request.has_llb_cap("mergeop")) {
            return Some(self.graph.file(base, steps, meta));
        }
        let env = stage.state.env.clone();
        if self.stages[index].steps > 0 {
            self.stages[index].step -= 1;
        }
        let merged = self.vertex_name(index, &format!("LINK {text}"), platform, &env);
        self.groups += 1;
        let seed = format!(
            "{} {} {} {name}",
            self.client.request.session_id,
            self.target_platform.format(),
            self.groups
        );
        let id = Digest::of(seed).hex()[..25].to_owned();
        let group = |weak| Some(pb::ProgressGroup { id: id.clone(), name: name.clone(), weak });
        let copied = self.graph.file(None, steps, Meta { progress_group: group(true), ..meta.clone() });
        let meta = Meta { name: Some(merged), progress_group: group(false), ..meta };
        self.graph.merge(vec![base, Some(copied)], meta)
    }

    fn git_step(
        &mut self,
        mut url: git_url::GitUrl,
        args: &mut CopyArgs,
        source: &Source,
        name: &str,
        template: &pb::FileActionCopy,
    ) -> Result<FileStep> {
        if !source.is_add {
            return Err(Error::new("source can't be a git ref for COPY"));
        }
        if let (Some(flag), Some(query)) = (args.keep_git_dir, url.keep_git_dir)
            && flag != query
        {
            return Err(Error::new("inconsistent keep-git-dir configuration"));
        }
        // What one source says holds for those after it as well.
        args.keep_git_dir = url.keep_git_dir.or(args.keep_git_dir);
        url.keep_git_dir = args.keep_git_dir;
        if !args.checksum.is_empty() && !url.checksum.is_empty() && args.checksum != url.checksum {
            return Err(Error::new(format!(
                "checksum mismatch {} != {}",
                quote(&args.checksum),
                quote(&url.checksum)
            )));
        }
        if !url.checksum.is_empty() {
            args.checksum = url.checksum.clone();
        }
        url.checksum = args.checksum.clone();
        url.mtime.clear();
        let edge = url.to_source(&mut self.graph, Meta::named(name));
        let copy = pb::FileActionCopy { src: "/".to_owned(), ..template.clone() };
        Ok(FileStep { source: Some(edge), action: Action::Copy(copy) })
    }

    fn http_step(
        &mut self,
        url: &str,
        args: &CopyArgs,
        source: &Source,
        name: &str,
        template: &pb::FileActionCopy,
    ) -> Result<FileStep> {
        if !source.is_add {
            return Err(Error::new("source can't be a URL for COPY"));
        }
        if !args.checksum.is_empty() {
            check_digest(&args.checksum).map_err(Error::new)?;
        }
        let file = url_file(url);
        let meta = Meta { command: Some(String::new()), ..Meta::named(name) };
        let edge = self.client.http(&mut self.graph, url, &file, &args.checksum, meta);
        let copy = pb::FileActionCopy {
            src: rooted(&file),
            attempt_unpack_docker_compatibility: args.unpack.unwrap_or_default(),
            ..template.clone()
        };
        Ok(FileStep { source: Some(edge), action: Action::Copy(copy) })
    }

    fn content_step(
        &mut self,
        content: &Content,
        template: &pb::FileActionCopy,
        windows: bool,
    ) -> Result<FileStep> {
        let path = strip_drive(&content.path, windows)
            .map_err(|error| Error::new(format!("removing drive letter: {error}")))?;
        let mkfile = pb::FileActionMkFile {
            path: rooted(&path),
            mode: 0o644,
            data: content.data.clone().into_bytes(),
            timestamp: -1,
            ..pb::FileActionMkFile::default()
        };
        let step = FileStep { source: None, action: Action::Mkfile(mkfile) };
        let edge = self.graph.file(None, vec![step], Meta::named("[internal] preparing inline document"));
        let copy = pb::FileActionCopy { src: rooted(&path), ..template.clone() };
        Ok(FileStep { source: Some(edge), action: Action::Copy(copy) })
    }

    fn check_ignored(&mut self, command: &Command, path: &str, source: &Source) -> Result<()> {
        let Some(ignore) = self.ignore.as_ref().filter(|list| source.from_context && !list.has_negated())
        else {
            return Ok(());
        };
        let path = clean(path);
        if path == "." || path == "/" {
            let ignores_all = ignore.iter().any(|(_, pattern)| matches!(pattern, "*" | "**" | "**/*"));
            if !ignores_all {
                return Ok(());
            }
        }
        // Each pattern is tried on the path.
        self.lex
            .work
            .spend(ignore.iter().map(|(_, pattern)| pattern.len() + path.len()).sum())
            .map_err(Error::new)?;
        if ignore.matches(&path) {
            let what = if source.is_add { "Add" } else { "Copy" };
            let message =
                format!("Attempting to {what} file {} that is excluded by .dockerignore", quote(&path));
            self.lint.report(Rule::CopyIgnoredFile, &command.comments, &command.ranges, message);
        }
        Ok(())
    }
}

fn path_step(
    path: &str,
    args: &CopyArgs,
    source: &Source,
    template: &pb::FileActionCopy,
    windows: bool,
) -> Result<FileStep> {
    let normal = |path: &str| {
        let path = strip_drive(path, windows)
            .map_err(|error| Error::new(format!("removing drive letter: {error}")))?;
        Ok::<_, Error>(rooted(&path))
    };
    let mut copy = pb::FileActionCopy {
        follow_symlink: true,
        dir_copy_contents: true,
        allow_wildcard: true,
        allow_empty_wildcard: true,
        attempt_unpack_docker_compatibility: args.unpack.unwrap_or(source.is_add),
        ..template.clone()
    };
    let mut path = path;
    if args.parents {
        let pattern;
        (path, pattern) = match path.split_once("/./") {
            Some((pivot, pattern)) => (pivot, pattern),
            None => ("/", path),
        };
        let pattern = normal(pattern)?;
        copy.include_patterns = vec![pattern.trim_start_matches('/').to_owned()];
        if !has_wildcard(path) && !has_wildcard(&pattern) {
            copy.required_paths = vec![normal(&join(path, &pattern))?];
        }
    }
    copy.src = normal(path)?;
    Ok(FileStep { source: source.edge, action: Action::Copy(copy) })
}

fn dest(state: &State, dest: &str, windows: bool) -> Result<String> {
    let dest =
        strip_drive(dest, windows).map_err(|error| Error::new(format!("removing drive letter: {error}")))?;
    let dest = if dest.is_empty() || dest == "." { "./" } else { &dest };
    // The frontend and the builder of the op both clean it, each keeping what says "directory".
    Ok(keep_slash("/", &keep_slash(state.dir(), dest)))
}

fn mode(chmod: &str) -> Result<Mode> {
    if chmod.is_empty() {
        return Ok(Mode::Keep);
    }
    let not_octal = || {
        Error::new(format!(
            "invalid chmod parameter: '{chmod}'. it should be octal string and between 0 and 07777"
        ))
    };
    if chmod.bytes().all(|b| b.is_ascii_digit()) {
        let mode = u32::from_str_radix(chmod, 8).map_err(|_| not_octal())?;
        let mode = i32::try_from(mode).ok().filter(|&mode| mode <= 0o7777).ok_or_else(not_octal)?;
        return Ok(Mode::Octal(mode));
    }
    let valid = chmod.split(',').all(|clause| {
        let rest = clause.trim_start_matches(['u', 'g', 'o', 'a']);
        rest.starts_with(['+', '-', '=']) && rest.chars().all(|c| "+-=rwxXstugo".contains(c))
    });
    if !valid {
        return Err(Error::new("invalid syntax"));
    }
    Ok(Mode::Symbolic(chmod.to_owned()))
}

fn check_checksum(args: &CopyArgs) -> Result<()> {
    if args.checksum.is_empty() {
        return Ok(());
    }
    let [only] = args.sources.as_slice() else {
        return Err(Error::new("checksum can't be specified for multiple sources"));
    };
    let is_git = matches!(git_url::parse(only), Some(Ok(_)));
    if !is_git && !only.starts_with("http://") && !only.starts_with("https://") {
        return Err(Error::new("checksum requires HTTP(S) or Git sources"));
    }
    Ok(())
}

/// `USER[:GROUP]` as an op has it: numbers as ids, anything else as names.
pub(super) fn owner(text: &str) -> pb::ChownOpt {
    let part = |text: &str| {
        let user = match text {
            "root" | "" => pb::user_opt::User::ById(0),
            text => match text.parse::<i32>() {
                Ok(id) => pb::user_opt::User::ById(id.cast_unsigned()),
                Err(_) => pb::user_opt::User::ByName(pb::NamedUserOpt { name: text.to_owned(), input: 0 }),
            },
        };
        Some(pb::UserOpt { user: Some(user) })
    };
    match text.split_once(':') {
        Some((user, group)) => pb::ChownOpt { user: part(user), group: part(group) },
        None => pb::ChownOpt { user: part(text), group: None },
    }
}

pub(super) fn url_file(url: &str) -> String {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let rest = rest.split(['?', '#']).next().unwrap_or(rest);
    let path = rest.split_once('/').map(|(_, path)| path).unwrap_or_default();
    match base(path) {
        "." | "/" => "__unnamed__".to_owned(),
        name => name.to_owned(),
    }
}

fn history(args: &CopyArgs, is_add: bool) -> String {
    let mut words = vec![if is_add { "ADD" } else { "COPY" }.to_owned()];
    if args.parents {
        words.push("--parents".to_owned());
    }
    for (flag, value) in [("--chown", &args.chown), ("--chmod", &args.chmod)] {
        if !value.is_empty() {
            words.push(format!("{flag}={value}"));
        }
    }
    words.extend(args.sources.iter().cloned());
    words.extend(args.contents.iter().map(|content| format!("<<{}", content.path)));
    words.push(args.dest.clone());
    words.push("# buildkit".to_owned());
    words.join(" ")
}
