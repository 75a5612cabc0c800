//! Showing the progress of a build again, from its log.

use std::fs::File;
use std::io::{self, Read as _};

use kiln_api::control::StatusResponse;
use kiln_content::Descriptor;
use prost::Message as _;
use tokio::sync::mpsc;
use tonic::Status;

use crate::history::{History, wire};
use crate::service::internal;

/// Messages on their way to a client.
const ON_THE_WAY: usize = 16;
/// The longest message of a log.
const MAX_MESSAGE: u32 = 64 << 20;

impl History {
    /// The progress of a build on record. `None`: none is, or it runs.
    pub(crate) async fn replay(
        &self,
        id: &str,
    ) -> Result<Option<mpsc::Receiver<Result<StatusResponse, Status>>>, Status> {
        if self.shared.state().running.contains_key(id) {
            return Ok(None);
        }
        let Some(build) = self.shared.cache().build_record(id).await.map_err(internal)? else {
            return Ok(None);
        };
        let lost = || Status::data_loss(format!("the log of build {id} is lost; its record is still there"));
        let log = wire(&build)?.logs.ok_or_else(lost)?;
        let content = &self.shared.engine.worker().content;
        let digest = log.digest.parse().map_err(|_| lost())?;
        let whole = Descriptor::new(log.media_type, digest, log.size.unsigned_abs());
        let there = kiln_content::ContentStoreExt::has_whole(&**content, &whole).await.map_err(internal)?;
        let file = content.open(&digest).await.map_err(internal)?.filter(|_| there).ok_or_else(lost)?;
        let (send, receive) = mpsc::channel(ON_THE_WAY);
        self.shared.tasks.spawn_blocking(move || {
            let mut file = io::BufReader::new(file);
            while let Some(message) = next(&mut file).transpose() {
                let message = message
                    .map_err(|error| Status::data_loss(format!("the log of the build is damaged: {error}")));
                let last = message.is_err();
                if send.blocking_send(message).is_err() || last {
                    return;
                }
            }
        });
        Ok(Some(receive))
    }
}

/// Reads the next message; `None` at the end.
fn next(log: &mut io::BufReader<File>) -> io::Result<Option<StatusResponse>> {
    let mut length = [0; 4];
    match log.read_exact(&mut length) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        outcome => outcome?,
    }
    let length = u32::from_le_bytes(length);
    if length > MAX_MESSAGE {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a message of {length} bytes")));
    }
    let mut message = vec![0; length as usize];
    log.read_exact(&mut message)?;
    StatusResponse::decode(message.as_slice()).map(Some).map_err(io::Error::other)
}
