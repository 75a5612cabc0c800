//! Which daemon, and how it is reached.

use std::path::Path;
use std::time::Duration;

use kiln_cli::{Error, Result};
use kiln_client::{Client, ConnectOptions, TlsFiles};

use crate::flags::Parsed;

/// Where the daemon is unless told otherwise.
const DEFAULT_ADDRESS: &str = "unix:///run/buildkit/buildkitd.sock";
/// Environment variable: the address of the daemon.
const ADDRESS_VARIABLE: &str = "BUILDKIT_HOST";
/// Seconds that connecting may take.
const TIMEOUT: i64 = 5;
/// Time between questions whether the daemon answers.
const POLL: Duration = Duration::from_secs(1);

/// The daemon that the global flags name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Connection<'a> {
    global: &'a Parsed,
}

impl<'a> Connection<'a> {
    pub(crate) fn new(global: &'a Parsed) -> Self {
        Self { global }
    }

    pub(crate) fn address(&self) -> String {
        let given = self.global.text("addr").map(str::to_owned);
        let given = given.or_else(|| std::env::var(ADDRESS_VARIABLE).ok().filter(|it| !it.is_empty()));
        given.unwrap_or_else(|| DEFAULT_ADDRESS.to_owned())
    }

    /// Connects; `context` is put before what fails.
    pub(crate) async fn open(&self, context: &'static str) -> Result<Client> {
        let mut options = ConnectOptions::default();
        let seconds = self.global.int("timeout").unwrap_or(TIMEOUT);
        options.timeout = u64::try_from(seconds).ok().filter(|s| *s > 0).map(Duration::from_secs);
        options.tls = self.tls()?;
        let address = self.address();
        if self.global.is("wait") {
            return wait(&address, &options).await;
        }
        Client::connect(&address, options).await.map_err(|source| {
            // A wrong address has nothing to do with what was to be done.
            let context = if matches!(source, kiln_client::Error::Connect { .. }) { context } else { "" };
            Error::Client { context, source }
        })
    }

    fn tls(&self) -> Result<Option<TlsFiles>> {
        let text = |name: &str| self.global.text(name).filter(|it| !it.is_empty()).map(str::to_owned);
        let (mut ca, mut cert, mut key) = (text("tlscacert"), text("tlscert"), text("tlskey"));
        if let Some(dir) = text("tlsdir") {
            if ca.is_some() || cert.is_some() || key.is_some() {
                return Err(Error::option(
                    "cannot specify tlsdir and tlscacert/tlscert/tlskey at the same time",
                ));
            }
            let dir = Path::new(&dir);
            ca = Some(one_of(dir, "ca.pem", "ca.crt")?);
            cert = Some(one_of(dir, "cert.pem", "tls.crt")?);
            key = Some(one_of(dir, "key.pem", "tls.key")?);
        }
        let Some(ca) = ca else { return Ok(None) };
        if let Err(error) = std::fs::File::open(&ca) {
            return Err(Error::io("open", Path::new(&ca), &error).within("could not read ca certificate"));
        }
        let mut files = TlsFiles::new(ca);
        if let (Some(cert), Some(key)) = (cert, key) {
            files.identity = Some((cert.into(), key.into()));
        }
        files.server_name = text("tlsservername").unwrap_or_default();
        Ok(Some(files))
    }
}

/// Asks until the daemon answers.
async fn wait(address: &str, options: &ConnectOptions) -> Result<Client> {
    let asking = async {
        loop {
            match Client::connect(address, options.clone()).await {
                Ok(client) => match client.info().await {
                    Err(kiln_client::Error::Call { status }) if status.code() == tonic::Code::Unavailable => {
                    }
                    // An old daemon does not know the question, and that is an answer too.
                    _ => return Ok(client),
                },
                Err(kiln_client::Error::Connect { .. }) => {}
                Err(other) => return Err(Error::from(other)),
            }
            tokio::time::sleep(POLL).await;
        }
    };
    match options.timeout {
        None => asking.await,
        Some(limit) => tokio::time::timeout(limit, asking)
            .await
            .unwrap_or_else(|_| Err(Error::option("context deadline exceeded"))),
    }
}

fn one_of(dir: &Path, first: &str, second: &str) -> Result<String> {
    let found = [first, second].into_iter().map(|name| dir.join(name)).find(|path| path.exists());
    found.map(|path| path.to_string_lossy().into_owned()).ok_or_else(|| {
        Error::option(format!("directory did not contain one of the needed files: {first} or {second}"))
    })
}

/// Sends warnings of libraries, with `--debug` more, to standard error.
pub(crate) fn start_logging(global: &Parsed) -> Result<()> {
    let level = if global.is("debug") {
        tracing_subscriber::filter::LevelFilter::DEBUG
    } else {
        tracing_subscriber::filter::LevelFilter::WARN
    };
    let builder = tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(level);
    let outcome = match global.text("log-format").unwrap_or("text") {
        "text" => builder.with_ansi(false).try_init(),
        "json" => builder.json().try_init(),
        other => {
            return Err(Error::option(format!("unsupported log type {}", kiln_cli::quote(other))));
        }
    };
    outcome.map_err(|error| Error::option(error.to_string()))
}
