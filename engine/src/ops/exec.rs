//! The exec op: one process over mounts, whose changes are the results.

mod emulation;
pub(crate) mod mounts;

use std::sync::Arc;

use async_trait::async_trait;
use kiln_executor::{
    ContainerId, DeviceEdits, LinuxResources, NetworkMode, Output, ProcessIo, ProcessSpec, SecurityMode,
    StepMount, Ulimit, requested,
};
use kiln_llb::pb;
use kiln_solver::{OpContext, OpError, ResultRef, Slot, Stream, VertexDigest};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::error::ExecError;
use crate::lending::{self, Lending};
use crate::load::not_registered;
use crate::ops::common;
use crate::ops::exec::emulation::Foreign;
use crate::ops::exec::mounts::{Prepared, StepMounts};
use crate::ops::keyed::Action;
use crate::resources::loosest;
use crate::worker::Worker;

/// Chunks of output on their way from the process to the log; a full channel makes the process wait.
const OUTPUT_CHUNKS: usize = 64;
const ROOT: &str = "/";

/// An exec op on a worker.
#[derive(Debug)]
pub(crate) struct ExecOp {
    pub(crate) worker: Arc<Worker>,
    pub(crate) op: pb::ExecOp,
    /// What its programs are made for.
    pub(crate) platform: Option<pb::Platform>,
    /// Limits of the build that made this op; those that the waiters set come first.
    pub(crate) resources: Option<pb::LinuxResources>,
    /// What the waiters know the op as.
    pub(crate) vertex: VertexDigest,
}

#[async_trait]
impl Action for ExecOp {
    async fn exec(
        &self,
        cx: &OpContext,
        inputs: Vec<Option<ResultRef>>,
    ) -> Result<Vec<Option<ResultRef>>, OpError> {
        let inputs = common::refs(&inputs)?;
        let lending = Lending::new(&self.worker, cx);
        let provider = common::provider(&self.worker, cx);
        common::unlazy_all(&inputs, &provider, cx).await?;

        let mut mounts = StepMounts::new(self, &inputs, &provider, &lending, cx);
        let outcome = async {
            mounts.prepare().await?;
            let mut process = self.process(cx, &lending).await?;
            let root = mounts.root.take().ok_or_else(|| OpError::failed(ExecError::NoRoot))?;
            let mut others = std::mem::take(&mut mounts.others);
            let foreign = emulation::prepare(&self.worker, self.platform.as_ref(), &mut process, &mut others);
            let foreign = foreign.await.map_err(OpError::failed)?;
            let stop = cx.cancel.child_token();
            let running = self.run(cx, &stop, root, others, process, foreign.as_ref());
            tokio::pin!(running);
            tokio::select! {
                ended = &mut running => ended,
                full = mounts.out_of_space() => {
                    stop.cancel();
                    running.await.map_err(|_stopped| OpError::failed(full))
                }
            }
        };
        let outcome = outcome.await;
        let prepared = mounts.close().await;
        outcome?;

        let mut results = Vec::new();
        for prepared in prepared {
            match prepared {
                Prepared::Writable(mutable) => {
                    results.push(Some(common::result(mutable.commit().await.map_err(OpError::failed)?)));
                }
                Prepared::Passed(input) => results.push(input.map(common::result)),
                Prepared::Held(_) | Prepared::Kept(_) => {}
            }
        }
        Ok(results)
    }

    fn slot(&self) -> Slot {
        Slot::Process
    }
}

impl ExecOp {
    /// The process, with what waiting clients lend it.
    pub(crate) async fn process(&self, cx: &OpContext, lending: &Lending) -> Result<ProcessSpec, OpError> {
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
                None => return Err(OpError::not_lent(ExecError::SecretNotFound { id: secret.id.clone() })),
            };
            env.push(format!("{}={value}", secret.name));
        }
        let devices = self.devices().await?;
        let limits = lending::resources(cx, &self.vertex);
        let resources = loosest(limits).or_else(|| self.resources.clone()).unwrap_or_default();
        let root_read_only = self.op.mounts.iter().any(|m| mounts::dest(&self.op, m) == ROOT && m.readonly);
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
            devices,
            remove_mount_stubs_recursive: meta.remove_mount_stubs_recursive,
        })
    }

    /// What the devices that the op names change about its container. Without grants of single devices they are as they
    /// were sent, and looked up here.
    async fn devices(&self) -> Result<DeviceEdits, OpError> {
        if self.op.cdi_devices.is_empty() {
            return Ok(DeviceEdits::default());
        }
        let (registry, asked) = (self.worker.devices.clone(), self.op.cdi_devices.clone());
        let looking = tokio::task::spawn_blocking(move || {
            let all = registry.list();
            let mut names: Vec<String> = Vec::new();
            for device in &asked {
                let found = requested(&all, &device.name);
                if found.is_empty() && !device.optional {
                    return Err(OpError::failed(ExecError::Device(not_registered(&device.name))));
                }
                for found in found {
                    if !names.contains(&found.name) {
                        names.push(found.name.clone());
                    }
                }
            }
            registry.edits(&names).map_err(OpError::failed)
        });
        looking.await.map_err(OpError::failed)?
    }

    async fn run(
        &self,
        cx: &OpContext,
        stop: &CancellationToken,
        root: StepMount,
        mounts: Vec<StepMount>,
        process: ProcessSpec,
        foreign: Option<&Foreign>,
    ) -> Result<(), OpError> {
        let id = ContainerId::new(common::random_id()).map_err(OpError::failed)?;
        let (output, mut chunks) = mpsc::channel(OUTPUT_CHUNKS);
        let args = self.args();
        let running =
            self.worker.executor.run(&id, root, mounts, process, ProcessIo::new(output), None, stop.clone());
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
            error => match foreign {
                Some(foreign) => foreign.explain(error),
                None => OpError::failed(error),
            },
        })?;
        if let Some(used) = exit.samples.last() {
            let (cpu, memory, network) =
                (used.cpu_stat.as_ref(), used.memory_stat.as_ref(), used.net_stat.as_ref());
            tracing::debug!(
                container = %id,
                code = exit.code,
                cpu_nanos = cpu.and_then(|cpu| cpu.usage_nanos),
                peak_bytes = memory.and_then(|memory| memory.peak),
                received_bytes = network.map(|network| network.rx_bytes),
                sent_bytes = network.map(|network| network.tx_bytes),
                "process ended"
            );
        }
        let valid = &self.op.meta.as_ref().map(|m| m.valid_exit_codes.clone()).unwrap_or_default();
        let good = if valid.is_empty() { exit.code == 0 } else { valid.contains(&exit.code) };
        if good {
            Ok(())
        } else {
            Err(OpError::failed(ExecError::Exit { args, code: exit.code, oom: exit.oom }))
        }
    }

    fn args(&self) -> String {
        self.op.meta.as_ref().map(|m| m.args.join(" ")).unwrap_or_default()
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
