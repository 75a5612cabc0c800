//! Processes.

use std::collections::BTreeSet;

use crate::pb;
use crate::state::{Body, Output, State, Vertex, VertexMeta, paths};

/// A process to run.
#[derive(Clone, Debug, Default)]
pub struct Exec {
    op: pb::ExecOp,
    readonly_root: bool,
    mounts: Vec<(String, State, MountOptions)>,
    secrets: Vec<SecretFile>,
    ssh: Vec<SshSocket>,
    meta: VertexMeta,
}

/// How a state is mounted.
#[derive(Clone, Debug, Default)]
pub struct MountOptions {
    /// Path inside the state.
    pub selector: String,
    /// The process cannot write; the result is the state itself.
    pub readonly: bool,
    /// What the process writes is dropped.
    pub no_output: bool,
    /// Whether the input may be compared by content.
    pub content_cache: pb::MountContentCache,
    /// Makes it a cache mount with this id and sharing.
    pub cache: Option<(String, pb::CacheSharingOpt)>,
    /// Makes it a tmpfs of this many bytes, 0 for no limit.
    pub tmpfs: Option<i64>,
}

/// A secret for a process.
#[derive(Clone, Debug, Default)]
pub struct SecretFile {
    /// Id the client knows it by.
    pub id: String,
    /// Path of the file, if it should be one.
    pub target: Option<String>,
    /// Name of the variable, if it should be one.
    pub env: Option<String>,
    /// Owner of the file.
    pub uid: u32,
    /// Group of the file.
    pub gid: u32,
    /// Mode of the file, 0400 if `None`.
    pub mode: Option<u32>,
    /// It may be absent.
    pub optional: bool,
}

/// A forwarded SSH agent.
#[derive(Clone, Debug, Default)]
pub struct SshSocket {
    /// Id the client knows it by.
    pub id: String,
    /// Path of the socket; `None` picks one by position.
    pub target: Option<String>,
    /// Owner of the socket.
    pub uid: u32,
    /// Group of the socket.
    pub gid: u32,
    /// Mode of the socket, 0600 if `None`.
    pub mode: Option<u32>,
    /// It may be absent.
    pub optional: bool,
}

/// The file systems after a process ran.
#[derive(Clone, Debug)]
pub struct ExecState {
    root: State,
    mounts: Vec<(String, Option<Output>)>,
}

impl ExecState {
    /// Returns the root file system.
    pub fn root(self) -> State {
        self.root
    }

    /// Returns what is mounted at `dest` afterwards, `None` if nothing is or it cannot be used.
    pub fn mount(&self, dest: &str) -> Option<State> {
        let (_, output) = self.mounts.iter().find(|(d, _)| d == dest)?;
        output.as_ref().map(|output| State { output: Some(output.clone()), ..State::default() })
    }
}

impl Exec {
    /// Runs `args`.
    pub fn new(args: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let args = args.into_iter().map(Into::into).collect();
        let meta = pb::Meta { args, remove_mount_stubs_recursive: true, ..Default::default() };
        Self { op: pb::ExecOp { meta: Some(meta), ..Default::default() }, ..Self::default() }
    }

    /// Mounts `state` at `dest`.
    #[must_use]
    pub fn mount(mut self, dest: &str, state: &State, options: MountOptions) -> Self {
        self.mounts.push((dest.to_owned(), state.clone(), options));
        self
    }

    /// Makes the root file system read-only.
    #[must_use]
    pub fn readonly_root(mut self) -> Self {
        self.readonly_root = true;
        self
    }

    /// Hands over a secret.
    #[must_use]
    pub fn secret(mut self, secret: SecretFile) -> Self {
        self.secrets.push(secret);
        self
    }

    /// Forwards an SSH agent.
    #[must_use]
    pub fn ssh(mut self, socket: SshSocket) -> Self {
        self.ssh.push(socket);
        self
    }

    /// Sets network and security mode.
    #[must_use]
    pub fn confine(mut self, network: pb::NetMode, security: pb::SecurityMode) -> Self {
        self.op.set_network(network);
        self.op.set_security(security);
        self
    }

    /// Asks for a device.
    #[must_use]
    pub fn device(mut self, name: &str, optional: bool) -> Self {
        self.op.cdi_devices.push(pb::CdiDevice { name: name.to_owned(), optional });
        self
    }

    /// Changes the process: hosts, limits, proxies and so on. Arguments, environment, directory and user
    /// come from the state.
    #[must_use]
    pub fn process(mut self, change: impl FnOnce(&mut pb::Meta)) -> Self {
        change(self.op.meta.get_or_insert_default());
        self
    }

    /// Sets what is known besides the definition.
    #[must_use]
    pub fn meta(mut self, meta: VertexMeta) -> Self {
        self.meta = meta;
        self
    }

