use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::{Path, PathBuf};

use kiln_executor::oci;
use kiln_executor::{Device, DeviceEdits, DeviceNode, Devices, Error, Result};
use rustix::fs::FileType;

use crate::spec::{Edits, Node, Spec};

/// Says that a device needs no entitlement.
const AUTO_ALLOW: &str = "org.mobyproject.buildkit.device.autoallow";
/// More files than any directory of specifications has.
const MAX_FILES: usize = 1024;

/// The devices of the specifications in some directories.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    dirs: Vec<PathBuf>,
    auto_allowed: Vec<String>,
}

/// A device, and what it changes.
struct Known {
    device: Device,
    edits: [Edits; 2],
}

impl Registry {
    /// Of `dirs`, the later before the earlier. What `auto_allowed` names, by device or kind, needs no entitlement.
    pub fn new(dirs: Vec<PathBuf>, auto_allowed: Vec<String>) -> Self {
        Self { dirs, auto_allowed }
    }

    fn read(&self) -> BTreeMap<String, Known> {
        let mut all = BTreeMap::new();
        for dir in &self.dirs {
            all.extend(self.read_dir(dir));
        }
        all
    }

    fn read_dir(&self, dir: &Path) -> BTreeMap<String, Known> {
        // Two of one name are both unusable.
        let mut found: BTreeMap<String, Option<Known>> = BTreeMap::new();
        for path in files(dir) {
            let spec = match Spec::read(&path) {
                Ok(spec) => spec,
                Err(reason) => {
                    tracing::warn!(path = %path.display(), reason, "a file is no CDI specification");
                    continue;
                }
            };
            for device in spec.devices {
                let name = format!("{}={}", spec.kind, device.name);
                let mut annotations = spec.annotations.clone();
                annotations.extend(device.annotations);
                let known = Known {
                    device: Device {
                        auto_allow: self.allows(&name, &annotations),
                        name: name.clone(),
                        annotations,
                    },
                    edits: [spec.container_edits.clone(), device.container_edits],
                };
                match found.entry(name) {
                    Entry::Vacant(place) => drop(place.insert(Some(known))),
                    Entry::Occupied(mut place) => {
                        let (device, dir) = (&known.device.name, dir.display());
                        tracing::warn!(device, %dir, "a device is there twice, and is not used");
                        place.insert(None);
                    }
                }
            }
        }
        found.into_iter().filter_map(|(name, known)| Some((name, known?))).collect()
    }

    fn allows(&self, name: &str, annotations: &BTreeMap<String, String>) -> bool {
        let kind = name.split('=').next().unwrap_or_default();
        let says_so = |value: &String| matches!(value.as_str(), "1" | "t" | "T" | "true" | "TRUE" | "True");
        self.auto_allowed.iter().any(|allowed| allowed == name || allowed == kind)
            || annotations.get(AUTO_ALLOW).is_some_and(says_so)
    }
}

impl Devices for Registry {
    fn list(&self) -> Vec<Device> {
        self.read().into_values().map(|known| known.device).collect()
    }

    fn edits(&self, names: &[String]) -> Result<DeviceEdits> {
        let known = self.read();
        let mut sum = DeviceEdits::default();
        for name in names {
            let device = known.get(name).ok_or_else(|| Error::Device {
                name: name.clone(),
                reason: "it is not registered any more".to_owned(),
            })?;
            for edits in &device.edits {
                add(&mut sum, edits).map_err(|reason| Error::Device { name: name.clone(), reason })?;
            }
        }
        Ok(sum)
    }
}

