//! The exec op: one process over mounts, whose changes are the results.

use std::sync::Arc;

use async_trait::async_trait;
use kiln_cache::{MutableRef, RecordOptions, RecordType, Ref, Sharing};
use kiln_digest::Digest;
use kiln_executor::{
    ContainerId, LinuxResources, NetworkMode, Output, ProcessIo, ProcessSpec, SecurityMode, StepMount, Ulimit,
};
use kiln_llb::pb;
use kiln_snapshot::Mount;
use kiln_solver::{CacheMap, CacheMapPart, Op, OpContext, OpError, ResultRef, Slot, Stream};
use tokio::sync::mpsc;

use crate::error::ExecError;
use crate::keys::OpKey;
use crate::lending::Lending;
use crate::ops::common::{self, Provider};
use crate::secrets::SecretFiles;
use crate::worker::Worker;

/// Chunks of output on their way from the process to the log; a full channel makes the process wait.
const OUTPUT_CHUNKS: usize = 64;
const ROOT: &str = "/";

/// An exec op on a worker.
#[derive(Debug)]
pub(crate) struct ExecOp {
    pub(crate) worker: Arc<Worker>,
    pub(crate) op: pb::ExecOp,
    pub(crate) key: OpKey,
    pub(crate) resources: Option<pb::LinuxResources>,
    /// Cache mounts to throw away before use.
    pub(crate) pruned_caches: Vec<String>,
}

