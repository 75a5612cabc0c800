//! Sessions are lent: who waits for the same layer uses credentials of its own, and another's end changes nothing.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result};
use kiln_tests::{DaemonOptions, Registry, wait_for};
use serde_json::json;
use tempfile::TempDir;

use crate::support::{Client, LIMIT, Site, hub, run};

/// The password `secret`, as the registry's file has it.
const HASH: &str = "$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a";
/// `anna:secret` and `bert:secret` as requests carry them.
const ANNA: &str = "YW5uYTpzZWNyZXQ=";
const BERT: &str = "YmVydDpzZWNyZXQ=";

/// A registry for two users, behind a proxy that holds answers back.
struct Guarded {
    _registry: Registry,
    /// Read anew by the registry.
    _passwords: TempDir,
    proxy: Proxy,
    image: String,
}

/// Passes bytes between the daemon and a registry. Once so many bytes have been answered altogether, the connection
/// that is to carry the next ones stands still; others go on.
struct Proxy {
    address: String,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    answered: u64,
    /// Bytes after which an answer is held back.
    hold_at: Option<u64>,
    held: bool,
    released: bool,
    /// Credentials in the order in which requests carried them.
    seen: Vec<String>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets an answer pass, at once or when it is released.
    fn pass(&self, bytes: usize) {
        let mut state = self.lock();
        state.answered += bytes as u64;
        if state.hold_at.is_none_or(|limit| state.answered < limit) || state.held || state.released {
            return;
        }
        state.held = true;
        while !state.released {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn request(&self, bytes: &[u8]) {
        let text = String::from_utf8_lossy(bytes).to_lowercase();
        let original = String::from_utf8_lossy(bytes);
        for (at, header) in text.match_indices("authorization: basic ") {
            let value = original.get(at + header.len()..).and_then(|rest| rest.lines().next());
            self.lock().seen.extend(value.map(str::to_owned));
        }
    }
}

impl Proxy {
    fn start(to: &str) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?.to_string();
        let shared = Arc::new(Shared::default());
        let (to, state) = (to.to_owned(), shared.clone());
        // Ends with the process: a listener cannot be woken otherwise, and nothing is lost.
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(&to) else { continue };
                let (Ok(from_client), Ok(to_server)) = (client.try_clone(), server.try_clone()) else {
                    continue;
                };
                let (requests, answers) = (state.clone(), state.clone());
                std::thread::spawn(move || carry(from_client, to_server, |bytes| requests.request(bytes)));
                std::thread::spawn(move || carry(server, client, |bytes| answers.pass(bytes.len())));
            }
        });
        Ok(Self { address, shared })
    }

    /// Holds an answer back after so many bytes from now on.
    fn hold(&self, after: u64) {
        let mut state = self.shared.lock();
        *state = State { hold_at: Some(after), ..State::default() };
    }

    fn wait_until_held(&self) -> Result<()> {
        wait_for("the proxy to hold an answer", LIMIT, None, || self.shared.lock().held)
    }

    fn release(&self) {
        self.shared.lock().released = true;
        self.shared.changed.notify_all();
    }

    fn seen(&self, credentials: &str) -> usize {
        self.shared.lock().seen.iter().filter(|seen| *seen == credentials).count()
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, mut tell: impl FnMut(&[u8])) {
    let mut buffer = [0; 2048];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        tell(&buffer[..count]);
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    to.shutdown(Shutdown::Write).ok();
}

