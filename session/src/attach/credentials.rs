use kiln_api::filesync::auth_server::{Auth, AuthServer};
use kiln_api::filesync::{
    CredentialsRequest, CredentialsResponse, FetchTokenRequest, FetchTokenResponse, GetTokenAuthorityRequest,
    GetTokenAuthorityResponse, VerifyTokenAuthorityRequest, VerifyTokenAuthorityResponse,
};
use tonic::{Request, Response, Status};

use crate::attach::docker_config::DockerConfig;

/// Gives out registry credentials. Tokens are left to the daemon to fetch.
#[derive(Clone, Debug)]
pub struct AuthProvider {
    config: DockerConfig,
}

impl AuthProvider {
    /// Offers what a configuration of Docker has.
    pub fn new(config: DockerConfig) -> Self {
        Self { config }
    }

    /// The service, and its methods for [`Attachments::add`](crate::attach::Attachments::add).
    pub fn into_service(self) -> (AuthServer<Self>, &'static [&'static str]) {
        (AuthServer::new(self), &["Credentials"])
    }
}

/// Daemons that hear this ask for credentials instead.
fn no_tokens<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("client fetches no tokens"))
}

#[tonic::async_trait]
impl Auth for AuthProvider {
    async fn credentials(
        &self,
        request: Request<CredentialsRequest>,
    ) -> Result<Response<CredentialsResponse>, Status> {
        let found = self.config.credentials(&request.into_inner().host).await?;
        Ok(Response::new(CredentialsResponse {
            username: found.username,
            secret: found.secret.reveal().to_owned(),
        }))
    }

    async fn fetch_token(
        &self,
        _: Request<FetchTokenRequest>,
    ) -> Result<Response<FetchTokenResponse>, Status> {
        no_tokens()
    }

    async fn get_token_authority(
        &self,
        _: Request<GetTokenAuthorityRequest>,
    ) -> Result<Response<GetTokenAuthorityResponse>, Status> {
        no_tokens()
    }

    async fn verify_token_authority(
        &self,
        _: Request<VerifyTokenAuthorityRequest>,
    ) -> Result<Response<VerifyTokenAuthorityResponse>, Status> {
        no_tokens()
    }
}