/// Edits of a file that several devices share are there once.
fn add(sum: &mut DeviceEdits, edits: &Edits) -> std::result::Result<(), String> {
    if let Some(what) = edits.not_done() {
        return Err(format!("it needs {what}, which are not supported"));
    }
    let push = |list: &mut Vec<String>, text: &String| {
        if !list.contains(text) {
            list.push(text.clone());
        }
    };
    edits.env.iter().for_each(|variable| push(&mut sum.env, variable));
    for node in &edits.device_nodes {
        let node = complete(node)?;
        if !sum.nodes.contains(&node) {
            sum.nodes.push(node);
        }
    }
    for mount in &edits.mounts {
        if !Path::new(&mount.container_path).is_absolute() || !Path::new(&mount.host_path).is_absolute() {
            return Err(format!(
                "mount of `{}` at `{}` is not absolute",
                mount.host_path, mount.container_path
            ));
        }
        let mut options = mount.options.clone();
        if !options.iter().any(|option| option == "bind" || option == "rbind") {
            options.push("rbind".to_owned());
        }
        let mount = oci::Mount {
            destination: PathBuf::from(&mount.container_path),
            kind: "bind".to_owned(),
            source: PathBuf::from(&mount.host_path),
            options,
        };
        if !sum.mounts.contains(&mount) {
            sum.mounts.push(mount);
        }
    }
    for gid in &edits.additional_gids {
        if *gid != 0 && !sum.groups.contains(gid) {
            sum.groups.push(*gid);
        }
    }
    Ok(())
}

/// What a specification leaves out is as on the host.
fn complete(node: &Node) -> std::result::Result<DeviceNode, String> {
    let path = Path::new(&node.path);
    let inside = path.strip_prefix("/dev").is_ok_and(|rest| {
        rest.components().count() > 0
            && rest.components().all(|part| matches!(part, std::path::Component::Normal(_)))
    });
    if !inside {
        // Elsewhere it would become part of the step's result.
        return Err(format!("device node `{}` is not below /dev", node.path));
    }
    let host = node.host_path.as_deref().unwrap_or(&node.path);
    let (kind, major, minor) = match (&node.kind, node.major, node.minor) {
        (Some(kind), Some(major), Some(minor)) => (kind.clone(), major, minor),
        (kind, major, minor) => {
            let found = rustix::fs::stat(host).map_err(|error| format!("device node `{host}`: {error}"))?;
            let its = match FileType::from_raw_mode(found.st_mode) {
                FileType::CharacterDevice => "c",
                FileType::BlockDevice => "b",
                _ => return Err(format!("`{host}` is no device node")),
            };
            (
                kind.clone().unwrap_or_else(|| its.to_owned()),
                major.unwrap_or(rustix::fs::major(found.st_rdev).into()),
                minor.unwrap_or(rustix::fs::minor(found.st_rdev).into()),
            )
        }
    };
    if !matches!(kind.as_str(), "b" | "c" | "u") {
        return Err(format!("device node `{}` is of unknown kind {kind}", node.path));
    }
    let access = node.permissions.clone().filter(|text| !text.is_empty()).unwrap_or_else(|| "rwm".to_owned());
    if access.bytes().any(|byte| !b"rwm".contains(&byte)) {
        return Err(format!("device node `{}` has unknown permissions {access:?}", node.path));
    }
    Ok(DeviceNode {
        path: node.path.clone(),
        kind,
        major,
        minor,
        file_mode: node.file_mode.map_or(0o666, |mode| mode & 0o777),
        uid: node.uid,
        gid: node.gid,
        access,
    })
}

