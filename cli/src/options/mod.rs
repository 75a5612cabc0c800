//! Options of a build as people write them.

mod agents;
mod cache;
mod csv;
mod directories;
mod entitlements;
mod outputs;
mod secrets;

pub use crate::options::agents::agents;
pub use crate::options::cache::{cache_export, cache_import};
pub use crate::options::csv::{csv_fields, csv_pairs};
pub use crate::options::directories::{frontend_options, locals, oci_layouts};
pub use crate::options::entitlements::entitlement;
pub use crate::options::outputs::{Destination, Output};
pub use crate::options::secrets::secrets;
