//! Bodies that the client uploads.

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use kiln_api::upload::BytesMessage;
use kiln_api::upload::upload_client::UploadClient;
use tonic::Request;

use crate::error::{Error, Result};
use crate::headers;
use crate::sessions::Session;

const PULL: &str = "/moby.upload.v1.Upload/Pull";

/// Asks for the body of a URL whose host is `buildkit-session`.
///
/// # Errors
/// What the client answered; the stream's items may fail too.
pub async fn pull(
    session: &Session,
    host: &str,
    path: &str,
) -> Result<impl Stream<Item = Result<Bytes>> + Send + Unpin + use<>> {
    session.require(PULL)?;
    let mut call = Request::new(futures::stream::pending::<BytesMessage>());
    call.metadata_mut().insert("urlpath", headers::parse(path)?);
    call.metadata_mut().insert("urlhost", headers::parse(host)?);
    let body = UploadClient::new(session.channel()).pull(call).await?.into_inner();
    Ok(body.map(|message| message.map(|message| message.data).map_err(Error::from)))
}