    pub(super) fn into_state(mut self, state: &State) -> ExecState {
        let root = MountOptions { readonly: self.readonly_root, ..MountOptions::default() };
        self.mounts.insert(0, ("/".to_owned(), state.clone(), root));
        self.mounts.sort_by(|a, b| a.0.cmp(&b.0));
        let caps = self.caps();
        self.fill_process(state);
        let mut inputs = Vec::new();
        let mut outputs = Vec::new();
        let mut next_output = 0;
        for (dest, source, options) in &self.mounts {
            let mount = bind(dest, source, options, &mut next_output);
            let kept = mount.output;
            outputs.push((dest.clone(), kept, options.readonly.then(|| source.output.clone()).flatten()));
            inputs.push(if options.tmpfs.is_some() { None } else { source.output.clone() });
            self.op.mounts.push(mount);
        }
        self.op.mounts.extend(self.secrets.iter().filter_map(secret_mount));
        self.op.mounts.extend(self.ssh.iter().enumerate().map(ssh_mount));
        self.op.secretenv.extend(self.secrets.iter().filter_map(|secret| {
            let name = secret.env.clone()?;
            Some(pb::SecretEnv { id: secret.id.clone(), name, optional: secret.optional })
        }));
        let mut meta = self.meta;
        if meta.platform.is_none() {
            meta.platform.clone_from(&state.platform);
        }
        let vertex = std::sync::Arc::new(Vertex { body: Body::Exec(Box::new(self.op)), inputs, meta, caps });
        let mounts: Vec<(String, Option<Output>)> = outputs
            .into_iter()
            .map(|(dest, index, source)| {
                let own = (index >= 0).then(|| Output { vertex: vertex.clone(), index });
                (dest, source.or(own))
            })
            .collect();
        let root = mounts.iter().find(|(dest, _)| dest == "/").and_then(|(_, output)| output.clone());
        ExecState { root: state.with_output(root), mounts }
    }

    fn fill_process(&mut self, state: &State) {
        let meta = self.op.meta.get_or_insert_default();
        let mut env = state.env.clone();
        if let Some(first) = self.ssh.first()
            && env.iter().all(|(key, _)| key != "SSH_AUTH_SOCK")
        {
            env.push(("SSH_AUTH_SOCK".to_owned(), ssh_target(0, first)));
        }
        meta.env = env.into_iter().map(|(key, value)| format!("{key}={value}")).collect();
        meta.cwd = paths::absolute("/", state.cwd(), false);
        meta.user.clone_from(&state.user);
    }

    fn caps(&self) -> BTreeSet<&'static str> {
        let mut caps = BTreeSet::from(["exec.meta.base"]);
        let mut add = |wanted: bool, cap| {
            if wanted {
                caps.insert(cap);
            }
        };
        if let Some(meta) = &self.op.meta {
            add(!meta.ulimit.is_empty(), "exec.meta.ulimit");
            add(meta.proxy_env.is_some(), "exec.meta.proxyenv");
            add(!meta.valid_exit_codes.is_empty(), "exec.validexitcode");
        }
        add(self.op.network != 0, "exec.meta.network");
        add(self.op.security != 0, "exec.meta.security");
        add(!self.op.cdi_devices.is_empty(), "exec.meta.cdi");
        add(self.meta.linux_resources.is_some(), "exec.meta.linux.resources");
        for (_, source, options) in &self.mounts {
            add(!options.selector.is_empty(), "exec.mount.selector");
            add(options.cache.is_some(), "exec.mount.cache");
            add(options.cache.is_some(), "exec.mount.cache.sharing");
            let tmpfs = options.tmpfs.filter(|_| options.cache.is_none());
            add(tmpfs.is_some(), "exec.mount.tmpfs");
            add(tmpfs.is_some_and(|size| size > 0), "exec.mount.tmpfs.size");
            let bind = options.cache.is_none() && options.tmpfs.is_none();
            add(bind && source.output.is_some(), "exec.mount.bind");
            add(options.content_cache != pb::MountContentCache::Default, "exec.mount.cache.content");
        }
        add(!self.secrets.is_empty(), "exec.mount.secret");
        add(self.secrets.iter().any(|s| s.env.is_some()), "exec.secretenv");
        add(!self.ssh.is_empty(), "exec.mount.ssh");
        caps
    }
}

fn bind(dest: &str, source: &State, options: &MountOptions, next_output: &mut i64) -> pb::Mount {
    let discards =
        options.no_output || options.readonly || options.cache.is_some() || options.tmpfs.is_some();
    let mut mount = pb::Mount {
        input: if source.output.is_some() { 0 } else { -1 },
        selector: options.selector.clone(),
        dest: dest.to_owned(),
        output: if discards { -1 } else { *next_output },
        readonly: options.readonly,
        ..Default::default()
    };
    if !discards {
        *next_output += 1;
    }
    if let Some((id, sharing)) = &options.cache {
        mount.set_mount_type(pb::MountType::Cache);
        mount.cache_opt = Some(pb::CacheOpt { id: id.clone(), sharing: *sharing as i32 });
    }
    mount.set_content_cache(options.content_cache);
    if let Some(size) = options.tmpfs {
        mount.set_mount_type(pb::MountType::Tmpfs);
        mount.tmpfs_opt = Some(pb::TmpfsOpt { size });
    }
    mount
}

fn secret_mount(secret: &SecretFile) -> Option<pb::Mount> {
    let options = pb::SecretOpt {
        id: secret.id.clone(),
        uid: secret.uid,
        gid: secret.gid,
        mode: secret.mode.unwrap_or(0o400),
        optional: secret.optional,
    };
    Some(pb::Mount {
        input: -1,
        dest: secret.target.clone()?,
        mount_type: pb::MountType::Secret as i32,
        secret_opt: Some(options),
        ..Default::default()
    })
}

fn ssh_mount((position, socket): (usize, &SshSocket)) -> pb::Mount {
    let options = pb::SshOpt {
        id: socket.id.clone(),
        uid: socket.uid,
        gid: socket.gid,
        mode: socket.mode.unwrap_or(0o600),
        optional: socket.optional,
    };
    pb::Mount {
        input: -1,
        dest: ssh_target(position, socket),
        mount_type: pb::MountType::Ssh as i32,
        ssh_opt: Some(options),
        ..Default::default()
    }
}

fn ssh_target(position: usize, socket: &SshSocket) -> String {
    socket.target.clone().unwrap_or_else(|| format!("/run/buildkit/ssh_agent.{position}"))
}
