//! Whatever tree is sent, the destination becomes it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex};

use futures::StreamExt as _;
use kiln_rootdir::Root;
use kiln_session::fsutil::{
    self, ChangeKind, DirTree, GoMode, Limits, Message, ReceiveOptions, Stat, Stats, WalkOptions,
};
use kiln_session::{Error, Result};
use proptest::prelude::*;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::harness::{listing, root};

#[derive(Clone, Debug)]
enum Node {
    File(Vec<u8>, u32),
    Dir(u32),
    Symlink(u8),
    HardLink(u8),
    Fifo,
}

const NAMES: &[&str] = &["a", "b", "a-b", "a.b", "ab", "z"];

fn node() -> impl Strategy<Value = Node> {
    prop_oneof![
        4 => (proptest::collection::vec(any::<u8>(), 0..200), 0u32..0o1000).prop_map(|(c, m)| Node::File(c, m)),
        1 => (any::<u8>(), 0u32..0o1000).prop_map(|(c, m)| Node::File(vec![c; 300_000], m)),
        4 => (0u32..0o2000).prop_map(Node::Dir),
        1 => any::<u8>().prop_map(Node::Symlink),
        1 => any::<u8>().prop_map(Node::HardLink),
        1 => Just(Node::Fifo),
    ]
}

fn tree() -> impl Strategy<Value = Vec<(Vec<usize>, Node)>> {
    let path = proptest::collection::vec(0..NAMES.len(), 1..4);
    proptest::collection::vec((path, node()), 0..24)
}

/// Whoever is not root needs rights to what is sent.
fn readable() -> u32 {
    if rustix::process::geteuid().is_root() { 0 } else { 0o700 }
}

/// Makes what can be made; entries whose directory is missing or whose place is taken are skipped.
fn build(dir: &Path, nodes: &[(Vec<usize>, Node)]) {
    let mut files: Vec<std::path::PathBuf> = Vec::new();
    let mut modes = Vec::new();
    let mut nodes: Vec<_> = nodes.iter().collect();
    nodes.sort_by_key(|(path, _)| path.len());
    for (path, node) in nodes {
        let path = dir.join(path.iter().map(|index| NAMES[*index]).collect::<Vec<_>>().join("/"));
        if path.symlink_metadata().is_ok() || !path.parent().unwrap().is_dir() {
            continue;
        }
        match node {
            Node::File(content, mode) => {
                if fs::write(&path, content).is_ok() {
                    fs::set_permissions(&path, fs::Permissions::from_mode(*mode | readable())).unwrap();
                    files.push(path);
                }
            }
            Node::Dir(mode) => {
                fs::create_dir(&path).unwrap();
                modes.push((path, *mode));
            }
            // Links lead to plain names, which may or may not be there.
            Node::Symlink(to) => {
                std::os::unix::fs::symlink(format!("no-{to}"), &path).unwrap();
            }
            Node::HardLink(to) => {
                if !files.is_empty() {
                    fs::hard_link(&files[usize::from(*to) % files.len()], &path).unwrap();
                }
            }
            Node::Fifo => {
                let root = Root::open(path.parent().unwrap()).unwrap();
                root.mknod(path.file_name().unwrap(), kiln_rootdir::Kind::Fifo, 0o600, (0, 0)).unwrap();
            }
        }
    }
    for (path, mode) in modes {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode | readable())).unwrap();
    }
}

async fn transfer(from: &Path, to: &Path, options: ReceiveOptions) -> Result<Stats> {
    let (to_receiver, from_sender) = mpsc::channel(3);
    let (to_sender, from_receiver) = mpsc::channel(2);
    let tree = DirTree::new(Root::open(from).unwrap(), WalkOptions::default());
    let sending = fsutil::send(Arc::new(tree), ReceiverStream::new(from_receiver).map(Ok), to_receiver);
    let receiving = fsutil::receive(root(to), options, ReceiverStream::new(from_sender).map(Ok), to_sender);
    let (sent, received) = tokio::join!(sending, receiving);
    let stats = received?;
    sent?;
    Ok(stats)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn the_destination_becomes_the_source(before in tree(), after in tree()) {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        build(to.path(), &before);
        build(from.path(), &after);
        let runtime = runtime();
        runtime.block_on(transfer(from.path(), to.path(), ReceiveOptions::default())).unwrap();
        prop_assert_eq!(listing(to.path()), listing(from.path()));
        // A second time there is nothing to do.
        let changes = Arc::new(Mutex::new(Vec::new()));
        let mut options = ReceiveOptions::default();
        let seen = changes.clone();
        options.changes = Some(Arc::new(move |change| seen.lock().unwrap().push(change.path)));
        let stats = runtime.block_on(transfer(from.path(), to.path(), options)).unwrap();
        prop_assert_eq!(stats.requested, 0);
        prop_assert!(changes.lock().unwrap().is_empty());
        prop_assert_eq!(listing(to.path()), listing(from.path()));
    }
}

#[tokio::test]
async fn changes_carry_digests() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(from.path().join("a"), "alpha").unwrap();
    fs::hard_link(from.path().join("a"), from.path().join("b")).unwrap();
    fs::create_dir(from.path().join("d")).unwrap();
    fs::write(to.path().join("a"), "old").unwrap();
    fs::write(to.path().join("old"), "").unwrap();
    let changes = Arc::new(Mutex::new(Vec::new()));
    let seen = changes.clone();
    let mut options = ReceiveOptions::default();
    options.seed = Some(Arc::new(|stat: &Stat| stat.path.clone().into_bytes()));
    options.changes = Some(Arc::new(move |change| {
        seen.lock().unwrap().push((change.path, change.kind, change.digest));
    }));
    transfer(from.path(), to.path(), options).await.unwrap();
    let mut changes = changes.lock().unwrap().clone();
    changes.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(
        changes,
        [
            ("a".to_owned(), ChangeKind::Modify, Some(kiln_digest::Digest::of("aalpha"))),
            ("b".to_owned(), ChangeKind::Add, None),
            ("d".to_owned(), ChangeKind::Add, Some(kiln_digest::Digest::of("d"))),
            ("old".to_owned(), ChangeKind::Delete, None),
        ]
    );
}

