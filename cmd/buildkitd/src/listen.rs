//! Listeners of the daemon.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use tokio::net::{TcpListener, UnixListener};

use crate::settings::Settings;

/// Mode of unix sockets: the owner and the group may connect.
const SOCKET_MODE: u32 = 0o660;

/// One bound address.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) socket: Socket,
    name: String,
    file: SocketFile,
}

/// What connections come from.
#[derive(Debug)]
pub(crate) enum Socket {
    Unix(UnixListener),
    Tcp(TcpListener),
}

/// The file of a unix socket; removed when dropped.
#[derive(Debug)]
pub(crate) struct SocketFile(Option<PathBuf>);

/// Binds every address of the settings.
pub(crate) async fn bind_all(settings: &Settings) -> Result<Vec<Listener>> {
    let mut listeners = Vec::with_capacity(settings.addresses.len());
    for address in &settings.addresses {
        listeners
            .push(bind(address, settings).await.with_context(|| format!("failed to listen on `{address}`"))?);
    }
    Ok(listeners)
}

async fn bind(address: &str, settings: &Settings) -> Result<Listener> {
    let Some((scheme, rest)) = address.split_once("://") else {
        bail!("address {address} does not contain proto, you meant unix://{address} ?");
    };
    match scheme {
        "unix" => {
            if settings.tls.is_some() {
                tracing::warn!(address, "TLS is disabled for unix sockets");
            }
            Ok(Listener {
                socket: Socket::Unix(unix(Path::new(rest), settings)?),
                name: rest.to_owned(),
                file: SocketFile(Some(PathBuf::from(rest))),
            })
        }
        "tcp" => {
            if settings.tls.is_none() {
                tracing::warn!(
                    address,
                    "TLS is not enabled. enabling mutual TLS authentication is highly recommended: steps with the host's network can reach this address"
                );
            }
            Ok(Listener {
                socket: Socket::Tcp(TcpListener::bind(rest).await?),
                name: address.to_owned(),
                file: SocketFile(None),
            })
        }
        "fd" if rest.is_empty() => activated(),
        "fd" => bail!("{address}: named sockets of socket activation are not supported yet"),
        "npipe" => bail!("addr {address} not supported: named pipes exist on Windows only"),
        _ => bail!("addr {address} not supported"),
    }
}

fn unix(path: &Path, settings: &Settings) -> Result<UnixListener> {
    use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).with_context(|| format!("failed to make `{}`", dir.display()))?;
    }
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => {
            // Someone may be serving there: only a socket that nobody answers on is stale.
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                bail!("another process is listening there");
            }
            std::fs::remove_file(path)?;
        }
        Ok(_) => bail!("something other than a socket is in the way"),
        Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(SOCKET_MODE))?;
    std::os::unix::fs::chown(path, settings.socket_uid, settings.socket_gid)?;
    Ok(listener)
}

/// The first socket that the service manager hands over.
fn activated() -> Result<Listener> {
    const NONE: &str = "no sockets found via socket activation: make sure the service was started by systemd";
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u32>().ok());
    if number("LISTEN_PID") != Some(std::process::id()) || number("LISTEN_FDS").unwrap_or(0) == 0 {
        bail!(NONE);
    }
    // Opening it anew by its name would make another socket, so the descriptor itself is duplicated.
    let socket = rustix::process::pidfd_open(rustix::process::getpid(), rustix::process::PidfdFlags::empty())
        .and_then(|own| rustix::process::pidfd_getfd(own, 3, rustix::process::PidfdGetfdFlags::empty()))
        .context(NONE)?;
    let listener = std::os::unix::net::UnixListener::from(socket);
    listener.set_nonblocking(true)?;
    Ok(Listener {
        socket: Socket::Unix(UnixListener::from_std(listener)?),
        name: "fd://".to_owned(),
        file: SocketFile(None),
    })
}

impl Listener {
    /// For the log.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The socket, and what keeps its file until it is dropped.
    pub(crate) fn split(self) -> (Socket, SocketFile) {
        (self.socket, self.file)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            std::fs::remove_file(path).ok();
        }
    }
}
