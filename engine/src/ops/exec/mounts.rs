//! The mounts of a step: how each is made, and what becomes of it.

use kiln_cache::{MutableRef, RecordOptions, RecordType, Ref, Sharing};
use kiln_executor::StepMount;
use kiln_llb::pb::{self, MountType};
use kiln_snapshot::Mount;
use kiln_solver::{OpContext, OpError, OpErrorKind};

use crate::agents::AgentSockets;
use crate::error::ExecError;
use crate::lending::Lending;
use crate::ops::common::{self, Provider};
use crate::ops::exec::{ExecOp, ROOT};
use crate::secrets::SecretFiles;

/// A mount while the step runs, and what becomes of it.
pub(crate) enum Prepared {
    /// Changes are a result.
    Writable(MutableRef),
    /// The input again is a result.
    Passed(Option<Ref>),
    /// No result; the directory lives as long as the step.
    Held(MutableRef),
    /// No result; the input lives as long as the step.
    Kept(#[expect(dead_code, reason = "holds the input for the time of the step")] Option<Ref>),
}

/// The mounts of one step while they are put together and used.
pub(crate) struct StepMounts<'a> {
    /// The root filesystem.
    pub(crate) root: Option<StepMount>,
    /// All other mounts.
    pub(crate) others: Vec<StepMount>,
    op: &'a ExecOp,
    inputs: &'a [Option<Ref>],
    provider: &'a Provider,
    lending: &'a Lending,
    cx: &'a OpContext,
    secrets: SecretFiles,
    agents: AgentSockets,
    /// Mounts of one key share one directory within a step.
    caches: Vec<(String, MutableRef)>,
    /// In the order of the op's mounts.
    prepared: Vec<Option<Prepared>>,
}

impl<'a> StepMounts<'a> {
    pub(crate) fn new(
        op: &'a ExecOp,
        inputs: &'a [Option<Ref>],
        provider: &'a Provider,
        lending: &'a Lending,
        cx: &'a OpContext,
    ) -> Self {
        Self {
            root: None,
            others: Vec::new(),
            op,
            inputs,
            provider,
            lending,
            cx,
            secrets: SecretFiles::new(&op.worker.scratch),
            agents: AgentSockets::new(&op.worker.scratch),
            caches: Vec::new(),
            prepared: op.op.mounts.iter().map(|_| None).collect(),
        }
    }

    /// Prepares all mounts, in the order of their destinations.
    pub(crate) async fn prepare(&mut self) -> Result<(), OpError> {
        let op = self.op;
        let mut order: Vec<(String, usize, &pb::Mount)> = op
            .op
            .mounts
            .iter()
            .enumerate()
            .map(|(index, mount)| (dest(&op.op, mount), index, mount))
            .collect();
        order.sort_by(|a, b| a.0.cmp(&b.0));
        for (dest, index, mount) in order {
            let prepared = self.one(mount, &dest).await?;
            if let Some(place) = self.prepared.get_mut(index) {
                *place = prepared;
            }
        }
        Ok(())
    }

    /// Ends what served the mounts; gives what they leave, in the order of the op's mounts.
    pub(crate) async fn close(self) -> Vec<Prepared> {
        self.secrets.close().await;
        self.agents.close().await;
        // A directory that is a result may have no other holder.
        drop(self.caches);
        self.prepared.into_iter().flatten().collect()
    }

    /// Resolves when the step has to stop because the disk is full; says so.
    pub(crate) async fn out_of_space(&self) -> kiln_cache::Error {
        let writers = self.prepared.iter().flatten().filter_map(|prepared| match prepared {
            Prepared::Writable(mutable) | Prepared::Held(mutable) => Some(Box::pin(mutable.out_of_space())),
            Prepared::Passed(_) | Prepared::Kept(_) => None,
        });
        let writers: Vec<_> = writers.collect();
        if writers.is_empty() {
            return std::future::pending().await;
        }
        futures::future::select_all(writers).await.0
    }