#[tokio::test]
async fn a_file_that_cannot_be_read_fails_both_sides() {
    #[derive(Debug)]
    struct Broken(DirTree);
    impl fsutil::Tree for Broken {
        fn list(&self, emit: &mut dyn FnMut(Stat) -> Result<std::ops::ControlFlow<()>>) -> Result<()> {
            self.0.list(emit)
        }
        fn open(&self, path: &str) -> Result<fsutil::Content> {
            Err(Error::Read { path: path.to_owned(), source: std::io::ErrorKind::PermissionDenied.into() })
        }
    }
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(from.path().join("a"), "alpha").unwrap();
    let tree = Broken(DirTree::new(Root::open(from.path()).unwrap(), WalkOptions::default()));
    let (to_receiver, from_sender) = mpsc::channel(3);
    let (to_sender, from_receiver) = mpsc::channel(2);
    let (sent, received) = tokio::join!(
        fsutil::send(Arc::new(tree), ReceiverStream::new(from_receiver).map(Ok), to_receiver),
        fsutil::receive(
            root(to.path()),
            ReceiveOptions::default(),
            ReceiverStream::new(from_sender).map(Ok),
            to_sender
        )
    );
    assert_eq!(sent.unwrap_err().to_string(), "cannot read `a`");
    assert_eq!(received.unwrap_err().to_string(), "error from sender: cannot read `a`: permission denied");
    assert!(listing(to.path()).is_empty());
}

/// What a receiver says to a peer that sends these messages and nothing else.
async fn hostile(messages: Vec<Message>, limits: Limits) -> String {
    let to = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(outside.path(), to.path().join("out")).unwrap();
    let (outgoing, mut answers) = mpsc::channel(64);
    let mut options = ReceiveOptions::default();
    options.limits = limits;
    options.merge = true;
    let incoming = futures::stream::iter(messages.into_iter().map(Ok)).chain(futures::stream::pending());
    let received = fsutil::receive(root(to.path()), options, incoming, outgoing).await;
    assert!(listing(outside.path()).is_empty());
    let text = received.unwrap_err().chain();
    let mut told = None;
    while let Some(answer) = answers.recv().await {
        if let Message::Error(text) = answer {
            told = Some(text);
        }
    }
    assert_eq!(told.as_deref(), Some(text.as_str()));
    text
}

fn stat(path: &str, mode: u32, linkname: &str) -> Message {
    Message::Stat(Some(Box::new(Stat {
        path: path.to_owned(),
        mode: GoMode(mode),
        linkname: linkname.to_owned(),
        ..Stat::default()
    })))
}

#[tokio::test]
async fn hostile_peers() {
    let file = |path: &str| stat(path, 0o644, "");
    for (messages, want) in [
        (vec![file("b"), file("a")], r#"changes out of order: "a" "b""#),
        (vec![file("../a")], r#"escape check: path "../a" leaves the root"#),
        (vec![file("/etc/x")], r#"absolute path "/etc/x" not allowed"#),
        (vec![file("a/")], r#"unclean path "a/""#),
        (vec![file("out/x")], r#"changes out of order: "out/x" """#),
        (vec![stat("l", GoMode::SYMLINK | 0o777, "/etc"), file("l/x")], r#"changes out of order: "l/x" "l""#),
        (vec![stat("a", 0o644, "b")], r#"invalid link a to unknown path: "b""#),
        (vec![stat("a", GoMode::DIR | GoMode::SYMLINK, "")], r#"invalid mode 21000000000 of "a""#),
        (vec![Message::Data(7, "x".into())], "invalid file request 7"),
        (vec![Message::Request(7)], "unexpected packet: PACKET_REQ"),
        (vec![file("a"), Message::Stat(None), file("b")], "entry after the end of the listing"),
        (vec![file("a"), file("b"), file("c"), file("d")], "transfer exceeds the limit of 3 entries"),
        (vec![file("a"), Message::Data(0, vec![0; 101].into())], "transfer exceeds the limit of 100 bytes"),
    ] {
        let mut limits = Limits::default();
        (limits.entries, limits.bytes) = (3, 100);
        assert_eq!(hostile(messages, limits).await, want);
    }
}

#[tokio::test]
async fn senders_refuse_what_was_not_offered() {
    let from = tempfile::tempdir().unwrap();
    fs::create_dir(from.path().join("d")).unwrap();
    let tree = Arc::new(DirTree::new(Root::open(from.path()).unwrap(), WalkOptions::default()));
    for id in [0, 1, u32::MAX] {
        let (outgoing, mut queue) = mpsc::channel(64);
        let (requests, incoming) = mpsc::channel(1);
        let asking = async {
            while !matches!(queue.recv().await, Some(Message::Stat(None))) {}
            requests.send(Message::Request(id)).await.unwrap();
        };
        let sending = fsutil::send(tree.clone(), ReceiverStream::new(incoming).map(Ok), outgoing);
        let (sent, ()) = tokio::join!(sending, asking);
        assert_eq!(sent.unwrap_err().to_string(), format!("invalid file id {id}"));
    }
}
