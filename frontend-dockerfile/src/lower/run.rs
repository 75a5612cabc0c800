use std::collections::HashMap;

use kiln_frontend::pb;

use crate::error::{Error, Result};
use crate::graph::{Edge, FileStep, Meta};
use crate::instruction::{Command, Mount, MountKind, RunArgs, Sharing, parse_mount};
use crate::lower::config::with_shell;
use crate::lower::outline::Notes;
use crate::lower::{Lowering, names};
use crate::parser::{heredoc_word, strip_tabs};
use crate::paths::{base, clean, join, rooted};
use crate::shell::Lex;
use crate::source::LineRange;
use crate::text::quote;

/// What the mounts of a RUN add to its exec.
#[derive(Default)]
struct Mounts {
    /// Mounts that are ordered by where they go, with what is behind them.
    placed: Vec<(pb::Mount, Option<Edge>)>,
    secrets: Vec<pb::Mount>,
    secret_env: Vec<pb::SecretEnv>,
    has_secrets: bool,
    ssh: Vec<pb::Mount>,
    /// Secrets that are variables, masked in the name.
    masked: Vec<String>,
}

impl Lowering<'_> {
    pub(super) fn run(
        &mut self,
        index: usize,
        command: &Command,
        run: &RunArgs,
        sources: &[usize],
    ) -> Result<()> {
        let parsed = self.expand_mounts(index, command, run)?;
        let set = self.stages[index].paths;
        self.used_paths[set].insert("/".to_owned());
        let mut mounts = Mounts::default();
        let (args, suffix) = self.command_line(index, run, &mut mounts)?;
        for (mount, source) in parsed.into_iter().zip(sources) {
            self.mount(index, mount, *source, &command.ranges, &mut mounts)?;
        }
        if run.has_devices {
            return Err(Error::new(
                "device feature is only supported in Dockerfile frontend 1.14.0-labs or later",
            ));
        }
        let name = self.run_name(index, command, &suffix, &mounts);
        let options = &self.client.options;
        if options.shm_size > 0 {
            let mut mount = tmpfs("/dev/shm", options.shm_size);
            mount.dest = "/dev/shm".to_owned();
            mounts.placed.push((mount, None));
        }
        if command.invalid_utf8 {
            return Err(Error::new("failed to marshal LLB definition: string field contains invalid UTF-8"));
        }
        let history = self.run_history(index, &args);
        self.lex.work.spend(self.stages[index].state.env.size()).map_err(Error::new)?;
        let edge = self.exec(index, command, run, args, mounts, name);
        self.stages[index].state.output = Some(edge);
        self.history(index, history, true);
        Ok(())
    }

    fn expand_mounts(&mut self, index: usize, command: &Command, run: &RunArgs) -> Result<Vec<Mount>> {
        let mut mounts = Vec::new();
        for text in &run.mounts {
            mounts.push(parse_mount(text, |value| self.expand(index, command, value))?);
        }
        Ok(mounts)
    }

    /// The arguments of the process, and what its name ends in.
    fn command_line(
        &mut self,
        index: usize,
        run: &RunArgs,
        mounts: &mut Mounts,
    ) -> Result<(Vec<String>, String)> {
        let mut args = run.line.args.clone();
        let mut suffix = String::new();
        if let Some(file) = run.files.first() {
            let [text] = args.as_slice() else {
                return Err(Error::new(format!(
                    "parsing produced an invalid run command: [{}]",
                    args.join(" ")
                )));
            };
            if heredoc_word(text).is_some() {
                let data = if file.chomp { strip_tabs(&file.data) } else { file.data.clone() };
                suffix = format!(" ({})", summary(&file.data));
                args = if self.stages[index].image.os != "windows" && data.starts_with("#!") {
                    mounts.placed.push(self.inline_script(&file.name, data));
                    vec![join("/dev/pipes/", &file.name)]
                } else {
                    vec![data]
                };
            } else {
                let mut script = text.clone();
                for file in &run.files {
                    script.push('\n');
                    script.push_str(&file.data);
                    script.push_str(&file.name);
                }
                args = vec![script];
            }
        }
        if run.line.shell_form {
            args = with_shell(&self.stages[index].image, &args);
        }
        Ok((args, suffix))
    }

    fn inline_script(&mut self, name: &str, data: String) -> (pb::Mount, Option<Edge>) {
        let mkfile = pb::FileActionMkFile {
            path: rooted(name),
            mode: 0o755,
            data: data.into_bytes(),
            timestamp: -1,
            ..pb::FileActionMkFile::default()
        };
        let step = FileStep { source: None, action: pb::file_action::Action::Mkfile(mkfile) };
        let file = self.graph.file(None, vec![step], Meta::named("[internal] preparing inline document"));
        let mount = pb::Mount {
            dest: "/dev/pipes/".to_owned(),
            selector: "/".to_owned(),
            readonly: true,
            output: -1,
            ..pb::Mount::default()
        };
        (mount, Some(file))
    }

    fn mount(
        &mut self,
        index: usize,
        mut mount: Mount,
        source: usize,
        ranges: &[LineRange],
        out: &mut Mounts,
    ) -> Result<()> {
        if mount.from.is_empty() && mount.kind == MountKind::Cache {
            mount.from = "scratch".to_owned();
        }
        let mut edge = Some(self.context);
        if !mount.from.is_empty() {
            if !self.stages[source].dispatched {
                return Err(Error::new(format!(
                    "cannot mount from stage {} to {}, stage needs to be defined before current command",
                    quote(&mount.from),
                    quote(&mount.target)
                )));
            }
            edge = self.stages[source].state.output;
        }
        let mut wire = pb::Mount { readonly: mount.readonly, output: -1, ..pb::Mount::default() };
        match mount.kind {
            MountKind::Secret => {
                let id = secret(&mount, out)?;
                let notes = &mut self.stages[index].notes.secrets;
                Notes::add(notes, &id, mount.required, ranges);
                return Ok(());
            }
            MountKind::Ssh => {
                ssh(&mount, out)?;
                let id = if mount.id.is_empty() { "default" } else { &mount.id };
                Notes::add(&mut self.stages[index].notes.ssh, id, mount.required, ranges);
                return Ok(());
            }
            MountKind::Tmpfs => {
                wire = pb::Mount { readonly: mount.readonly, ..tmpfs("", mount.size) };
                edge = None;
            }
            MountKind::Cache => {
                let id = if mount.id.is_empty() { clean(&mount.target) } else { mount.id.clone() };
                let sharing = match mount.sharing {
                    None | Some(Sharing::Shared) => pb::CacheSharingOpt::Shared,
                    Some(Sharing::Private) => pb::CacheSharingOpt::Private,
                    Some(Sharing::Locked) => pb::CacheSharingOpt::Locked,
                };
                wire.mount_type = pb::MountType::Cache.into();
                wire.cache_opt = Some(pb::CacheOpt {
                    id: format!("{}/{id}", self.client.options.cache_namespace),
                    sharing: sharing.into(),
                });
            }
            MountKind::Bind => {}
        }
        wire.dest = match mount.target.starts_with('/') {
            true => mount.target.clone(),
            false => join("/", &format!("{}/{}", self.stages[index].state.dir(), mount.target)),
        };
        if wire.dest == "/" {
            return Err(Error::new(format!("invalid mount target {}", quote(&wire.dest))));
        }
        let path = rooted(&mount.source);
        if path != "/" {
            wire.selector = path.clone();
        } else if mount.uid.is_some() || mount.gid.is_some() || mount.mode.is_some() {
            edge = Some(self.cache_dir(&mount, edge));
            wire.selector = "/cache".to_owned();
        }
        out.placed.push((wire, edge));
        if mount.from.is_empty() {
            self.stages[index].context_paths.insert(path);
        } else {
            let set = self.stages[source].paths;
            self.used_paths[set].insert(path);
        }
        Ok(())
    }

    /// A directory with the owner and mode that a cache mount asks for.
    fn cache_dir(&mut self, mount: &Mount, base: Option<Edge>) -> Edge {
        let id =
            |id: Option<u32>| pb::UserOpt { user: Some(pb::user_opt::User::ById(id.unwrap_or_default())) };
        let mkdir = pb::FileActionMkDir {
            path: "/cache".to_owned(),
            mode: i32::try_from(mount.mode.unwrap_or(0o755)).unwrap_or(i32::MAX),
            owner: Some(pb::ChownOpt { user: Some(id(mount.uid)), group: Some(id(mount.gid)) }),
            timestamp: -1,
            ..pb::FileActionMkDir::default()
        };
        let step = FileStep { source: None, action: pb::file_action::Action::Mkdir(mkdir) };
        self.graph.file(base, vec![step], Meta::named("[internal] setting cache mount permissions"))
    }

    fn run_name(&mut self, index: usize, command: &Command, suffix: &str, mounts: &Mounts) -> String {
        let lex = Lex { raw_quotes: true, keep_unset: true, ..self.lex.clone() };
        let env = self.stages[index].state.env.clone();
        let mut masked = env.clone();
        for name in &mounts.masked {
            masked.set(name, "****");
        }
        let text = names::shown(&lex, &format!("{}{suffix}", command.code), &masked);
        let platform = self.op_platform(&self.stages[index].state);
        self.vertex_name(index, &text, &platform, &env)
    }

    /// `RUN |N K=V … ARGS`, with the ARGs declared so far.
    fn run_history(&self, index: usize, args: &[String]) -> String {
        let stage = &self.stages[index];
        let mut declared: Vec<(&str, String)> = Vec::new();
        let mut places: HashMap<&str, usize> = HashMap::new();
        for (key, value) in &stage.args {
            let value =
                stage.state.env.get(key).map(str::to_owned).or_else(|| value.clone()).unwrap_or_default();
            let place = *places.entry(key).or_insert(declared.len());
            match declared.get_mut(place) {
                Some((_, known)) => *known = value,
                None => declared.push((key, value)),
            }
        }
        let mut words: Vec<String> = Vec::new();
        if !declared.is_empty() {
            words.push(format!("|{}", declared.len()));
            words.extend(declared.iter().map(|(key, value)| format!("{key}={value}")));
        }
        words.extend_from_slice(args);
        format!("RUN {} # buildkit", words.join(" "))
    }

    fn exec(
        &mut self,
        index: usize,
        command: &Command,
        run: &RunArgs,
        args: Vec<String>,
        mounts: Mounts,
        name: String,
    ) -> Edge {
        let options = &self.client.options;
        let state = &self.stages[index].state;
        let mut env = state.env.clone();
        let root = pb::Mount { dest: "/".to_owned(), ..pb::Mount::default() };
        let mut placed = mounts.placed;
        placed.push((root, state.output));
        placed.sort_by(|(a, _), (b, _)| a.dest.cmp(&b.dest));
        let caps = caps(&placed, &mounts.secret_env, mounts.has_secrets, !mounts.ssh.is_empty());
        let (mut wire, mut edges): (Vec<pb::Mount>, Vec<Option<Edge>>) = placed.into_iter().unzip();
        let ssh = numbered(mounts.ssh);
        if let Some(first) = ssh.first()
            && env.get("SSH_AUTH_SOCK").is_none()
        {
            env.set("SSH_AUTH_SOCK", &first.dest);
        }
        wire.extend(mounts.secrets);
        wire.extend(ssh);
        edges.resize(wire.len(), None);
        let network = match run.network.as_str() {
            "none" => pb::NetMode::None.into(),
            "host" => pb::NetMode::Host.into(),
            _ => state.network,
        };
        let insecure = run.security == "insecure";
        let meta = pb::Meta {
            args,
            env: env.to_list(),
            cwd: state.dir().to_owned(),
            user: state.user.clone(),
            proxy_env: self.proxy.clone(),
            extra_hosts: options.extra_hosts.clone(),
            hostname: state.hostname.clone(),
            ulimit: options.ulimits.clone(),
            cgroup_parent: options.cgroup_parent.clone(),
            remove_mount_stubs_recursive: true,
            ..pb::Meta::default()
        };
        let mut caps = caps;
        let conditional = [
            (network != 0, "exec.meta.network"),
            (insecure, "exec.meta.security"),
            (!meta.ulimit.is_empty(), "exec.meta.ulimit"),
            (meta.proxy_env.is_some(), "exec.meta.proxyenv"),
            (options.linux_resources.is_some(), "exec.meta.linux.resources"),
        ];
        caps.extend(conditional.iter().filter(|(given, _)| *given).map(|(_, cap)| *cap));
        let security = if insecure { pb::SecurityMode::Insecure } else { pb::SecurityMode::Sandbox };
        let exec = pb::ExecOp {
            meta: Some(meta),
            mounts: wire,
            network,
            security: security.into(),
            secretenv: mounts.secret_env,
            ..pb::ExecOp::default()
        };
        let platform = self.op_platform(state);
        let meta = Meta {
            command: Some(command.code.clone()),
            ignore_cache: self.stages[index].ignores_cache,
            linux_resources: options.linux_resources.clone(),
            lines: Some(command.ranges.clone()),
            ..Meta::named(name)
        };
        self.graph.exec(exec, edges, &platform, meta, &caps)
    }
}

