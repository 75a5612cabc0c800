use std::collections::BTreeMap;
use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use kiln_api::secrets::secrets_server::{Secrets, SecretsServer};
use kiln_api::secrets::{GetSecretRequest, GetSecretResponse};
use tonic::{Request, Response, Status};

use crate::secrets::MAX_SECRET;

/// Where a secret comes from.
#[derive(Clone)]
pub enum SecretSource {
    /// A file, read when it is asked for.
    File(PathBuf),
    /// The value itself.
    Value(Vec<u8>),
}

impl fmt::Debug for SecretSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Value(_) => f.write_str("Value(..)"),
        }
    }
}

/// Gives out secrets by id.
#[derive(Clone, Debug, Default)]
pub struct SecretsProvider {
    secrets: BTreeMap<String, SecretSource>,
}

impl SecretsProvider {
    /// Offers these secrets.
    pub fn new(secrets: BTreeMap<String, SecretSource>) -> Self {
        Self { secrets }
    }

    /// The service, and its methods for [`Attachments::add`](crate::attach::Attachments::add).
    pub fn into_service(self) -> (SecretsServer<Self>, &'static [&'static str]) {
        (SecretsServer::new(self), &["GetSecret"])
    }
}

#[tonic::async_trait]
impl Secrets for SecretsProvider {
    async fn get_secret(
        &self,
        request: Request<GetSecretRequest>,
    ) -> Result<Response<GetSecretResponse>, Status> {
        let id = request.into_inner().id;
        let too_big = || Status::unknown(format!("secret {id} too big. max size 500KiB"));
        let data = match self.secrets.get(&id) {
            None => return Err(Status::not_found(format!("secret {id}: not found"))),
            Some(SecretSource::Value(value)) => value.clone(),
            Some(SecretSource::File(path)) => {
                read(path).map_err(|error| Status::unknown(format!("failed to read secret {id}: {error}")))?
            }
        };
        if data.len() > MAX_SECRET {
            return Err(too_big());
        }
        Ok(Response::new(GetSecretResponse { data }))
    }
}

fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut data = Vec::new();
    // One byte too many shows that there is more.
    std::fs::File::open(path)?.take(MAX_SECRET as u64 + 1).read_to_end(&mut data)?;
    Ok(data)
}
