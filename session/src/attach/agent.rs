use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::Pin;

use futures::stream::BoxStream;
use futures::{FutureExt as _, StreamExt as _};
use kiln_api::sshforward::ssh_server::{Ssh, SshServer};
use kiln_api::sshforward::{BytesMessage, CheckAgentRequest, CheckAgentResponse};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tonic::{Request, Response, Status, Streaming};

use crate::error::Error;
use crate::headers;
use crate::pipe::Pipe;
use crate::ssh::{DEFAULT_ID, ID_KEY};

/// How long a message to or from an agent may be, in bytes; OpenSSH's limit.
const MAX_FRAME: u32 = 256 * 1024;
/// Asks an agent for the keys that it has.
const REQUEST_IDENTITIES: u8 = 11;
/// Asks an agent for a signature.
const SIGN_REQUEST: u8 = 13;
/// The agent's message of failure, with its length.
const FAILURE: [u8; 5] = [0, 0, 0, 1, 5];

/// A socket to forward.
#[derive(Clone, Debug)]
pub struct AgentSource {
    /// Where an agent listens, or with `raw` anything else.
    pub socket: PathBuf,
    /// Pass bytes as they are. Otherwise only listing keys and signing are let through.
    pub raw: bool,
}

/// Forwards SSH agents by id.
#[derive(Clone, Debug, Default)]
pub struct SshProvider {
    agents: BTreeMap<String, AgentSource>,
}

impl SshProvider {
    /// Offers these agents.
    pub fn new(agents: BTreeMap<String, AgentSource>) -> Self {
        Self { agents }
    }

    /// The service, and its methods for [`Attachments::add`](crate::attach::Attachments::add).
    pub fn into_service(self) -> (SshServer<Self>, &'static [&'static str]) {
        (SshServer::new(self), &["CheckAgent", "ForwardAgent"])
    }

    fn find(&self, id: &str) -> Result<&AgentSource, Status> {
        let id = if id.is_empty() { DEFAULT_ID } else { id };
        self.agents.get(id).ok_or_else(|| Status::unknown(format!("unset ssh forward key {id}")))
    }
}

#[tonic::async_trait]
impl Ssh for SshProvider {
    type ForwardAgentStream = BoxStream<'static, Result<BytesMessage, Status>>;

    async fn check_agent(
        &self,
        request: Request<CheckAgentRequest>,
    ) -> Result<Response<CheckAgentResponse>, Status> {
        self.find(&request.into_inner().id)?;
        Ok(Response::new(CheckAgentResponse {}))
    }

    async fn forward_agent(
        &self,
        request: Request<Streaming<BytesMessage>>,
    ) -> Result<Response<Self::ForwardAgentStream>, Status> {
        let source = self.find(&headers::first(request.metadata(), ID_KEY).unwrap_or_default())?;
        let mut agent = UnixStream::connect(&source.socket)
            .await
            .map_err(Error::io(format!("connect to `{}`", source.socket.display())))?;
        let raw = source.raw;
        let (mut pipe, mut outgoing) =
            Pipe::new(request.into_inner().map(|item| item.map(|message| message.data)));
        let mut work: Option<Pin<Box<dyn Future<Output = std::io::Result<()>> + Send>>> =
            Some(Box::pin(async move {
                if raw {
                    tokio::io::copy_bidirectional(&mut pipe, &mut agent).await.map(drop)
                } else {
                    forward(&mut pipe, &mut agent).await
                }
            }));
        let stream = futures::stream::poll_fn(move |cx| {
            use std::task::Poll;
            if let Some(running) = &mut work
                && let Poll::Ready(outcome) = running.poll_unpin(cx)
            {
                work = None;
                if let Err(error) = outcome {
                    tracing::debug!(%error, "agent connection failed");
                }
            }
            outgoing.poll_recv(cx).map(|data| data.map(|data| Ok(BytesMessage { data })))
        });
        Ok(Response::new(stream.boxed()))
    }
}

/// Passes requests to an agent one by one, answering those that would change it with a failure.
async fn forward(pipe: &mut Pipe, agent: &mut UnixStream) -> std::io::Result<()> {
    while let Some(request) = read_frame(pipe).await? {
        let answer = match request.get(4) {
            Some(&(REQUEST_IDENTITIES | SIGN_REQUEST)) => {
                agent.write_all(&request).await?;
                match read_frame(agent).await? {
                    Some(answer) => answer,
                    None => return Ok(()),
                }
            }
            _ => FAILURE.to_vec(),
        };
        pipe.write_all(&answer).await?;
    }
    Ok(())
}

/// Reads a message with its length; `None` at the end.
async fn read_frame<R>(reader: &mut R) -> std::io::Result<Option<Vec<u8>>>
where
    R: tokio::io::AsyncRead + Unpin,
{
    let length = match reader.read_u32().await {
        Ok(length) => length,
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    if length == 0 || length > MAX_FRAME {
        return Err(std::io::ErrorKind::InvalidData.into());
    }
    let mut frame = length.to_be_bytes().to_vec();
    let taken = reader.take(u64::from(length)).read_to_end(&mut frame).await?;
    if taken as u64 != u64::from(length) {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Some(frame))
}
