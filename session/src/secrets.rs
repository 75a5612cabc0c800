//! Secrets of the client.

use kiln_api::secrets::GetSecretRequest;
use kiln_api::secrets::secrets_client::SecretsClient;

use crate::error::{Error, Result};
use crate::lender::Lender;
use crate::sessions::Session;

const GET: &str = "/moby.buildkit.secrets.v1.Secrets/GetSecret";
/// How long a secret may be, in bytes.
pub const MAX_SECRET: usize = 500 * 1024;

/// Asks for a secret; `None` if the client does not have it.
///
/// # Errors
/// What else the client answered.
pub async fn get(session: &Session, id: &str) -> Result<Option<Vec<u8>>> {
    let answer = async {
        session.require(GET)?;
        let request = GetSecretRequest { id: id.to_owned(), ..GetSecretRequest::default() };
        Ok::<_, Error>(SecretsClient::new(session.channel()).get_secret(request).await?)
    };
    match answer.await {
        Ok(answer) => Ok(Some(answer.into_inner().data)),
        Err(error) if error.is_absent() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Asks those who wait for a secret; `None` if none of them has it.
///
/// # Errors
/// What the last of them answered; [`Error::NoSessions`] if nobody waits.
pub async fn ask(lender: &Lender, id: &str) -> Result<Option<Vec<u8>>> {
    let asked = lender.soonest(|session| async move {
        match get(&session, id).await {
            Ok(Some(data)) => Ok(data),
            // The next client may have it.
            Ok(None) => Err(Asked::Absent),
            Err(error) => Err(Asked::Failed(error)),
        }
    });
    match asked.await {
        Ok(data) => Ok(Some(data)),
        Err(Asked::Absent) => Ok(None),
        Err(Asked::Failed(error)) if error.is_absent() => Ok(None),
        Err(Asked::Failed(error)) => Err(error),
    }
}

/// How asking one client for a secret ended.
enum Asked {
    Absent,
    Failed(Error),
}

impl From<Error> for Asked {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}
