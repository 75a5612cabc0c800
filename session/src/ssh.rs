//! The client's SSH agent.

use futures::StreamExt as _;
use kiln_api::sshforward::ssh_client::SshClient;
use kiln_api::sshforward::{BytesMessage, CheckAgentRequest};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Request;

use crate::error::{Error, Result};
use crate::headers;
use crate::pipe::Pipe;
use crate::sessions::Session;

pub(crate) const CHECK: &str = "/moby.sshforward.v1.SSH/CheckAgent";
pub(crate) const FORWARD: &str = "/moby.sshforward.v1.SSH/ForwardAgent";
pub(crate) const ID_KEY: &str = "buildkit.ssh.id";
/// The agent of those who name none.
pub const DEFAULT_ID: &str = "default";

/// Asks whether the client forwards an agent of this id.
///
/// # Errors
/// That it does not, or what else it answered.
pub async fn check(session: &Session, id: &str) -> Result<()> {
    session.require(CHECK)?;
    let request = CheckAgentRequest { id: id.to_owned() };
    SshClient::new(session.channel()).check_agent(request).await?;
    Ok(())
}

/// Joins `local`, a connection of the build, with a new one to the client's agent, until either ends.
///
/// # Errors
/// What the client answered, or why the bytes did not flow.
pub async fn forward<L>(session: &Session, id: &str, mut local: L) -> Result<()>
where
    L: AsyncRead + AsyncWrite + Unpin + Send,
{
    session.require(FORWARD)?;
    let (answer, incoming) = futures::channel::oneshot::channel();
    // The client may answer only once it has bytes, so the pipe is there before the answer is.
    let incoming = futures::stream::once(incoming).filter_map(|stream| async { stream.ok() }).flatten();
    let (mut pipe, outgoing) = Pipe::new(incoming);
    let mut call = Request::new(ReceiverStream::new(outgoing).map(|data| BytesMessage { data }));
    call.metadata_mut().insert(ID_KEY, headers::parse(id)?);
    let mut client = SshClient::new(session.channel());
    let calling = async {
        let stream = client.forward_agent(call).await?.into_inner();
        // Fails only if the pipe is gone.
        let _given = answer.send(stream.map(|item| item.map(|message| message.data)).boxed());
        std::future::pending::<Result<()>>().await
    };
    let copying = async {
        tokio::io::copy_bidirectional(&mut local, &mut pipe)
            .await
            .map(drop)
            .map_err(Error::io("forward the agent's connection"))
    };
    tokio::select! {
        outcome = calling => outcome,
        outcome = copying => outcome,
    }
}