impl Guarded {
    fn new() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("kiln-htpasswd-").tempdir()?;
        let file = dir.path().join("htpasswd");
        std::fs::write(&file, format!("anna:{HASH}\nbert:{HASH}\n"))?;
        let auth = format!("auth:\n  htpasswd:\n    realm: kiln\n    path: {}\n", file.display());
        let registry = Registry::with_config(&auth)?;
        let to = format!("docker://{}/private/base:latest", registry.address());
        run(
            "skopeo",
            &[
                "copy",
                "--quiet",
                "--insecure-policy",
                "--src-tls-verify=false",
                "--dest-tls-verify=false",
                "--dest-creds=anna:secret",
                &format!("docker://{}", hub()?.base),
                &to,
            ],
        )?;
        let proxy = Proxy::start(registry.address())?;
        let image = format!("{}/private/base:latest", proxy.address);
        Ok(Self { _registry: registry, _passwords: dir, proxy, image })
    }

    /// A client of `site` with these credentials, and where it puts its result.
    fn client(&self, site: &Site, credentials: &str) -> Result<(Client, TempDir)> {
        let dir = tempfile::tempdir()?;
        let config = json!({ "auths": { &self.proxy.address: { "auth": credentials } } });
        std::fs::write(dir.path().join("config.json"), config.to_string())?;
        let output = format!("--output=type=local,dest={}/out", dir.path().display());
        let mut command = site.command(&[&output])?;
        command.env("DOCKER_CONFIG", dir.path());
        Ok((Client::start(&mut command)?, dir))
    }

    fn site(&self) -> Result<Site> {
        let image = &self.image;
        let dockerfile =
            format!("FROM {image} AS b\nRUN echo lent > /lent\nFROM scratch\nCOPY --from=b /lent /\n");
        let options = DaemonOptions { args: vec!["--debug".into()], ..DaemonOptions::default() };
        Site::with_options(&[("Dockerfile", &dockerfile)], options)
    }

    /// How many bytes a whole pull answers.
    fn whole_pull(&self) -> Result<u64> {
        self.proxy.hold(u64::MAX);
        let site = self.site()?;
        let (client, _dir) = self.client(&site, ANNA)?;
        client.finish()?.success()?;
        Ok(self.proxy.shared.lock().answered)
    }
}

#[test]
fn a_pull_goes_on_with_anothers_credentials() -> Result<()> {
    let guarded = Guarded::new()?;
    let all = guarded.whole_pull()?;
    // From the first answer, which asks for credentials, over manifest and config to the end of the last layer.
    let small = [1, 300, 900, 2000, 3500].into_iter();
    let points = small.chain((1..8).map(|eighth| all * eighth / 8)).chain([all - 1]);
    for point in points {
        let site = guarded.site()?;
        guarded.proxy.hold(point);
        let (anna, _annas) = guarded.client(&site, ANNA)?;
        guarded.proxy.wait_until_held().with_context(|| format!("after {point} of {all} bytes"))?;
        let (bert, berts) = guarded.client(&site, BERT)?;
        // He waits for the step that she has begun, or has found his own way past what is held.
        bert.wait_for("RUN echo lent")?;
        anna.kill()?;
        wait_for("the daemon to notice", LIMIT, None, || site.daemon.log().contains("session is over"))?;
        let before = guarded.proxy.seen(ANNA);
        guarded.proxy.release();
        bert.finish()?.success().with_context(|| format!("killed after {point} of {all} bytes"))?;
        assert_eq!(std::fs::read_to_string(berts.path().join("out/lent"))?, "lent\n");
        assert!(guarded.proxy.seen(BERT) > 0, "his own credentials were used");
        assert_eq!(
            guarded.proxy.seen(ANNA),
            before,
            "hers were used after she had gone, at {point} of {all} bytes"
        );
    }
    Ok(())
}

#[test]
fn who_may_not_does_not_spoil_it_for_who_may() -> Result<()> {
    let guarded = Guarded::new()?;
    let site = guarded.site()?;
    guarded.proxy.hold(u64::MAX);
    // anna:wrong
    let mallories: Vec<_> =
        (0..3).map(|_| guarded.client(&site, "YW5uYTp3cm9uZw==")).collect::<Result<_>>()?;
    let (bert, berts) = guarded.client(&site, BERT)?;
    bert.finish()?.success()?;
    assert_eq!(std::fs::read_to_string(berts.path().join("out/lent"))?, "lent\n");
    for (mallory, _dir) in mallories {
        mallory.finish()?.failure()?;
    }
    Ok(())
}
