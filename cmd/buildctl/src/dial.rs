//! `dial-stdio`: a connection helper on the far side of `docker exec`, `ssh` and the like.

use std::path::Path;

use kiln_cli::{Error, Result, io_text};
use tokio::io::{AsyncWriteExt as _, copy, stdin, stdout};
use tokio::net::UnixStream;

use crate::connection::Connection;

/// Joins standard input and output with the daemon's socket until the daemon ends the connection.
pub(crate) async fn run(connection: &Connection<'_>) -> Result<()> {
    let address = connection.address();
    let (scheme, path) = address.split_once("://").unwrap_or(("", &address));
    if scheme != "unix" {
        return Err(Error::option(format!("invalid address {address} (expected unix://, got {scheme}://)")));
    }
    let stream = UnixStream::connect(Path::new(path))
        .await
        .map_err(|error| Error::option(format!("dial unix {path}: connect: {}", io_text(&error))))?;
    let (mut from_daemon, mut to_daemon) = stream.into_split();
    let upwards = async {
        // Either side may go away first; the other direction goes on until it ends too.
        let _copied = copy(&mut stdin(), &mut to_daemon).await;
        let _closed = to_daemon.shutdown().await;
        std::future::pending::<()>().await;
    };
    let downwards = async {
        let mut out = stdout();
        let copied = copy(&mut from_daemon, &mut out).await;
        let _flushed = out.flush().await;
        copied
    };
    tokio::select! {
        () = upwards => Ok(()),
        copied = downwards => copied.map(drop).map_err(|error| Error::option(io_text(&error))),
    }
}
