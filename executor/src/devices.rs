//! Devices of the host that steps can ask for.

use std::collections::BTreeMap;
use std::fmt;

use crate::error::{Error, Result};
use crate::oci;

/// Names the class of a device that a step can ask for instead of a name.
const CLASS: &str = "org.mobyproject.buildkit.device.class";

/// A device that a step can be given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// `vendor/class=name`.
    pub name: String,
    /// What is said about it.
    pub annotations: BTreeMap<String, String>,
    /// Whether a build may have it without asking.
    pub auto_allow: bool,
}

/// What devices change about a step's container.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DeviceEdits {
    /// `NAME=value`, after the step's own.
    pub env: Vec<String>,
    /// Nodes in `/dev`.
    pub nodes: Vec<DeviceNode>,
    /// Files and directories of the host.
    pub mounts: Vec<oci::Mount>,
    /// Groups that the process is in besides its own.
    pub groups: Vec<u32>,
}

/// A node in `/dev`, and the right to use it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "fields are those of the runtime specification")]
pub struct DeviceNode {
    pub path: String,
    pub kind: String,
    pub major: i64,
    pub minor: i64,
    pub file_mode: u32,
    /// The step's user if there is none.
    pub uid: Option<u32>,
    /// Likewise.
    pub gid: Option<u32>,
    /// Of `r`, `w` and `m`, those that are allowed.
    pub access: String,
}

/// Gives devices of the host to steps.
///
/// 1. `list` is what there is now, by name, each name once.
/// 2. `edits` of names from `list` is all that the devices need, or an error that names the one that cannot be given:
///    nothing is left out in silence.
pub trait Devices: fmt::Debug + Send + Sync + 'static {
    /// What there is. Blocks.
    fn list(&self) -> Vec<Device>;

    /// What these change about a container. Blocks.
    ///
    /// # Errors
    /// [`Error::Device`].
    fn edits(&self, names: &[String]) -> Result<DeviceEdits>;
}

/// None at all.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoDevices;

impl Devices for NoDevices {
    fn list(&self) -> Vec<Device> {
        Vec::new()
    }

    fn edits(&self, names: &[String]) -> Result<DeviceEdits> {
        match names.first() {
            None => Ok(DeviceEdits::default()),
            Some(name) => {
                Err(Error::Device { name: name.clone(), reason: "devices are switched off".to_owned() })
            }
        }
    }
}

/// The devices that a request means: `vendor/class=name`; `vendor/class`, the first of its kind; `vendor/class=*`, all
/// of its kind; else all whose class, by annotation, the request is.
pub fn requested<'a>(all: &'a [Device], request: &str) -> Vec<&'a Device> {
    let kind_of = |device: &'a Device| device.name.split('=').next().unwrap_or_default();
    let found: Vec<&Device> = match request.split_once('=') {
        Some((kind, "*")) => all.iter().filter(|device| kind_of(device) == kind).collect(),
        Some(_) => all.iter().filter(|device| device.name == request).collect(),
        None => all.iter().filter(|device| kind_of(device) == request).take(1).collect(),
    };
    if !found.is_empty() {
        return found;
    }
    all.iter().filter(|device| device.annotations.get(CLASS).is_some_and(|class| class == request)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_in_all_their_forms() {
        let device = |name: &str, class: &str| Device {
            name: name.to_owned(),
            annotations: BTreeMap::from([(CLASS.to_owned(), class.to_owned())]),
            auto_allow: false,
        };
        let all = [device("v/gpu=0", "fast"), device("v/gpu=1", "slow"), device("w/nic=0", "fast")];
        for (request, want) in [
            ("v/gpu=1", &["v/gpu=1"][..]),
            ("v/gpu", &["v/gpu=0"]),
            ("v/gpu=*", &["v/gpu=0", "v/gpu=1"]),
            ("fast", &["v/gpu=0", "w/nic=0"]),
            ("v/gpu=2", &[]),
            ("x/y=*", &[]),
            ("", &[]),
        ] {
            let names: Vec<&str> =
                requested(&all, request).iter().map(|device| device.name.as_str()).collect();
            assert_eq!(names, want, "{request}");
        }
    }
}
