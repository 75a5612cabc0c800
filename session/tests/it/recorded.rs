//! Our senders and receivers against recorded transfers of the reference.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt as _;
use kiln_api::fsutil::Packet;
use kiln_rootdir::{Kind, Root, Time};
use kiln_session::fsutil::{self, Differ, DirTree, GoMode, Message, ReceiveOptions, Stat, WalkOptions};
use prost::Message as _;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::harness::{listing, root};

const SECONDS: i64 = 1_577_934_245;
const NANOSECONDS: u32 = 123_456_789;

/// Cases in which nothing is transferred, or where we differ on purpose: a file that cannot be opened is an error.
const OTHERS: &[&str] = &[
    "bad-pattern",
    "unknown-name",
    "open-fails",
    "interrupted",
    "export-dir-delete-refused",
    "export-file",
    "export-file-skipped",
    // Its patterns are encoded in the headers, and match nothing.
    "followpaths-header-encoding",
];

struct Case {
    name: String,
    record: Value,
    /// What the sending side sent: the listing, and the content by id.
    stats: Vec<Stat>,
    contents: BTreeMap<u32, Vec<u8>>,
    requests: BTreeSet<u32>,
}

fn cases() -> Vec<Case> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/fsutil");
    let mut cases = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if path.extension().is_none_or(|extension| extension != "json") || OTHERS.contains(&name.as_str()) {
            continue;
        }
        let record: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let mut case =
            Case { name, record, stats: vec![], contents: BTreeMap::new(), requests: BTreeSet::new() };
        for message in case.record["messages"].as_array().unwrap() {
            match kind_of(message) {
                "PACKET_STAT" => {
                    let packet = decode(message);
                    case.stats.extend(packet.stat.map(stat_of));
                }
                "PACKET_REQ" => {
                    case.requests.insert(decode(message).id);
                }
                "PACKET_DATA" => {
                    let id = u32::try_from(message["packet"]["ID"].as_u64().unwrap()).unwrap();
                    let length = usize::try_from(message["packet"]["data_len"].as_u64().unwrap()).unwrap();
                    let content = case.contents.entry(id).or_default();
                    if message["hex"].is_string() {
                        content.extend_from_slice(&decode(message).data);
                    } else {
                        let so_far = content.len();
                        content.extend_from_slice(&pattern(so_far + length)[so_far..]);
                    }
                }
                _ => {}
            }
        }
        cases.push(case);
    }
    if !rustix::process::geteuid().is_root() {
        println!("skipped: modes-special has files that only root can read");
        cases.retain(|case| case.name != "modes-special");
    }
    assert!(cases.len() > 10);
    cases
}

fn kind_of(message: &Value) -> &str {
    message["packet"]["type"].as_str().unwrap_or_default()
}

fn decode(message: &Value) -> Packet {
    Packet::decode(hex::decode(message["hex"].as_str().unwrap()).unwrap().as_slice()).unwrap()
}

fn stat_of(stat: kiln_api::fsutil::Stat) -> Stat {
    Stat {
        path: stat.path,
        mode: GoMode(stat.mode),
        uid: stat.uid,
        gid: stat.gid,
        size: stat.size,
        mod_time: stat.mod_time,
        linkname: stat.linkname,
        dev_major: stat.devmajor,
        dev_minor: stat.devminor,
        xattrs: stat.xattrs,
    }
}

fn pattern(length: usize) -> Vec<u8> {
    b"0123456789abcdef".iter().copied().cycle().take(length).collect()
}

/// Makes the recorded source below `dir`.
fn build(case: &Case, dir: &Path) {
    let root = Root::open(dir).unwrap();
    let time = Time { seconds: SECONDS, nanoseconds: NANOSECONDS };
    let entries = case.record["source"].as_array().unwrap();
    for entry in entries {
        let text = |name: &str| entry[name].as_str().unwrap_or_default();
        let (path, mode) = (text("path"), u32::from_str_radix(text("mode"), 8).unwrap());
        match text("type") {
            "dir" => root.mkdir(path, mode).unwrap(),
            "symlink" => root.symlink(text("target"), path).unwrap(),
            "hardlink" => root.hard_link(text("target"), path).unwrap(),
            "fifo" => root.mknod(path, Kind::Fifo, mode, (0, 0)).unwrap(),
            "file" => {
                let content = match text("content").split_once("repeated to ") {
                    Some((_, rest)) => pattern(rest.trim_end_matches(" bytes").parse().unwrap()),
                    None => text("content").as_bytes().to_vec(),
                };
                fs::write(dir.join(path), content).unwrap();
                fs::set_permissions(dir.join(path), fs::Permissions::from_mode(mode)).unwrap();
            }
            other => panic!("{other}"),
        }
        for (name, value) in entry["xattrs"].as_object().into_iter().flatten() {
            root.set_xattr(path, name, value.as_str().unwrap().as_bytes()).unwrap();
        }
    }
    for entry in entries.iter().rev() {
        root.set_times(entry["path"].as_str().unwrap(), time, time, true).unwrap();
    }
}