pub(super) fn tmpfs(dest: &str, size: i64) -> pb::Mount {
    pb::Mount {
        dest: dest.to_owned(),
        output: -1,
        mount_type: pb::MountType::Tmpfs.into(),
        tmpfs_opt: Some(pb::TmpfsOpt { size }),
        ..pb::Mount::default()
    }
}

/// Adds a secret and returns its id.
fn secret(mount: &Mount, out: &mut Mounts) -> Result<String> {
    let id = match (mount.source.as_str(), mount.id.as_str(), mount.target.as_str()) {
        ("", "", "") => return Err(Error::new("one of source, target required")),
        ("", "", target) => base(target).to_owned(),
        ("", id, _) => id.to_owned(),
        (source, _, _) => source.to_owned(),
    };
    out.has_secrets = true;
    if let Some(name) = &mount.env {
        out.masked.push(name.clone());
        out.secret_env.push(pb::SecretEnv { id: id.clone(), name: name.clone(), optional: !mount.required });
        if mount.target.is_empty() {
            return Ok(id);
        }
    }
    let dest = match mount.target.as_str() {
        "" => format!("/run/secrets/{}", base(&id)),
        target => target.to_owned(),
    };
    out.secrets.push(pb::Mount {
        input: -1,
        dest,
        mount_type: pb::MountType::Secret.into(),
        secret_opt: Some(pb::SecretOpt {
            id: id.clone(),
            uid: mount.uid.unwrap_or_default(),
            gid: mount.gid.unwrap_or_default(),
            mode: mount.mode.unwrap_or(0o400),
            optional: !mount.required,
        }),
        ..pb::Mount::default()
    });
    Ok(id)
}

