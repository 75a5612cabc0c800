//! A small web server in this process, whose answers a test decides on.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, Result, bail};

/// The longest body of a request that is read.
const MAX_BODY: usize = 64 << 20;

/// What was asked.
#[derive(Clone, Debug, Default)]
pub struct WebRequest {
    /// `GET` and such.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// Headers by lower-case name.
    pub headers: BTreeMap<String, String>,
    /// The body.
    pub body: Vec<u8>,
}

/// What is answered.
#[derive(Clone, Debug, Default)]
pub struct WebResponse {
    /// The status.
    pub status: u16,
    /// Headers; `Content-Length` is added.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
    /// What happens after the body.
    pub end: End,
}

/// How an answer ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum End {
    /// With its body.
    #[default]
    Whole,
    /// The body goes on, but nothing comes any more until the server is dropped.
    Stall,
    /// The connection is closed although more was announced.
    Cut,
    /// The body is sent again and again until the client goes away.
    Endless,
}

impl WebResponse {
    /// An answer with a body.
    pub fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self { status: 200, body: body.into(), ..Self::default() }
    }

    /// An answer without a body.
    pub fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    /// Says how it ends.
    #[must_use]
    pub fn end(mut self, end: End) -> Self {
        self.end = end;
        self
    }
}

/// Decides on an answer.
type Handler = dyn Fn(&WebRequest) -> WebResponse + Send + Sync;

/// A web server on a loopback port. Dropped, it takes no connections any more.
pub struct WebServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    accepting: Option<JoinHandle<()>>,
}

struct Shared {
    handler: Box<Handler>,
    requests: Mutex<Vec<WebRequest>>,
    ended: AtomicBool,
}

impl WebServer {
    /// Starts one that answers with what `handler` returns.
    ///
    /// # Errors
    /// No port is free.
    pub fn start(handler: impl Fn(&WebRequest) -> WebResponse + Send + Sync + 'static) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            handler: Box::new(handler),
            requests: Mutex::default(),
            ended: AtomicBool::new(false),
        });
        let of_thread = shared.clone();
        let accepting = std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if of_thread.ended.load(Ordering::Relaxed) {
                    return;
                }
                let shared = of_thread.clone();
                std::thread::spawn(move || {
                    // A client that goes away in the middle is what some tests want.
                    shared.serve(&stream).ok();
                });
            }
        });
        Ok(Self { shared, address, accepting: Some(accepting) })
    }

    /// Starts one that serves the bare git repositories below `root`.
    ///
    /// # Errors
    /// As [`WebServer::start`].
    pub fn git(root: PathBuf) -> Result<Self> {
        Self::start(move |request| git_answer(&root, request))
    }

    /// `127.0.0.1:PORT`.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// The address of a file.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.address)
    }

    /// What was asked so far.
    pub fn requests(&self) -> Vec<WebRequest> {
        self.shared.requests().clone()
    }

    /// Methods and targets of what was asked so far, which is forgotten.
    pub fn take_log(&self) -> Vec<String> {
        let requests = std::mem::take(&mut *self.shared.requests());
        requests.into_iter().map(|r| format!("{} {}", r.method, r.target)).collect()
    }
}

impl std::fmt::Debug for WebServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WebServer").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Drop for WebServer {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        // Wakes the thread that accepts.
        TcpStream::connect(self.address).ok();
        if let Some(accepting) = self.accepting.take() {
            accepting.join().ok();
        }
    }
}

impl Shared {
    fn requests(&self) -> MutexGuard<'_, Vec<WebRequest>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, stream: &TcpStream) -> Result<()> {
        let mut reader = BufReader::new(stream);
        while let Some(request) = read(&mut reader, stream)? {
            self.requests().push(request.clone());
            let response = (self.handler)(&request);
            if !self.answer(stream, &request, &response)? {
                break;
            }
        }
        Ok(())
    }

    /// Writes an answer; `false`: the connection ends with it.
    fn answer(&self, mut stream: &TcpStream, request: &WebRequest, response: &WebResponse) -> Result<bool> {
        let mut head = format!("HTTP/1.1 {} X\r\n", response.status);
        for (name, value) in &response.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        let length = match response.end {
            End::Whole => Some(response.body.len()),
            End::Stall | End::Cut => Some(response.body.len() + 1000),
            End::Endless => None,
        };
        let bodiless = matches!(response.status, 204 | 304);
        if let Some(length) = length.filter(|_| !bodiless) {
            head.push_str(&format!("Content-Length: {length}\r\n"));
        }
        stream.write_all(format!("{head}\r\n").as_bytes())?;
        if request.method == "HEAD" || bodiless {
            return Ok(true);
        }
        stream.write_all(&response.body)?;
        match response.end {
            End::Whole => return Ok(true),
            End::Cut => {}
            End::Stall => {
                // Until the client goes away.
                stream.read_exact(&mut [0]).ok();
            }
            End::Endless => {
                while !self.ended.load(Ordering::Relaxed) {
                    stream.write_all(&response.body)?;
                }
            }
        }
        Ok(false)
    }
}

/// Reads a request; none when the client has closed.
fn read(reader: &mut BufReader<&TcpStream>, mut stream: &TcpStream) -> Result<Option<WebRequest>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_ascii_whitespace();
    let (Some(method), Some(target)) = (words.next(), words.next()) else { bail!("no request: {line}") };
    let mut request =
        WebRequest { method: method.to_owned(), target: target.to_owned(), ..WebRequest::default() };
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        request.headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    if request.headers.contains_key("expect") {
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    let length: usize = request.headers.get("content-length").map_or(Ok(0), |text| text.parse())?;
    if length > MAX_BODY {
        bail!("a body of {length} bytes");
    }
    request.body.resize(length, 0);
    reader.read_exact(&mut request.body)?;
    Ok(Some(request))
}

/// Answers as git's own program for web servers does, for the bare repositories below `root`.
pub fn git_answer(root: &Path, request: &WebRequest) -> WebResponse {
    match run_backend(root, request) {
        Ok(response) => response,
        Err(error) => {
            WebResponse { status: 500, body: format!("{error:#}").into(), ..WebResponse::default() }
        }
    }
}

fn run_backend(root: &Path, request: &WebRequest) -> Result<WebResponse> {
    let (path, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
    let header = |name: &str| request.headers.get(name).cloned().unwrap_or_default();
    let mut child = Command::new("git")
        .args(["-c", "safe.directory=*", "http-backend"])
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("PATH_INFO", path)
        .env("QUERY_STRING", query)
        .env("REQUEST_METHOD", &request.method)
        .env("CONTENT_TYPE", header("content-type"))
        .env("HTTP_CONTENT_ENCODING", header("content-encoding"))
        .env("GIT_PROTOCOL", header("git-protocol"))
        .env("CONTENT_LENGTH", request.body.len().to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("failed to start git")?;
    let mut input = child.stdin.take().context("no pipe")?;
    let body = request.body.clone();
    // The program may answer before it has read everything.
    let writing = std::thread::spawn(move || input.write_all(&body));
    let output = child.wait_with_output()?;
    writing.join().ok();
    let split = output.stdout.windows(4).position(|four| four == b"\r\n\r\n").context("no head")?;
    let (head, body) = output.stdout.split_at(split);
    let mut response = WebResponse::ok(body.get(4..).unwrap_or_default());
    for line in String::from_utf8_lossy(head).lines() {
        let Some((name, value)) = line.split_once(": ") else { continue };
        match name {
            "Status" => response.status = value.split(' ').next().unwrap_or_default().parse()?,
            name => response.headers.push((name.to_owned(), value.to_owned())),
        }
    }
    Ok(response)
}
