//! The client's SSH agent.

use std::sync::Arc;

use futures::StreamExt as _;
use kiln_api::sshforward::ssh_client::SshClient;
use kiln_api::sshforward::{BytesMessage, CheckAgentRequest};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Request;

use crate::error::{Error, Result};
use crate::headers;
use crate::lender::Lender;
use crate::pipe::Pipe;
use crate::sessions::Session;

/// Connections that may be open to one agent through one socket; more wait for their turn.
const MAX_CONNECTIONS: usize = 64;

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

/// Takes connections and joins each with the agent of any client that waits and has it, until it is dropped.
pub async fn serve(listener: UnixListener, lender: Lender, id: String) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let id: Arc<str> = id.into();
    let mut connections = JoinSet::new();
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            // Those that have ended are reaped on the way.
            Some(_ended) = connections.join_next() => continue,
        };
        match accepted {
            Ok((connection, _)) => {
                let (lender, id) = (lender.clone(), Arc::clone(&id));
                connections.spawn(async move {
                    if let Err(error) = join(&connection_slot(connection), &lender, &id).await {
                        tracing::debug!(%error, "connection to an agent ended");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "agent socket takes no connections any more");
                return;
            }
        }
    }
}

/// A connection until somebody takes it.
type Slot = std::sync::Mutex<Option<UnixStream>>;

fn connection_slot(connection: UnixStream) -> Slot {
    std::sync::Mutex::new(Some(connection))
}

/// Joins a connection with the agent of any client that waits now and has it.
async fn join(slot: &Slot, lender: &Lender, id: &str) -> Result<()> {
    lender
        .any(|session| async move {
            check(&session, id).await?;
            // What was said on a connection cannot be said again, so nobody else gets it.
            let taken = slot.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
            match taken {
                Some(connection) => forward(&session, id, connection).await,
                None => Ok(()),
            }
        })
        .await
}
