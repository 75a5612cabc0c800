//! Exporters that the client chooses once it knows the result.

use std::collections::BTreeMap;

use kiln_api::exporter::exporter_client::ExporterClient;
use kiln_api::exporter::{FinalizeExportRequest, FindExportersRequest};
use tonic::Code;

use crate::error::{Error, Result};
use crate::sessions::Session;

const FIND: &str = "/moby.exporter.v1.Exporter/FindExporters";
const FINALIZE: &str = "/moby.exporter.v1.Exporter/FinalizeExport";

/// An exporter as a client names it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExporterChoice {
    /// Its type, say `image`.
    pub kind: String,
    /// Its attributes.
    pub attrs: BTreeMap<String, String>,
}

/// Asks for further exporters; none if the client does not offer the service.
///
/// # Errors
/// What else the client answered.
pub async fn find(
    session: &Session,
    metadata: BTreeMap<String, Vec<u8>>,
    refs: Vec<String>,
) -> Result<Vec<ExporterChoice>> {
    let answer = async {
        session.require(FIND)?;
        let request = FindExportersRequest { metadata, refs };
        Ok::<_, Error>(ExporterClient::new(session.channel()).find_exporters(request).await?)
    };
    Ok(tolerate(answer.await)?.map_or_else(Vec::new, |answer| {
        let exporters = answer.into_inner().exporters.into_iter();
        exporters.map(|exporter| ExporterChoice { kind: exporter.r#type, attrs: exporter.attrs }).collect()
    }))
}

/// Tells the client what all exporters returned.
///
/// # Errors
/// What the client answered, unless it does not offer the service.
pub async fn finalize(session: &Session, exporter_response: BTreeMap<String, String>) -> Result<()> {
    let answer = async {
        session.require(FINALIZE)?;
        let request = FinalizeExportRequest { exporter_response };
        Ok::<_, Error>(ExporterClient::new(session.channel()).finalize_export(request).await?)
    };
    tolerate(answer.await).map(drop)
}

fn tolerate<T>(outcome: Result<T>) -> Result<Option<T>> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(Error::Unsupported { .. }) => Ok(None),
        Err(Error::Call { status }) if matches!(status.code(), Code::Unimplemented | Code::Unavailable) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
