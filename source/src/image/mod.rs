//! Images: from a reference to lazy layers.

mod holders;
mod key;
mod provider;
mod request;
mod resolve;

pub use self::key::chain_id;
pub use self::provider::{ImageProvider, Layouts};
pub use self::request::{ImageRequest, Layout, LayoutKind, Origin, ResolveMode};
pub use self::resolve::{Image, Images, Resolutions};
