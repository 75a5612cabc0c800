//! By whose leave a repository is read: secrets and agents of those who wait.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kiln_registry::Secret;
use kiln_session::{Lender, secrets, ssh};
use tokio::net::UnixListener;
use tokio::task::JoinSet;

use crate::error::{Error, Result};
use crate::git::remote::Transport;
use crate::git::request::GitRequest;

/// Submodules are often beside a repository; on this host they may be anywhere.
const WIDE: &str = "https://github.com/";
/// Whom a token is for.
const TOKEN_USER: &str = "x-access-token";

/// What `git` needs to be let in. Dropped, it ends: the socket and the file are gone.
#[derive(Debug, Default)]
pub(crate) struct Access {
    pub(crate) config: Vec<(String, String)>,
    pub(crate) env: Vec<(String, String)>,
    /// Serves the agent.
    serving: JoinSet<()>,
    /// Holds the socket and the known hosts.
    _dir: Option<tempfile::TempDir>,
}

impl Access {
    /// Finds out what there is.
    ///
    /// # Errors
    /// [`Error::NoAgent`] when nobody who waits has the agent that is asked for.
    pub(crate) async fn find(request: &GitRequest, lender: &Lender, scratch: &Path) -> Result<Self> {
        match request.remote.transport() {
            Transport::Http => Self::http(request, lender).await,
            Transport::Ssh => Self::ssh(request, lender, scratch).await,
            Transport::Git => Ok(Self::default()),
        }
    }

    async fn http(request: &GitRequest, lender: &Lender) -> Result<Self> {
        let Some(header) = header(request, lender).await? else { return Ok(Self::default()) };
        let url = request.remote.as_str();
        let scope = if url.starts_with(WIDE) { WIDE } else { url };
        let config = vec![
            (format!("http.{scope}.extraheader"), format!("Authorization: {}", header.expose())),
            // The header would go along.
            ("http.followRedirects".to_owned(), "false".to_owned()),
        ];
        Ok(Self { config, ..Self::default() })
    }

    async fn ssh(request: &GitRequest, lender: &Lender, scratch: &Path) -> Result<Self> {
        let mut access = Self::default();
        let scratch = scratch.to_owned();
        let known_hosts = request.known_hosts.clone();
        let (dir, hosts) = crate::blocking(move || {
            let failed = |source| Error::Start { what: "ssh".to_owned(), source };
            let mut builder = tempfile::Builder::new();
            builder.prefix("git-").permissions(std::fs::Permissions::from_mode(0o700));
            let dir = builder.tempdir_in(scratch).map_err(failed)?;
            let hosts = dir.path().join("known_hosts");
            std::fs::write(&hosts, known_hosts).map_err(failed)?;
            Ok((dir, hosts))
        })
        .await?;
        let mut command = "ssh -F /dev/null -o BatchMode=yes".to_owned();
        if request.known_hosts.is_empty() {
            command.push_str(" -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null");
        } else {
            command.push_str(&format!(" -o UserKnownHostsFile='{}'", hosts.display()));
        }
        access.env.push(("GIT_SSH_COMMAND".to_owned(), command));
        let id = request.ssh_agent.as_str();
        if !id.is_empty() {
            let asked: kiln_session::Result<()> =
                lender.any(|session| async move { ssh::check(&session, id).await }).await;
            asked.map_err(|error| {
                tracing::debug!(id, %error, "no agent");
                Error::NoAgent { id: id.to_owned() }
            })?;
            let socket = dir.path().join("agent");
            let listener = UnixListener::bind(&socket)
                .map_err(|source| Error::Start { what: "an agent's socket".to_owned(), source })?;
            access.serving.spawn(ssh::serve(listener, lender.clone(), id.to_owned()));
            access.env.push(("SSH_AUTH_SOCK".to_owned(), socket.display().to_string()));
        }
        access._dir = Some(dir);
        Ok(access)
    }
}

/// The value of the `Authorization` header: a secret for the host, then one for all, then what the address has.
async fn header(request: &GitRequest, lender: &Lender) -> Result<Option<Secret>> {
    let host = request.remote.host();
    let (header, token) = (request.auth_header_secret.as_str(), request.auth_token_secret.as_str());
    for (name, suffix, is_token) in
        [(header, host, false), (token, host, true), (header, "", false), (token, "", true)]
    {
        if name.is_empty() {
            continue;
        }
        let id = if suffix.is_empty() { name.to_owned() } else { format!("{name}.{suffix}") };
        // Most repositories need none, so not getting any is no failure.
        match secrets::ask(lender, &id).await {
            Ok(Some(data)) => {
                let text =
                    String::from_utf8(data).ok().map(|text| text.trim_end_matches(['\r', '\n']).to_owned());
                let text = text.filter(|text| !text.chars().any(char::is_control)).ok_or_else(|| {
                    Error::Secret { what: "an `Authorization` header", url: request.remote.to_string() }
                })?;
                let value = if is_token { basic(&format!("{TOKEN_USER}:{text}")) } else { text };
                return Ok(Some(Secret::new(value)));
            }
            Ok(None) => {}
            Err(error) => tracing::debug!(%error, id, "no secret for a repository"),
        }
    }
    Ok(request.credentials.as_ref().map(|pair| Secret::new(basic(pair.expose()))))
}

fn basic(pair: &str) -> String {
    format!("basic {}", STANDARD.encode(pair))
}
