//! What a solve may do beyond the ordinary.

use std::collections::BTreeSet;
use std::sync::Arc;

use kiln_executor::{Devices, NoDevices, requested};
use kiln_llb::pb;

/// Decides whether an exec op may have what it asks for.
pub trait Entitlements: Send + Sync {
    /// Checks `exec`; may replace its devices by what was resolved and granted.
    ///
    /// # Errors
    /// The text that tells the client what is not allowed.
    fn check(&self, exec: &mut pb::ExecOp) -> Result<(), String>;
}

/// What a build was granted, and the devices of its worker.
#[derive(Clone, Debug)]
pub struct GrantedEntitlements {
    names: BTreeSet<String>,
    /// Devices that were granted one by one.
    devices: Vec<DeviceGrant>,
    registry: Arc<dyn Devices>,
}

/// `device=[name=]<name>[,alias=<requested name>]`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct DeviceGrant {
    name: String,
    alias: Option<String>,
}

impl Default for GrantedEntitlements {
    fn default() -> Self {
        Self { names: BTreeSet::new(), devices: Vec::new(), registry: Arc::new(NoDevices) }
    }
}

impl GrantedEntitlements {
    /// Takes what a request was granted, such as `network.host`, on a host without devices.
    ///
    /// # Errors
    /// The text about a grant of a device that is none.
    pub fn new(granted: impl IntoIterator<Item = String>) -> Result<Self, String> {
        Self::with_devices(granted, Arc::new(NoDevices))
    }

    /// The same with these devices.
    ///
    /// # Errors
    /// The text about a grant of a device that is none.
    pub fn with_devices(
        granted: impl IntoIterator<Item = String>,
        registry: Arc<dyn Devices>,
    ) -> Result<Self, String> {
        let mut entitlements = Self { registry, ..Self::default() };
        for grant in granted {
            match grant.strip_prefix("device=") {
                Some(device) => entitlements.devices.push(DeviceGrant::parse(device)?),
                None => {
                    entitlements.names.insert(grant);
                }
            }
        }
        Ok(entitlements)
    }

    fn require(&self, wanted: bool, name: &str) -> Result<(), String> {
        if wanted && !self.names.contains(name) {
            return Err(format!("{name} is not allowed"));
        }
        Ok(())
    }

    /// Puts granted devices in the place of requests.
    fn resolve(&self, asked: &[pb::CdiDevice]) -> Result<Vec<pb::CdiDevice>, String> {
        let all = self.registry.list();
        let granted: BTreeSet<&str> = self
            .devices
            .iter()
            .flat_map(|grant| requested(&all, &grant.name))
            .map(|device| device.name.as_str())
            .collect();
        let (mut aliased, mut resolved, mut refused) = (Vec::new(), Vec::new(), Vec::new());
        for device in asked {
            let alias = self.devices.iter().find(|grant| grant.alias.as_deref() == Some(&device.name));
            if let Some(grant) = alias {
                aliased.push(pb::CdiDevice { name: grant.name.clone(), optional: device.optional });
                continue;
            }
            let found = requested(&all, &device.name);
            if found.is_empty() && !device.optional {
                return Err(not_registered(&device.name));
            }
            for found in found {
                if found.auto_allow || granted.contains(found.name.as_str()) {
                    resolved.push(pb::CdiDevice { name: found.name.clone(), optional: device.optional });
                } else {
                    refused.push(found.name.as_str());
                }
            }
        }
        match refused.as_slice() {
            [] => Ok(aliased.into_iter().chain(resolved).collect()),
            [device] => Err(format!("device {device} is requested by the build but not allowed")),
            devices => {
                Err(format!("devices {} are requested by the build but not allowed", devices.join(", ")))
            }
        }
    }
}

