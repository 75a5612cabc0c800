//! A client whose session runs in this process.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use futures::StreamExt as _;
use kiln_api::control::BytesMessage;
use kiln_session::attach::{Attachments, FileSyncProvider};
use kiln_session::{FixedWaiters, ID_KEY, Lender, METHOD_KEY, Pipe, SHARED_KEY_KEY, Sessions};
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;
use tonic::metadata::MetadataMap;

/// Sessions of some clients; they end with this value.
#[derive(Debug, Default)]
pub(crate) struct Clients {
    sessions: Sessions,
    ids: Vec<String>,
    tasks: JoinSet<()>,
}

impl Clients {
    /// Opens a session; all clients have one shared key.
    pub(crate) fn open(mut self, id: &str, attachments: Attachments) -> Self {
        let mut head = MetadataMap::new();
        head.insert(ID_KEY, id.parse().unwrap());
        head.insert(SHARED_KEY_KEY, "shared".parse().unwrap());
        for method in attachments.methods() {
            head.append(METHOD_KEY, method.parse().unwrap());
        }
        let (given, outgoing) = futures::channel::oneshot::channel();
        let outgoing = futures::stream::once(outgoing).filter_map(|stream| async { stream.ok() }).flatten();
        let (pipe, mut bytes) = Pipe::new(outgoing);
        let incoming = futures::stream::poll_fn(move |cx| bytes.poll_recv(cx));
        let stream = self.sessions.accept(&head, incoming.map(|data| Ok(BytesMessage { data }))).unwrap();
        let outgoing = stream.map(|item| item.map(|message| message.data)).boxed();
        assert!(given.send(outgoing).is_ok());
        self.tasks.spawn(async move {
            let _ended = attachments.serve(pipe, TaskTracker::new()).await;
        });
        self.ids.push(id.to_owned());
        self
    }

    pub(crate) fn lender(&self) -> Lender {
        Lender::new(self.sessions.clone(), Arc::new(FixedWaiters(self.ids.clone())))
    }
}

/// Offers one directory as `ctx`.
pub(crate) fn directory(path: &Path) -> Attachments {
    let dirs = BTreeMap::from([("ctx".to_owned(), path.to_owned())]);
    let (service, methods) = FileSyncProvider::new(dirs).into_service();
    Attachments::new().add(service, methods)
}
