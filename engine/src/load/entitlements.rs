//! What a solve may do beyond the ordinary.

use std::collections::BTreeSet;

use kiln_llb::pb;

/// Decides whether an exec op may have what it asks for.
pub trait Entitlements: Send + Sync {
    /// Checks `exec`; may replace its devices by what was resolved and granted.
    ///
    /// # Errors
    /// The text that tells the client what is not allowed.
    fn check(&self, exec: &mut pb::ExecOp) -> Result<(), String>;
}

/// A plain set of granted entitlements, on a host without devices.
#[derive(Clone, Debug, Default)]
pub struct GrantedEntitlements(BTreeSet<String>);

impl GrantedEntitlements {
    /// Takes the names a request was granted, such as `network.host`.
    pub fn new(names: impl IntoIterator<Item = String>) -> Self {
        Self(names.into_iter().collect())
    }

    fn require(&self, wanted: bool, name: &str) -> Result<(), String> {
        if wanted && !self.0.contains(name) {
            return Err(format!("{name} is not allowed"));
        }
        Ok(())
    }
}

impl Entitlements for GrantedEntitlements {
    fn check(&self, exec: &mut pb::ExecOp) -> Result<(), String> {
        self.require(exec.network == pb::NetMode::Host as i32, "network.host")?;
        self.require(exec.security == pb::SecurityMode::Insecure as i32, "security.insecure")?;
        if !self.0.contains("device") {
            if let Some(device) = exec.cdi_devices.iter().find(|d| !d.optional) {
                return Err(format!("required device \"{}\" is not registered", device.name));
            }
            exec.cdi_devices.clear();
        }
        Ok(())
    }
}