/// The specifications in a directory, by name; a directory that is not there has none.
fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_spec = |path: &PathBuf| {
        matches!(path.extension().and_then(|extension| extension.to_str()), Some("json" | "yaml" | "yml"))
    };
    let mut files: Vec<PathBuf> = entries.filter(is_spec).take(MAX_FILES).collect();
    files.sort();
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry(files: &[(&str, &str)]) -> (tempfile::TempDir, Registry) {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let dirs = ["a", "b"].map(|name| dir.path().join(name)).into();
        (dir, Registry::new(dirs, vec!["vendor.com/free".to_owned()]))
    }

    #[track_caller]
    fn refused(edits: &str, want: &str) {
        let text = format!("kind: v/c\ndevices:\n- name: x\n  containerEdits: {edits}\n");
        let (_dir, registry) = registry(&[("a/x.yaml", &text)]);
        let error = registry.edits(&["v/c=x".to_owned()]).unwrap_err();
        assert_eq!(error.to_string(), format!("device v/c=x cannot be given to a step: {want}"));
    }

    #[test]
    fn later_directories_come_first_and_doubles_are_none() {
        let device = |kind: &str, names: &[&str], env: &str| {
            let devices: String = names
                .iter()
                .map(|name| format!("- name: {name}\n  containerEdits:\n    env: [\"WHICH={env}\"]\n"))
                .collect();
            format!("cdiVersion: 0.6.0\nkind: {kind}\ndevices:\n{devices}")
        };
        let (_dir, registry) = registry(&[
            ("a/one.yaml", &device("vendor.com/free", &["x", "y"], "a")),
            ("b/one.yml", &device("vendor.com/free", &["x"], "b")),
            (
                "a/two.json",
                r#"{"kind":"v/c","annotations":{"k":"1"},"devices":[{"name":"z","annotations":{"l":"2"}}]}"#,
            ),
            ("a/twice1.yaml", &device("v/twice", &["d"], "1")),
            ("a/twice2.yaml", &device("v/twice", &["d"], "2")),
            ("a/broken.yaml", "kind: [\n"),
            ("a/nokind.yaml", "kind: v\ndevices: []\n"),
            ("a/readme.txt", "no specification"),
        ]);
        let list = registry.list();
        let names: Vec<(&str, bool)> =
            list.iter().map(|device| (device.name.as_str(), device.auto_allow)).collect();
        assert_eq!(names, [("v/c=z", false), ("vendor.com/free=x", true), ("vendor.com/free=y", true)]);
        assert_eq!(list[0].annotations.len(), 2);
        let edits =
            registry.edits(&["vendor.com/free=x".to_owned(), "vendor.com/free=y".to_owned()]).unwrap();
        assert_eq!(edits.env, ["WHICH=b", "WHICH=a"]);
    }

    #[test]
    fn edits_are_completed_from_the_host() {
        let text = "kind: v/c
containerEdits:
  env: [ALL=1]
devices:
- name: null
  annotations: {org.mobyproject.buildkit.device.autoallow: \"true\"}
  containerEdits:
    deviceNodes:
    - {path: /dev/mine, hostPath: /dev/null, permissions: rw, gid: 7}
    - {path: /dev/given, type: b, major: 7, minor: 300, fileMode: 0o600}
    mounts:
    - {hostPath: /usr/lib, containerPath: /opt/lib, options: [ro, nosuid]}
    additionalGids: [44, 0, 44]
- {name: other}
";
        let (_dir, registry) = registry(&[("a/x.yaml", text)]);
        assert_eq!(registry.list().iter().map(|device| device.auto_allow).collect::<Vec<_>>(), [true, false]);
        let edits = registry.edits(&["v/c=null".to_owned(), "v/c=other".to_owned()]).unwrap();
        let nodes: Vec<_> = edits
            .nodes
            .iter()
            .map(|n| {
                (n.path.as_str(), n.kind.as_str(), n.major, n.minor, n.file_mode, n.gid, n.access.as_str())
            })
            .collect();
        assert_eq!(
            nodes,
            [("/dev/mine", "c", 1, 3, 0o666, Some(7), "rw"), ("/dev/given", "b", 7, 300, 0o600, None, "rwm")]
        );
        assert_eq!((edits.env, edits.groups), (vec!["ALL=1".to_owned()], vec![44]));
        assert_eq!(edits.mounts[0].options, ["ro", "nosuid", "rbind"]);
    }

    #[test]
    fn what_cannot_be_done_is_said() {
        refused(
            "{hooks: [{hookName: createContainer, path: /x}]}",
            "it needs hooks, which are not supported",
        );
        refused("{intelRdt: {closID: x}}", "it needs Intel RDT classes, which are not supported");
        refused("{deviceNodes: [{path: /etc/x}]}", "device node `/etc/x` is not below /dev");
        refused("{deviceNodes: [{path: /dev/../etc/x}]}", "device node `/dev/../etc/x` is not below /dev");
        refused("{deviceNodes: [{path: /dev/x, hostPath: /etc/passwd}]}", "`/etc/passwd` is no device node");
        refused(
            "{mounts: [{hostPath: lib, containerPath: /lib}]}",
            "mount of `lib` at `/lib` is not absolute",
        );
        let (_dir, registry) = registry(&[]);
        assert_eq!(
            registry.edits(&["v/c=x".to_owned()]).unwrap_err().to_string(),
            "device v/c=x cannot be given to a step: it is not registered any more"
        );
    }
}
