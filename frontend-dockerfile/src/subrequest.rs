//! Questions about a Dockerfile that are answered without building it.

use kiln_frontend::{Error as FrontendError, FrontendResult};

use crate::context::{Client, MainContext};
use crate::source::SourceFile;

/// Answers a sub-request.
pub(crate) async fn answer(
    name: &str,
    _client: &Client,
    _main: &mut MainContext,
    _file: &SourceFile,
) -> Result<FrontendResult, FrontendError> {
    Err(FrontendError::UnsupportedRequest { name: name.to_owned() })
}
