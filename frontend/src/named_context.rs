use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use kiln_llb::pb;

use crate::bridge::Bridge;
use crate::error::Result;
use crate::request::FrontendRequest;

/// Finds what the options of a request put in the place of an image.
///
/// Every implementation keeps these:
/// 1. A name that no option replaces gives none, and nothing is asked of the bridge.
/// 2. What replaces it is described and not solved.
#[async_trait]
pub trait NamedContexts: fmt::Debug + Send + Sync + 'static {
    /// The context that stands for `name` in `request`.
    async fn find(
        &self,
        bridge: Arc<dyn Bridge>,
        request: &FrontendRequest,
        name: &str,
    ) -> Result<Option<NamedContext>>;
}

/// What stands for an image.
#[derive(Clone, Debug, Default)]
pub struct NamedContext {
    /// The graph of its filesystem; empty for an empty one.
    pub definition: pb::Definition,
    /// Its image config, JSON, if it has one.
    pub config: Option<Vec<u8>>,
}
