//! What a client offers to the daemon through its session.
//!
//! Each provider is a gRPC service; [`Attachments`] joins them, and [`run`] serves them on a session.

mod agent;
mod blobs;
mod credentials;
mod directories;
mod docker_config;
mod secrets;
mod server;
mod targets;

pub use crate::attach::agent::{AgentSource, SshProvider};
pub use crate::attach::blobs::{BlobStore, ContentProvider};
pub use crate::attach::credentials::AuthProvider;
pub use crate::attach::directories::FileSyncProvider;
pub use crate::attach::docker_config::DockerConfig;
pub use crate::attach::secrets::{SecretSource, SecretsProvider};
pub use crate::attach::server::{Attachments, SessionHead, run};
pub use crate::attach::targets::{FileSendTargets, Target, Writer};