    async fn one(&mut self, mount: &pb::Mount, dest: &str) -> Result<Option<Prepared>, OpError> {
        let kind = MountType::try_from(mount.mount_type).map_err(|_| {
            OpError::failed(ExecError::MountKind { dest: dest.to_owned(), kind: mount.mount_type })
        })?;
        if dest == ROOT && kind != MountType::Bind {
            return Err(OpError::failed(ExecError::RootType { kind: kind.as_str_name().to_owned() }));
        }
        match kind {
            MountType::Bind => self.bind(mount, dest).await.map(Some),
            MountType::Cache => self.cache(mount, dest).await.map(Some),
            MountType::Tmpfs => {
                let size = mount.tmpfs_opt.as_ref().map_or(0, |o| u64::try_from(o.size).unwrap_or(0));
                self.add(dest, mount.readonly, StepMount::tmpfs(dest, size));
                Ok(None)
            }
            MountType::Secret => self.secret(mount, dest).await.map(|()| None),
            MountType::Ssh => self.agent(mount, dest).await.map(|()| None),
        }
    }

    async fn bind(&mut self, mount: &pb::Mount, dest: &str) -> Result<Prepared, OpError> {
        let input = self.input(mount)?;
        let wants_output = mount.output >= 0;
        if mount.readonly && dest != ROOT && input.is_some() {
            let index = usize::try_from(mount.input).ok();
            let view = common::view(input.as_ref(), self.provider, index).await;
            let made = select(mount, dest, view.map_err(at(dest))?);
            self.add(dest, true, made);
            return Ok(if wants_output { Prepared::Passed(input) } else { Prepared::Kept(input) });
        }
        if dest == ROOT && input.is_none() && !mount.readonly && !wants_output {
            return Err(OpError::failed(ExecError::MountWithoutInput { dest: dest.to_owned() }));
        }
        // One without output is written to and thrown away. A read-only root needs it for the mount points too.
        let mutable = self.new_mutable(mount, dest, input.as_ref()).await?;
        let made = mutable.mount().await.map_err(|e| lost_or_failed(e, mount)).map_err(at(dest))?;
        self.add(dest, mount.readonly, select(mount, dest, made));
        Ok(if wants_output { Prepared::Writable(mutable) } else { Prepared::Held(mutable) })
    }

    async fn cache(&mut self, mount: &pb::Mount, dest: &str) -> Result<Prepared, OpError> {
        let input = self.input(mount)?;
        let cache = self.cache_dir(mount, dest, input.as_ref()).await?;
        let made = cache.mount().await.map_err(|e| lost_or_failed(e, mount)).map_err(at(dest))?;
        self.add(dest, mount.readonly, select(mount, dest, made));
        let passed = mount.output >= 0 && input.is_some();
        Ok(if passed { Prepared::Passed(input) } else { Prepared::Held(cache) })
    }

    async fn cache_dir(
        &mut self,
        mount: &pb::Mount,
        dest: &str,
        input: Option<&Ref>,
    ) -> Result<MutableRef, OpError> {
        let options = mount.cache_opt.clone().unwrap_or_default();
        let id = if options.id.is_empty() { dest.to_owned() } else { options.id };
        let key = input.map_or_else(|| id.clone(), |r| format!("{id}:{}", r.id()));
        if let Some((_, known)) = self.caches.iter().find(|(k, _)| *k == key) {
            return Ok(known.clone());
        }
        let sharing = match pb::CacheSharingOpt::try_from(options.sharing) {
            Ok(pb::CacheSharingOpt::Private) => Sharing::Private,
            Ok(pb::CacheSharingOpt::Locked) => Sharing::Locked,
            _ => Sharing::Shared,
        };
        let record = RecordOptions::new(
            format!("cached mount {dest} from exec {}", self.op.args()),
            RecordType::CacheMount,
        );
        let taken = tokio::select! {
            taken = self.op.worker.cache.cache_mount(&id, sharing, input, record) => taken,
            () = self.cx.cancel.cancelled() => return Err(OpError::cancelled()),
        };
        let taken = taken.map_err(OpError::failed).map_err(at(dest))?;
        self.caches.push((key, taken.clone()));
        Ok(taken)
    }

