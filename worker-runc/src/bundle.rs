use std::path::{Path, PathBuf};

use kiln_executor::spec::{self, Machine, Surroundings};
use kiln_executor::{
    ContainerId, Error, EtcFiles, MountStubs, NetworkNamespace, ProcessSpec, Result, StepMount, find_user,
    oci,
};
use kiln_rootdir::Root;

use crate::mounts::HostMounts;

/// The file in a bundle that names its control group.
pub(crate) const GROUP_FILE: &str = "cgroup";

/// The directory of one container, with everything mounted that it needs.
#[derive(Debug)]
pub(crate) struct Bundle {
    dir: PathBuf,
    pid_file: PathBuf,
    spec: oci::Spec,
    // In this order they are dropped: the handle on the root before the mounts below it.
    stubs: Option<MountStubs>,
    root: Root,
    mounts: HostMounts,
}

/// What a bundle is made from.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) id: ContainerId,
    pub(crate) root: StepMount,
    pub(crate) mounts: Vec<StepMount>,
    pub(crate) process: ProcessSpec,
    /// The name of the file for the number of the first process.
    pub(crate) pid_name: String,
}

impl Bundle {
    /// Makes the bundle in `dir`, which must not be there. What was made until an error is taken away again.
    /// Blocks.
    pub(crate) fn make(
        dir: &Path,
        request: Request,
        network: NetworkNamespace,
        etc: &EtcFiles,
        machine: &Machine,
    ) -> Result<Self> {
        use std::os::unix::fs::DirBuilderExt as _;
        let made = std::fs::DirBuilder::new().mode(0o711).create(dir);
        made.map_err(|source| Error::io("make directory", dir, source))?;
        Self::fill(dir, request, network, etc, machine).inspect_err(|_| remove_dir(dir))
    }

    fn fill(
        dir: &Path,
        request: Request,
        network: NetworkNamespace,
        etc: &EtcFiles,
        machine: &Machine,
    ) -> Result<Self> {
        let Request { id, root: root_mount, mounts: asked, mut process, pid_name } = request;
        process.read_only_root |= root_mount.read_only;
        let rootfs = dir.join("rootfs");
        let mut mounts = HostMounts::default();
        mounts.add_root(&root_mount, &rootfs)?;
        let root = Root::open(&rootfs).map_err(Error::root("open"))?;
        let user = find_user(&root, &process.user)?;
        let mut own = Vec::with_capacity(asked.len());
        for (number, mount) in asked.iter().enumerate() {
            own.push(mounts.add(mount, dir, number)?);
        }
        let of_devices = process.devices.mounts.iter().map(|mount| mount.destination.as_path());
        let dests = asked.iter().map(|mount| mount.dest.as_path()).chain(of_devices);
        let stubs = MountStubs::note(&root, dests, process.remove_mount_stubs_recursive);
        spec::make_working_dir(&root, &process, &user)?;
        let host_network = network == NetworkNamespace::Host;
        let spec = spec::make(
            &process,
            Surroundings {
                id: &id,
                rootfs: &rootfs,
                user,
                mounts: own,
                hosts: &etc.hosts(&process, dir)?,
                resolv_conf: &etc.resolv_conf(host_network)?,
                network: &network,
                machine,
            },
        )?;
        // What a later process needs to know to clean up.
        let group = spec.linux.cgroups_path.as_deref().unwrap_or_default();
        let group_file = dir.join(GROUP_FILE);
        std::fs::write(&group_file, group).map_err(|source| Error::io("write", &group_file, source))?;
        let pid_file = dir.join(pid_name);
        Ok(Self { dir: dir.to_owned(), pid_file, spec, stubs: Some(stubs), root, mounts })
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn spec(&self) -> &oci::Spec {
        &self.spec
    }

    /// Writes the spec where a runtime looks for it. Blocks.
    pub(crate) fn write_spec(&self) -> Result<()> {
        write_json(&self.dir.join("config.json"), &self.spec)
    }

    /// Where the runtime writes the number of the container's first process.
    pub(crate) fn pid_file(&self) -> &Path {
        &self.pid_file
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.dir.join("runc-log.json")
    }

    /// Takes mount points and mounts away. Blocks.
    pub(crate) fn unmount(mut self) {
        if let Some(stubs) = self.stubs.take() {
            stubs.remove(&self.root);
        }
        let Self { root, mounts, .. } = self;
        drop(root);
        drop(mounts);
    }
}

pub(crate) fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<()> {
    let json = serde_json::to_vec(value).map_err(|error| Error::io("write", path, error))?;
    std::fs::write(path, json).map_err(|source| Error::io("write", path, source))
}

/// Removes a directory of ours, and whatever is in it; mounts are not entered.
pub(crate) fn remove_dir(dir: &Path) {
    let (Some(parent), Some(name)) = (dir.parent(), dir.file_name()) else { return };
    if let Err(error) = Root::open(parent).and_then(|root| root.remove_all(name)) {
        tracing::warn!(dir = %dir.display(), %error, "directory left behind");
    }
}
