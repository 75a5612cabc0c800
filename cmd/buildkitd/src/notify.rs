//! Telling the service manager where the daemon is in its life.

use std::os::unix::net::UnixDatagram;

use crate::settings::NOTIFY_SOCKET;

/// Sends `state` (`READY=1`, `STOPPING=1`) to the socket that the environment names, if it names one.
pub(crate) fn notify(state: &str) {
    use std::os::linux::net::SocketAddrExt as _;
    let Ok(path) = std::env::var(NOTIFY_SOCKET) else { return };
    let sent = UnixDatagram::unbound().and_then(|socket| match path.strip_prefix('@') {
        Some(name) => {
            let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
            socket.send_to_addr(state.as_bytes(), &address)
        }
        None => socket.send_to(state.as_bytes(), &path),
    });
    if let Err(error) = sent {
        tracing::warn!(%error, "the service manager was not notified");
    }
}