fn header(case: &Case, name: &str) -> Vec<String> {
    let values = case.record["headers"][name].as_array().cloned().unwrap_or_default();
    values.iter().map(|value| value.as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn we_send_what_the_reference_sends() {
    for case in cases() {
        let dir = tempfile::tempdir().unwrap();
        build(&case, dir.path());
        let mut options = WalkOptions::default();
        options.include = header(&case, "include-patterns");
        options.exclude = header(&case, "exclude-patterns");
        options.follow_paths = header(&case, "followpaths");
        options.map = Some(Arc::new(|stat| {
            (stat.uid, stat.gid) = (0, 0);
            true
        }));
        let (outgoing, mut queue) = mpsc::channel(4);
        let (requests, incoming) = mpsc::channel(64);
        let asking = async {
            let (mut stats, mut contents) = (Vec::new(), BTreeMap::<u32, Vec<u8>>::new());
            let mut open = case.requests.len();
            loop {
                match queue.recv().await.unwrap() {
                    Message::Stat(Some(stat)) => stats.push(*stat),
                    Message::Stat(None) => {
                        for id in &case.requests {
                            requests.send(Message::Request(*id)).await.unwrap();
                        }
                    }
                    Message::Data(id, data) => {
                        open -= usize::from(data.is_empty());
                        contents.entry(id).or_default().extend_from_slice(&data);
                    }
                    other => panic!("{other:?}"),
                }
                if open == 0 && stats.len() == case.stats.len() {
                    break;
                }
            }
            requests.send(Message::Fin).await.unwrap();
            while let Some(message) = queue.recv().await {
                assert!(matches!(message, Message::Fin | Message::Stat(None)), "{message:?}");
            }
            (stats, contents)
        };
        let tree = Arc::new(DirTree::new(Root::open(dir.path()).unwrap(), options));
        let sending = fsutil::send(tree, ReceiverStream::new(incoming).map(Ok), outgoing);
        let (sent, (stats, contents)) = tokio::join!(sending, asking);
        sent.unwrap();
        assert_eq!(stats, case.stats, "{}", case.name);
        assert_eq!(contents, case.contents, "{}", case.name);
    }
}

/// Makes what the destination held before.
fn prepare(case: &Case, dir: &Path) {
    let before = case.record["already_there"].as_array().cloned().unwrap_or_default();
    let before: Vec<&str> = before.iter().map(|path| path.as_str().unwrap()).collect();
    if before.contains(&"dir/b.txt") {
        build(case, dir);
    }
    for path in before {
        // One that differs in size, and those that the source does not have.
        let differs = path == "a.txt" && matches!(case.name.as_str(), "changed-one" | "export-dir-existing");
        if differs || dir.join(path).symlink_metadata().is_err() {
            fs::write(dir.join(path), "there before").unwrap();
        }
    }
}

#[tokio::test]
async fn we_ask_for_what_the_reference_asks_for() {
    for case in cases().into_iter().filter(|case| case.name != "differ-content") {
        let dir = tempfile::tempdir().unwrap();
        prepare(&case, dir.path());
        let mut options = ReceiveOptions::default();
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        options.map = Some(Arc::new(move |stat| {
            (stat.uid, stat.gid) = (uid, gid);
            true
        }));
        let delete = case.name == "export-dir-delete";
        options.merge = case.name.starts_with("export-") && !delete;
        if case.name == "differ-none" || delete {
            options.differ = Differ::None;
        }
        options.metadata_only = (case.name == "metadata-only").then(|| vec!["a.txt".to_owned()]);
        let (to_receiver, from_sender) = mpsc::channel(4);
        let (outgoing, mut queue) = mpsc::channel(4);
        let serving = async {
            for stat in &case.stats {
                to_receiver.send(Message::Stat(Some(Box::new(stat.clone())))).await.unwrap();
            }
            to_receiver.send(Message::Stat(None)).await.unwrap();
            let mut requests = BTreeSet::new();
            while let Some(message) = queue.recv().await {
                match message {
                    Message::Request(id) => {
                        assert!(requests.insert(id));
                        let content = Bytes::from(case.contents[&id].clone());
                        if !content.is_empty() {
                            to_receiver.send(Message::Data(id, content)).await.unwrap();
                        }
                        to_receiver.send(Message::Data(id, Bytes::new())).await.unwrap();
                    }
                    Message::Fin => to_receiver.send(Message::Fin).await.unwrap(),
                    other => panic!("{other:?}"),
                }
            }
            requests
        };
        let receiving =
            fsutil::receive(root(dir.path()), options, ReceiverStream::new(from_sender).map(Ok), outgoing);
        let (received, requests) = tokio::join!(receiving, serving);
        received.unwrap();
        assert_eq!(requests, case.requests, "{}", case.name);
        let paths: Vec<String> = listing(dir.path())
            .into_iter()
            .map(|(path, text)| if text.starts_with("dir ") { format!("{path}/") } else { path })
            .collect();
        let mut want: Vec<String> = case.record["received"]
            .as_array()
            .unwrap()
            .iter()
            .map(|path| path.as_str().unwrap().to_owned())
            .collect();
        want.sort_by(|a, b| a.trim_end_matches('/').cmp(b.trim_end_matches('/')));
        assert_eq!(paths, want, "{}", case.name);
        if !matches!(case.name.as_str(), "metadata-only" | "export-dir-existing")
            && case.record["source"].is_array()
        {
            let source = tempfile::tempdir().unwrap();
            build(&case, source.path());
            let all = listing(source.path());
            for (path, text) in listing(dir.path()) {
                assert_eq!(all.get(&path), Some(&text), "{}: {path}", case.name);
            }
        }
    }
}
