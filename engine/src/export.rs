//! The export phase of a build.

use std::sync::Arc;

use kiln_frontend::FrontendResult;

use crate::build::BuildState;
use crate::engine::{BuildRequest, BuildResponse};
use crate::error::{Error, Result};

/// Hands the results to every exporter.
pub(crate) async fn export(
    _state: &Arc<BuildState>,
    request: &BuildRequest,
    _result: FrontendResult,
) -> Result<BuildResponse> {
    if let Some(exporter) = request.exporters.first() {
        return Err(Error::request(format!("exporter {:?} could not be found", exporter.kind)));
    }
    Ok(BuildResponse::default())
}
