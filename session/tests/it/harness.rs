use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use kiln_api::control::BytesMessage;
use kiln_rootdir::Root;
use kiln_session::attach::Attachments;
use kiln_session::{ID_KEY, METHOD_KEY, Pipe, Session, Sessions};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::TaskTracker;
use tonic::Status;
use tonic::metadata::MetadataMap;

/// A daemon's sessions with one client attached, without a network in between.
pub(crate) struct Loop {
    pub(crate) sessions: Sessions,
    pub(crate) session: Session,
    client: tokio::task::JoinHandle<()>,
}

impl Loop {
    pub(crate) async fn open(attachments: Attachments) -> Self {
        let sessions = Sessions::new();
        let client = attach(&sessions, "one", attachments);
        let session = sessions.get("x:one", Duration::from_secs(10)).await.unwrap();
        Self { sessions, session, client }
    }

    /// The client vanishes.
    pub(crate) fn cut(&self) {
        self.client.abort();
    }
}

/// Attaches a client.
pub(crate) fn attach(sessions: &Sessions, id: &str, attachments: Attachments) -> tokio::task::JoinHandle<()> {
    let mut metadata = MetadataMap::new();
    metadata.insert(ID_KEY, id.parse().unwrap());
    for method in attachments.methods() {
        metadata.append(METHOD_KEY, method.to_uppercase().parse().unwrap());
    }
    let (to_client, from_daemon) = tokio::sync::mpsc::channel::<Result<Bytes, Status>>(4);
    let (pipe, outgoing) = Pipe::new(ReceiverStream::new(from_daemon));
    let outgoing = ReceiverStream::new(outgoing).map(|data| Ok(BytesMessage { data }));
    let mut daemon = sessions.accept(&metadata, outgoing).unwrap();
    let pump = async move {
        while let Some(Ok(message)) = daemon.next().await {
            if to_client.send(Ok(message.data)).await.is_err() {
                break;
            }
        }
    };
    let serve = async move { attachments.serve(pipe, TaskTracker::new()).await };
    #[expect(clippy::disallowed_methods, reason = "a test owns it through the handle")]
    tokio::spawn(async move {
        tokio::select! {
            () = pump => {}
            _ = serve => {}
        }
    })
}

pub(crate) fn root(path: &Path) -> Arc<Root> {
    Arc::new(Root::open(path).unwrap())
}

/// What lies below a directory: kind, mode, size or target, time and content of each path.
pub(crate) fn listing(dir: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut inodes = BTreeMap::new();
    collect(dir, dir, &mut found, &mut inodes);
    found
}

fn collect(top: &Path, dir: &Path, found: &mut BTreeMap<String, String>, inodes: &mut BTreeMap<u64, String>) {
    let mut entries: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        let name = path.strip_prefix(top).unwrap().to_str().unwrap().to_owned();
        let metadata = std::fs::symlink_metadata(&path).unwrap();
        let time = format!("{}.{:09}", metadata.mtime(), metadata.mtime_nsec());
        let kind = metadata.file_type();
        let mode = metadata.permissions().mode() & 0o7777;
        let text = if kind.is_dir() {
            format!("dir {mode:o} {time}")
        } else if kind.is_symlink() {
            format!("link {} {time}", std::fs::read_link(&path).unwrap().display())
        } else if kind.is_file() {
            let first = inodes.entry(metadata.ino()).or_insert_with(|| name.clone()).clone();
            let content = String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned();
            let content = if content.len() > 64 { format!("{} bytes", content.len()) } else { content };
            let same = if first == name { String::new() } else { format!(" same as {first}") };
            format!("file {mode:o} {time} {content:?}{same}")
        } else {
            format!("special {mode:o} {time}")
        };
        found.insert(name, text);
        if kind.is_dir() {
            collect(top, &path, found, inodes);
        }
    }
}
