//! Sockets of a running step that lead to the agents of the clients who wait for it.

use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use kiln_executor::StepMount;
use kiln_llb::pb;
use kiln_rootdir::Root;
use kiln_session::Lender;
use kiln_solver::OpError;
use tokio::net::UnixListener;
use tokio::task::JoinSet;

use crate::error::ExecError;
use crate::ops::common::blocking;

/// The agent sockets of one step. They are gone, and all connections with them, when this is dropped.
#[derive(Debug)]
pub(crate) struct AgentSockets {
    scratch: PathBuf,
    dir: Option<tempfile::TempDir>,
    listeners: JoinSet<()>,
    count: usize,
}

impl AgentSockets {
    pub(crate) fn new(scratch: &Path) -> Self {
        Self { scratch: scratch.to_owned(), dir: None, listeners: JoinSet::new(), count: 0 }
    }

    /// Makes a socket for the agent that `options` name and says how to mount it at `dest`; none for an agent that is
    /// optional and that no client has.
    pub(crate) async fn mount(
        &mut self,
        dest: &str,
        options: &pb::SshOpt,
        lender: &Lender,
    ) -> Result<Option<StepMount>, OpError> {
        let id = if options.id.is_empty() { kiln_session::ssh::DEFAULT_ID } else { &options.id }.to_owned();
        let asked = lender.any(|session| {
            let id = &id;
            async move { kiln_session::ssh::check(&session, id).await }
        });
        match asked.await {
            Ok(()) => {}
            Err(error) => {
                tracing::debug!(id, %error, "no agent");
                return if options.optional { Ok(None) } else { Err(missing(id, error)) };
            }
        }
        let (listener, source) = self.listen(options.mode & 0o777, options.uid, options.gid).await?;
        self.listeners.spawn(kiln_session::ssh::serve(listener, lender.clone(), id));
        Ok(Some(StepMount::host(dest, source, &["rbind"])))
    }

    async fn listen(&mut self, mode: u32, uid: u32, gid: u32) -> Result<(UnixListener, PathBuf), OpError> {
        let (scratch, made, name) = (self.scratch.clone(), self.dir.take(), self.count.to_string());
        self.count += 1;
        let (dir, listener, source) = blocking(move || {
            let dir = match made {
                Some(dir) => dir,
                None => {
                    let dir = tempfile::Builder::new().prefix("agents-").tempdir_in(scratch);
                    dir.map_err(OpError::failed)?
                }
            };
            let root = Root::open(dir.path()).map_err(OpError::failed)?;
            // The name of a socket is short, that of the directory may not be.
            let handle = root.open_path("/", true).map_err(OpError::failed)?;
            let short = format!("/proc/self/fd/{}/{name}", handle.as_raw_fd());
            let listener = std::os::unix::net::UnixListener::bind(short).map_err(OpError::failed)?;
            listener.set_nonblocking(true).map_err(OpError::failed)?;
            root.chown(&name, uid, gid).map_err(OpError::failed)?;
            root.chmod(&name, mode).map_err(OpError::failed)?;
            let source = dir.path().join(name);
            Ok((dir, listener, source))
        })
        .await?;
        self.dir = Some(dir);
        Ok((UnixListener::from_std(listener).map_err(OpError::failed)?, source))
    }

    /// Ends all connections and removes the sockets.
    pub(crate) async fn close(mut self) {
        self.listeners.shutdown().await;
        if let Some(dir) = self.dir.take()
            && let Err(error) = blocking(move || dir.close().map_err(OpError::failed)).await
        {
            tracing::warn!(%error, "agent sockets were not removed");
        }
    }
}

fn missing(id: String, error: kiln_session::Error) -> OpError {
    // Of one without the service there is nothing to say; one that has it says itself what it lacks.
    if error.is_absent() || matches!(error, kiln_session::Error::NoSessions) {
        return OpError::failed(ExecError::NoAgent { id });
    }
    OpError::failed(error)
}
