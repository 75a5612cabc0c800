//! The daemon of a user's own: started on demand, left running, stopped by `kiln stop`.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use kiln_cli::{Error, Result};
use kiln_client::{Client, ConnectOptions};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep};

use crate::args::DaemonArgs;
use crate::place::Place;

/// The daemon's program.
const PROGRAM: &str = "buildkitd";
/// How long a daemon may take to start.
const START_LIMIT: Duration = Duration::from_secs(30);
/// How long a daemon may take to stop.
const STOP_LIMIT: Duration = Duration::from_secs(30);
/// Time between looks at a daemon that starts or stops.
const POLL: Duration = Duration::from_millis(10);
/// How much of the end of the log is shown when the daemon does not start, in bytes.
const LOG_SHOWN: u64 = 2000;

/// Connects to the daemon that was named, or to the user's own.
pub(crate) async fn connect(args: &DaemonArgs) -> Result<Client> {
    if let Some(address) = args.addr.as_deref().filter(|address| !address.is_empty()) {
        return Ok(Client::connect(address, ConnectOptions::default()).await?);
    }
    let place = Place::of_user()?;
    if let Some(client) = running(&place).await? {
        return Ok(client);
    }
    place.create()?;
    // Whoever comes second waits here, and then finds the daemon of the first.
    let _lock = lock(&place).await?;
    if let Some(client) = running(&place).await? {
        return Ok(client);
    }
    let (mut child, log_start) = spawn(&place)?;
    let deadline = Instant::now() + START_LIMIT;
    loop {
        if let Some(client) = running(&place).await? {
            return Ok(client);
        }
        let ended = child.try_wait().ok().flatten();
        if ended.is_none() && Instant::now() < deadline {
            sleep(POLL).await;
            continue;
        }
        let how = match ended {
            Some(status) => format!("ended at once ({status})"),
            None => {
                let _killed = child.kill();
                format!("did not answer within {} s", START_LIMIT.as_secs())
            }
        };
        let said = log_since(&place.log(), log_start);
        return Err(Error::option(format!(
            "the daemon {how}; see {}\n{}",
            place.log().display(),
            said.trim_end()
        )));
    }
}

/// The daemon, if it runs and answers.
async fn running(place: &Place) -> Result<Option<Client>> {
    match Client::connect(&place.address(), ConnectOptions::default()).await {
        // Listening is not yet answering.
        Ok(client) => match client.info().await {
            Ok(_) => Ok(Some(client)),
            Err(error) if error.code() == Some(tonic::Code::Unimplemented) => Ok(Some(client)),
            Err(_) => Ok(None),
        },
        Err(kiln_client::Error::Connect { .. }) => Ok(None),
        Err(other) => Err(other.into()),
    }
}

async fn lock(place: &Place) -> Result<File> {
    let path = place.lock();
    let taking = tokio::task::spawn_blocking(move || {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|error| Error::io("open", &path, &error))?;
        file.lock().map_err(|error| Error::io("lock", &path, &error))?;
        Ok(file)
    });
    taking.await.map_err(|error| Error::option(error.to_string()))?
}

/// Starts the daemon, and says where its part of the log begins.
fn spawn(place: &Place) -> Result<(Child, u64)> {
    let program = find_program(std::env::current_exe().ok().as_deref(), std::env::var_os("PATH").as_deref())
        .ok_or_else(|| {
            Error::option(format!(
                "`{PROGRAM}` is neither beside `kiln` nor in PATH: install it, or use --addr"
            ))
        })?;
    let path = place.log();
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .map_err(|error| Error::io("open", &path, &error))?;
    let start = log.metadata().map(|metadata| metadata.len()).unwrap_or_default();
    let errors = log.try_clone().map_err(|error| Error::io("open", &path, &error))?;
    let mut command = Command::new(&program);
    if let Some(config) = place.config() {
        command.arg("--config").arg(config);
    }
    let child = command
        .arg("--root")
        .arg(place.state())
        .arg("--addr")
        .arg(place.address())
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        .current_dir("/")
        // Signals that a terminal sends to us are not for the daemon.
        .process_group(0)
        .spawn()
        .map_err(|error| Error::io("exec", &program, &error))?;
    Ok((child, start))
}

fn find_program(own: Option<&Path>, path: Option<&std::ffi::OsStr>) -> Option<PathBuf> {
    let beside = own.and_then(Path::parent).map(Path::to_owned);
    let directories = path.map(std::env::split_paths).into_iter().flatten();
    beside.into_iter().chain(directories).map(|dir| dir.join(PROGRAM)).find(|path| path.is_file())
}

fn log_since(path: &Path, start: u64) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(path)?;
        let end = file.metadata()?.len();
        file.seek(SeekFrom::Start(start.max(end.saturating_sub(LOG_SHOWN))))?;
        let mut content = Vec::new();
        file.take(LOG_SHOWN).read_to_end(&mut content)?;
        Ok(String::from_utf8_lossy(&content).into_owned())
    };
    read().unwrap_or_default()
}

/// Stops the user's own daemon and waits until it is gone.
pub(crate) async fn stop() -> Result<()> {
    let place = Place::of_user()?;
    let none = || crate::print("no daemon is running\n");
    let stream = match UnixStream::connect(place.socket()).await {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
            return none();
        }
        Err(error) => return Err(Error::io("connect", &place.socket(), &error)),
    };
    // The kernel knows who listens; a file with a number could be out of date.
    let pid = stream.peer_cred().ok().and_then(|peer| peer.pid()).and_then(Pid::from_raw);
    drop(stream);
    let Some(pid) = pid else { return Err(Error::option("cannot tell which process the daemon is")) };
    let failed = |error: rustix::io::Errno| {
        Error::option(format!(
            "cannot stop process {}: {}",
            pid.as_raw_nonzero(),
            kiln_cli::io_text(&error.into())
        ))
    };
    kill_process(pid, Signal::TERM).map_err(failed)?;
    let deadline = Instant::now() + STOP_LIMIT;
    while !is_gone(pid) {
        if Instant::now() >= deadline {
            return Err(Error::option(format!(
                "the daemon (process {}) does not stop: builds are still running",
                pid.as_raw_nonzero()
            )));
        }
        sleep(POLL).await;
    }
    crate::print("stopped\n")
}

/// Whether a process has ended. One that nobody has waited for yet has ended too.
fn is_gone(pid: Pid) -> bool {
    if test_kill_process(pid).is_err() {
        return true;
    }
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_beside_us_comes_first() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a", "b"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let own = dir.path().join("a/kiln");
        let path = std::env::join_paths([dir.path().join("none"), dir.path().join("b")]).unwrap();
        let find = || find_program(Some(&own), Some(&path));
        assert_eq!(find(), None);
        std::fs::write(dir.path().join("b/buildkitd"), "").unwrap();
        assert_eq!(find(), Some(dir.path().join("b/buildkitd")));
        std::fs::write(dir.path().join("a/buildkitd"), "").unwrap();
        assert_eq!(find(), Some(dir.path().join("a/buildkitd")));
    }
}