fn ssh(mount: &Mount, out: &mut Mounts) -> Result<()> {
    if !mount.source.is_empty() {
        return Err(Error::new("ssh does not support source"));
    }
    out.ssh.push(pb::Mount {
        input: -1,
        dest: mount.target.clone(),
        mount_type: pb::MountType::Ssh.into(),
        ssh_opt: Some(pb::SshOpt {
            id: mount.id.clone(),
            uid: mount.uid.unwrap_or_default(),
            gid: mount.gid.unwrap_or_default(),
            mode: mount.mode.unwrap_or(0o600),
            optional: !mount.required,
        }),
        ..pb::Mount::default()
    });
    Ok(())
}

/// Gives sockets without a place one.
fn numbered(mut mounts: Vec<pb::Mount>) -> Vec<pb::Mount> {
    for (i, mount) in mounts.iter_mut().enumerate() {
        if mount.dest.is_empty() {
            mount.dest = format!("/run/buildkit/ssh_agent.{i}");
        }
    }
    mounts
}

fn caps(
    placed: &[(pb::Mount, Option<Edge>)],
    secret_env: &[pb::SecretEnv],
    secrets: bool,
    ssh: bool,
) -> Vec<&'static str> {
    let mut caps = vec!["exec.meta.base", "exec.meta.setsdefaultpath"];
    for (mount, edge) in placed {
        if !mount.selector.is_empty() {
            caps.push("exec.mount.selector");
        }
        match mount.mount_type() {
            pb::MountType::Cache => caps.extend(["exec.mount.cache", "exec.mount.cache.sharing"]),
            pb::MountType::Tmpfs => {
                caps.push("exec.mount.tmpfs");
                if mount.tmpfs_opt.is_some_and(|opt| opt.size > 0) {
                    caps.push("exec.mount.tmpfs.size");
                }
            }
            _ if edge.is_some() => caps.push("exec.mount.bind"),
            _ => {}
        }
    }
    if secrets {
        caps.push("exec.mount.secret");
    }
    if !secret_env.is_empty() {
        caps.push("exec.secretenv");
    }
    if ssh {
        caps.push("exec.mount.ssh");
    }
    caps
}

/// The first line of a document, and whether there are more.
fn summary(text: &str) -> String {
    let text = text.trim().replace("\r\n", "\n");
    match text.split_once('\n') {
        Some((first, _)) => format!("{first}..."),
        None => text,
    }
}