/// A mount while the step runs, and what becomes of it.
enum Prepared {
    /// Changes are a result.
    Writable(MutableRef),
    /// The input again is a result.
    Passed(Option<Ref>),
    /// No result; the directory lives as long as the step.
    Held(#[expect(dead_code, reason = "holds the directory for the time of the step")] MutableRef),
    /// No result; the input lives as long as the step.
    Kept(#[expect(dead_code, reason = "holds the input for the time of the step")] Option<Ref>),
}

impl Prepared {
    fn has_result(&self) -> bool {
        matches!(self, Self::Writable(_) | Self::Passed(_))
    }
}

#[async_trait]
impl Op for ExecOp {
    async fn cache_map(&self, _cx: &OpContext, _index: usize) -> Result<CacheMapPart, OpError> {
        Ok(self.key.part())
    }

    fn known_map(&self) -> Option<CacheMap> {
        Some(self.key.map())
    }

    async fn content_key(
        &self,
        cx: &OpContext,
        input: usize,
        result: Option<&ResultRef>,
    ) -> Result<Digest, OpError> {
        common::content_key(&self.worker, cx, &self.key, input, result).await
    }

    async fn exec(
        &self,
        cx: &OpContext,
        inputs: Vec<Option<ResultRef>>,
    ) -> Result<Vec<Option<ResultRef>>, OpError> {
        let inputs = common::refs(&inputs)?;
        if !self.pruned_caches.is_empty() {
            self.worker.cache.prune_cache_mounts(&self.pruned_caches).await.map_err(OpError::failed)?;
        }
        let lending = Lending::new(&self.worker, cx);
        let provider = common::provider(&self.worker, cx);
        common::unlazy_all(&inputs, &provider, cx).await?;

        let mut step = Step::default();
        let mut secrets = SecretFiles::new(&self.worker.scratch);
        let mut order: Vec<usize> = (0..self.op.mounts.len()).collect();
        order.sort_by_key(|i| dest(&self.op, &self.op.mounts[*i]));
        let mut prepared: Vec<Option<Prepared>> = (0..self.op.mounts.len()).map(|_| None).collect();
        let mut caches: Vec<(String, MutableRef)> = Vec::new();
        for index in order {
            let mount = &self.op.mounts[index];
            prepared[index] = self
                .prepare(mount, &inputs, &provider, &lending, &mut secrets, &mut caches, &mut step, cx)
                .await?;
        }
        let process = self.process(&lending).await?;
        let root = step.root.ok_or_else(|| OpError::failed(ExecError::NoRoot))?;
        let outcome = self.run(cx, root, step.mounts, process).await;
        secrets.close().await;
        outcome?;

        let mut results = Vec::new();
        for prepared in prepared.into_iter().flatten().filter(Prepared::has_result) {
            results.push(match prepared {
                Prepared::Writable(mutable) => {
                    Some(common::result(mutable.commit().await.map_err(OpError::failed)?))
                }
                Prepared::Passed(input) => input.map(common::result),
                Prepared::Held(_) | Prepared::Kept(_) => None,
            });
        }
        Ok(results)
    }

    fn slot(&self) -> Slot {
        Slot::Process
    }
}

#[derive(Default)]
struct Step {
    root: Option<StepMount>,
    mounts: Vec<StepMount>,
}

impl Step {
    fn add(&mut self, dest: &str, mount: StepMount) {
        if dest == ROOT { self.root = Some(mount) } else { self.mounts.push(mount) }
    }
}

impl ExecOp {
    #[expect(clippy::too_many_arguments, reason = "the parts of one step while it is put together")]
    async fn prepare(
        &self,
        mount: &pb::Mount,
        inputs: &[Option<Ref>],
        provider: &Provider,
        lending: &Lending,
        secrets: &mut SecretFiles,
        caches: &mut Vec<(String, MutableRef)>,
        step: &mut Step,
        cx: &OpContext,
    ) -> Result<Option<Prepared>, OpError> {
        let dest = dest(&self.op, mount);
        let kind = pb::MountType::try_from(mount.mount_type).unwrap_or(pb::MountType::Bind);
        if dest == ROOT && kind != pb::MountType::Bind {
            return Err(OpError::failed(ExecError::RootType { kind: kind.as_str_name().to_owned() }));
        }
        let input = input(mount, inputs)?;
        let with = |mount_of: Mount| {
            let made = StepMount::snapshot(&dest, mount_of);
            match mount.selector.as_str() {
                "" | "/" => made,
                selector => made.select(selector),
            }
        };
        let wants_output = mount.output >= 0;
        match kind {
            pb::MountType::Bind if wants_output && mount.readonly && dest != ROOT && input.is_some() => {
                step.add(&dest, with(common::view(input.as_ref(), provider).await?).read_only());
                Ok(Some(Prepared::Passed(input)))
            }
            pb::MountType::Bind if wants_output => {
                let mutable = self.new_mutable(&dest, input.as_ref()).await?;
                let made = with(mutable.mount().await.map_err(OpError::failed)?);
                step.add(&dest, if mount.readonly { made.read_only() } else { made });
                Ok(Some(Prepared::Writable(mutable)))
            }
            pb::MountType::Bind if mount.readonly && dest != ROOT && input.is_some() => {
                step.add(&dest, with(common::view(input.as_ref(), provider).await?).read_only());
                Ok(Some(Prepared::Kept(input)))
            }
            pb::MountType::Bind if dest == ROOT && input.is_none() && !mount.readonly => {
                Err(OpError::failed(ExecError::MountWithoutInput { dest }))
            }
            pb::MountType::Bind => {
                // Written to and thrown away; a root without output needs one for the mount points too.
                let mutable = self.new_mutable(&dest, input.as_ref()).await?;
                let made = with(mutable.mount().await.map_err(OpError::failed)?);
                step.add(&dest, if mount.readonly { made.read_only() } else { made });
                Ok(Some(Prepared::Held(mutable)))
            }
            pb::MountType::Cache => {
                let cache = self.cache_mount(mount, &dest, input.as_ref(), caches, cx).await?;
                let made = with(cache.mount().await.map_err(OpError::failed)?);
                step.add(&dest, if mount.readonly { made.read_only() } else { made });
                Ok(Some(if wants_output && input.is_some() {
                    Prepared::Passed(input)
                } else {
                    Prepared::Held(cache)
                }))
            }
            pb::MountType::Tmpfs => {
                let size = mount.tmpfs_opt.as_ref().map_or(0, |o| u64::try_from(o.size).unwrap_or(0));
                let made = StepMount::tmpfs(&dest, size);
                step.add(&dest, if mount.readonly { made.read_only() } else { made });
                Ok(None)
            }
            pb::MountType::Secret => {
                let options =
                    mount.secret_opt.as_ref().ok_or_else(|| OpError::failed(ExecError::SecretOptions))?;
                if options.id.is_empty() {
                    return Err(OpError::failed(ExecError::SecretId));
                }
                match lending.secret(&options.id).await? {
                    Some(data) => step.add(&dest, secrets.mount(&dest, options, data).await?),
                    None if options.optional => {}
                    None => {
                        return Err(OpError::failed(ExecError::SecretNotFound { id: options.id.clone() }));
                    }
                }
                Ok(None)
            }
            pb::MountType::Ssh => Err(OpError::failed(ExecError::Unsupported { what: "ssh mounts" })),
        }
    }

    async fn new_mutable(&self, dest: &str, parent: Option<&Ref>) -> Result<MutableRef, OpError> {
        let options =
            RecordOptions::new(format!("mount {dest} from exec {}", self.op_args()), RecordType::Regular);
        self.worker.cache.new_mutable(parent, options).await.map_err(|e| common::lost_or_failed(e, None))
    }

    async fn cache_mount(
        &self,
        mount: &pb::Mount,
        dest: &str,
        input: Option<&Ref>,
        caches: &mut Vec<(String, MutableRef)>,
        cx: &OpContext,
    ) -> Result<MutableRef, OpError> {
        let options = mount.cache_opt.clone().unwrap_or_default();
        let id = if options.id.is_empty() { dest.to_owned() } else { options.id };
        let key = input.map_or_else(|| id.clone(), |r| format!("{id}:{}", r.id()));
        if let Some((_, known)) = caches.iter().find(|(k, _)| *k == key) {
            return Ok(known.clone());
        }
        let sharing = match pb::CacheSharingOpt::try_from(options.sharing) {
            Ok(pb::CacheSharingOpt::Private) => Sharing::Private,
            Ok(pb::CacheSharingOpt::Locked) => Sharing::Locked,
            _ => Sharing::Shared,
        };
        let record = RecordOptions::new(
            format!("cached mount {dest} from exec {}", self.op_args()),
            RecordType::CacheMount,
        );
        let taken = tokio::select! {
            taken = self.worker.cache.cache_mount(&id, sharing, input, record) => taken.map_err(OpError::failed)?,
            () = cx.cancel.cancelled() => return Err(OpError::cancelled()),
        };
        caches.push((key, taken.clone()));
        Ok(taken)
    }

    async fn process(&self, lending: &Lending) -> Result<ProcessSpec, OpError> {
        let meta = self.op.meta.clone().unwrap_or_default();
        let mut env = meta.env;
        for (names, value) in proxies(meta.proxy_env.as_ref()) {
            env.extend(names.iter().map(|name| format!("{name}={value}")));
        }
        for secret in &self.op.secretenv {
            if secret.id.is_empty() {
                return Err(OpError::failed(ExecError::SecretEnvId { name: secret.name.clone() }));
            }
            let value = match lending.secret(&secret.id).await? {
                Some(data) => String::from_utf8_lossy(&data).into_owned(),
                None if secret.optional => String::new(),
                None => return Err(OpError::failed(ExecError::SecretNotFound { id: secret.id.clone() })),
            };
            env.push(format!("{}={value}", secret.name));
        }
        if !self.op.cdi_devices.iter().all(|d| d.optional) {
            return Err(OpError::failed(ExecError::Unsupported { what: "devices" }));
        }
        let resources = self.resources.clone().unwrap_or_default();
        let root_read_only = self.op.mounts.iter().any(|m| m.dest == ROOT && m.readonly);
        Ok(ProcessSpec {
            args: meta.args,
            env,
            cwd: meta.cwd,
            user: meta.user,
            tty: false,
            hostname: Some(meta.hostname).filter(|h| !h.is_empty()),
            extra_hosts: meta.extra_hosts.into_iter().map(|h| (h.host, h.ip)).collect(),
            ulimits: meta
                .ulimit
                .into_iter()
                .map(|u| Ulimit { name: u.name, soft: u.soft.cast_unsigned(), hard: u.hard.cast_unsigned() })
                .collect(),
            network: match pb::NetMode::try_from(self.op.network) {
                Ok(pb::NetMode::Host) => NetworkMode::Host,
                Ok(pb::NetMode::None) => NetworkMode::None,
                _ => NetworkMode::Sandbox,
            },
            security: match pb::SecurityMode::try_from(self.op.security) {
                Ok(pb::SecurityMode::Insecure) => SecurityMode::Insecure,
                _ => SecurityMode::Sandbox,
            },
            cgroup_parent: Some(meta.cgroup_parent).filter(|c| !c.is_empty()),
            read_only_root: root_read_only,
            resources: LinuxResources {
                memory: resources.memory,
                memory_swap: resources.memory_swap,
                cpu_shares: resources.cpu_shares.cast_signed(),
                cpu_quota: resources.cpu_quota,
                cpu_period: resources.cpu_period.cast_signed(),
                cpuset_cpus: resources.cpuset_cpus,
                cpuset_mems: resources.cpuset_mems,
            },
            remove_mount_stubs_recursive: meta.remove_mount_stubs_recursive,
        })
    }

    async fn run(
        &self,
        cx: &OpContext,
        root: StepMount,
        mounts: Vec<StepMount>,
        process: ProcessSpec,
    ) -> Result<(), OpError> {
        let id = ContainerId::new(common::random_id()).map_err(OpError::failed)?;
        let (output, mut chunks) = mpsc::channel(OUTPUT_CHUNKS);
        let args = process.args.join(" ");
        let running = self.worker.executor.run(
            &id,
            root,
            mounts,
            process,
            ProcessIo::new(output),
            None,
            cx.cancel.clone(),
        );
        let logging = async {
            while let Some(chunk) = chunks.recv().await {
                match chunk {
                    Output::Stdout(data) => cx.progress.log(Stream::Stdout, &data),
                    Output::Stderr(data) => cx.progress.log(Stream::Stderr, &data),
                }
            }
        };
        let (exit, ()) = tokio::join!(running, logging);
        let exit = exit.map_err(|error| match error {
            kiln_executor::Error::Cancelled => OpError::cancelled(),
            error => OpError::failed(error),
        })?;
        let valid = &self.op.meta.as_ref().map(|m| m.valid_exit_codes.clone()).unwrap_or_default();
        let good = if valid.is_empty() { exit.code == 0 } else { valid.contains(&exit.code) };
        if good {
            Ok(())
        } else {
            Err(OpError::failed(ExecError::Exit { args, code: exit.code, oom: exit.oom }))
        }
    }

    fn op_args(&self) -> String {
        self.op.meta.as_ref().map(|m| m.args.join(" ")).unwrap_or_default()
    }
}

/// The destination of a mount, absolute.
fn dest(op: &pb::ExecOp, mount: &pb::Mount) -> String {
    if mount.dest.starts_with('/') {
        return crate::fileop::clean(&mount.dest);
    }
    let cwd = op.meta.as_ref().map(|m| m.cwd.as_str()).unwrap_or_default();
    crate::fileop::clean(&format!("{cwd}/{}", mount.dest))
}

fn input(mount: &pb::Mount, inputs: &[Option<Ref>]) -> Result<Option<Ref>, OpError> {
    match usize::try_from(mount.input) {
        Err(_) => Ok(None),
        Ok(index) => {
            inputs.get(index).cloned().ok_or_else(|| OpError::failed(ExecError::MissingInput { index }))
        }
    }
}

fn proxies(proxy: Option<&pb::ProxyEnv>) -> Vec<([&'static str; 2], String)> {
    let Some(proxy) = proxy else { return Vec::new() };
    [
        (["HTTP_PROXY", "http_proxy"], &proxy.http_proxy),
        (["HTTPS_PROXY", "https_proxy"], &proxy.https_proxy),
        (["FTP_PROXY", "ftp_proxy"], &proxy.ftp_proxy),
        (["NO_PROXY", "no_proxy"], &proxy.no_proxy),
        (["ALL_PROXY", "all_proxy"], &proxy.all_proxy),
    ]
    .into_iter()
    .filter(|(_, value)| !value.is_empty())
    .map(|(names, value)| (names, value.clone()))
    .collect()
}