impl DeviceGrant {
    /// Fields by commas: `name=` and `alias=`, or a name alone as the first, if it has no `=`.
    fn parse(text: &str) -> Result<Self, String> {
        let mut grant = Self { name: String::new(), alias: None };
        for (position, field) in text.split(',').enumerate() {
            match field.split_once('=') {
                None if position == 0 => grant.name = field.to_owned(),
                Some(("name", name)) => grant.name = name.to_owned(),
                Some(("alias", alias)) if !alias.is_empty() => grant.alias = Some(alias.to_owned()),
                Some((key, _)) if key != "alias" => return Err(format!("unknown device config key {key:?}")),
                _ => return Err(format!("invalid device config {text:?}")),
            }
        }
        match grant.name.is_empty() {
            true => Err(format!("invalid device config {text:?}")),
            false => Ok(grant),
        }
    }
}

/// The text about a device that is not there.
pub(crate) fn not_registered(name: &str) -> String {
    format!("required device \"{name}\" is not registered")
}

impl Entitlements for GrantedEntitlements {
    fn check(&self, exec: &mut pb::ExecOp) -> Result<(), String> {
        self.require(exec.network == pb::NetMode::Host as i32, "network.host")?;
        self.require(exec.security == pb::SecurityMode::Insecure as i32, "security.insecure")?;
        // With the right to all devices the list stays as it was sent.
        if !exec.cdi_devices.is_empty() && !self.names.contains("device") {
            exec.cdi_devices = self.resolve(&exec.cdi_devices)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use kiln_executor::{Device, DeviceEdits};

    use super::*;

    #[derive(Debug)]
    struct Fixed;

    impl Devices for Fixed {
        fn list(&self) -> Vec<Device> {
            let device =
                |name: &str, auto_allow| Device { name: name.into(), auto_allow, ..Device::default() };
            vec![device("v/free=a", true), device("v/held=a", false), device("v/held=b", false)]
        }

        fn edits(&self, _names: &[String]) -> kiln_executor::Result<DeviceEdits> {
            Ok(DeviceEdits::default())
        }
    }

    #[track_caller]
    fn check(granted: &[&str], asked: &[(&str, bool)], want: &str) {
        let granted = granted.iter().map(|grant| (*grant).to_owned());
        let devices =
            asked.iter().map(|(name, optional)| pb::CdiDevice { name: (*name).into(), optional: *optional });
        let mut exec = pb::ExecOp { cdi_devices: devices.collect(), ..pb::ExecOp::default() };
        let got = GrantedEntitlements::with_devices(granted, Arc::new(Fixed))
            .and_then(|granted| granted.check(&mut exec));
        let names: Vec<&str> = exec.cdi_devices.iter().map(|device| device.name.as_str()).collect();
        assert_eq!(got.map_or_else(|error| error, |()| names.join(" ")), want);
    }

    #[test]
    fn devices_are_resolved_and_granted() {
        check(&[], &[("v/free", false)], "v/free=a");
        check(&[], &[("v/none", false)], "required device \"v/none\" is not registered");
        check(&[], &[("v/none", true)], "");
        check(&[], &[("v/held=a", false)], "device v/held=a is requested by the build but not allowed");
        check(
            &[],
            &[("v/held=*", false)],
            "devices v/held=a, v/held=b are requested by the build but not allowed",
        );
        check(&["device=name=v/held=a"], &[("v/held", false), ("v/free", false)], "v/held=a v/free=a");
        check(&["device=name=v/held=*"], &[("v/held=*", false)], "v/held=a v/held=b");
        check(&["device=name=v/held=b,alias=gpu"], &[("v/free", false), ("gpu", false)], "v/held=b v/free=a");
        check(&["device"], &[("v/held", false), ("v/none", false)], "v/held v/none");
        check(&["device="], &[], "invalid device config \"\"");
        check(&["device=v/held,as=x"], &[], "unknown device config key \"as\"");
        check(&["device=v/held,alias="], &[], "invalid device config \"v/held,alias=\"");
        check(&["device=v/held=a"], &[], "unknown device config key \"v/held\"");
        check(&["device=v/held"], &[("v/held", false)], "v/held=a");
    }
}