    async fn secret(&mut self, mount: &pb::Mount, dest: &str) -> Result<(), OpError> {
        let options = mount.secret_opt.as_ref().ok_or_else(|| OpError::failed(ExecError::SecretOptions))?;
        if options.id.is_empty() {
            return Err(OpError::failed(ExecError::SecretId));
        }
        match self.lending.secret(&options.id).await? {
            Some(data) => {
                let made = self.secrets.mount(dest, options, data).await.map_err(at(dest))?;
                self.add(dest, false, made);
                Ok(())
            }
            None if options.optional => Ok(()),
            None => Err(OpError::not_lent(ExecError::SecretNotFound { id: options.id.clone() })),
        }
    }

    async fn agent(&mut self, mount: &pb::Mount, dest: &str) -> Result<(), OpError> {
        let options = mount.ssh_opt.as_ref().ok_or_else(|| OpError::failed(ExecError::AgentOptions))?;
        let made = tokio::select! {
            made = self.agents.mount(dest, options, &self.lending.lender) => made?,
            () = self.cx.cancel.cancelled() => return Err(OpError::cancelled()),
        };
        if let Some(made) = made {
            self.add(dest, false, made);
        }
        Ok(())
    }

    async fn new_mutable(
        &self,
        mount: &pb::Mount,
        dest: &str,
        parent: Option<&Ref>,
    ) -> Result<MutableRef, OpError> {
        let options =
            RecordOptions::new(format!("mount {dest} from exec {}", self.op.args()), RecordType::Regular);
        let made = self.op.worker.cache.new_mutable(parent, options).await;
        made.map_err(|e| lost_or_failed(e, mount)).map_err(at(dest))
    }

    fn input(&self, mount: &pb::Mount) -> Result<Option<Ref>, OpError> {
        match usize::try_from(mount.input) {
            Err(_) => Ok(None),
            Ok(index) => {
                let input = self.inputs.get(index).cloned();
                input.ok_or_else(|| OpError::failed(ExecError::MissingInput { index }))
            }
        }
    }

    fn add(&mut self, dest: &str, read_only: bool, mount: StepMount) {
        let mount = if read_only { mount.read_only() } else { mount };
        if dest == ROOT { self.root = Some(mount) } else { self.others.push(mount) }
    }
}

/// The destination of a mount, absolute.
pub(crate) fn dest(op: &pb::ExecOp, mount: &pb::Mount) -> String {
    if mount.dest.starts_with('/') {
        return crate::fileop::clean(&mount.dest);
    }
    let cwd = op.meta.as_ref().map(|m| m.cwd.as_str()).unwrap_or_default();
    crate::fileop::clean(&format!("{cwd}/{}", mount.dest))
}

/// The part of a state that a mount shows.
fn select(mount: &pb::Mount, dest: &str, state: Mount) -> StepMount {
    let made = StepMount::snapshot(dest, state);
    match mount.selector.as_str() {
        "" | "/" => made,
        selector => made.select(selector),
    }
}

/// An error of the catalogue that concerns the input of a mount, if it has one.
fn lost_or_failed(error: kiln_cache::Error, mount: &pb::Mount) -> OpError {
    common::lost_or_failed(error, usize::try_from(mount.input).ok())
}

/// Says at which mount something failed. What follows from an error of another kind stays as it is.
fn at(dest: &str) -> impl Fn(OpError) -> OpError + '_ {
    move |error| match error.kind() {
        OpErrorKind::Failed => {
            OpError::failed(ExecError::Mount { dest: dest.to_owned(), source: Box::new(error) })
        }
        _ => error,
    }
}
