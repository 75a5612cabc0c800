//! The recorded answers of the reference, by both views.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, lchown},
    path::{Path, PathBuf},
};

use kiln_rootdir::{Kind, Root};
use kiln_vectors::Vectors;
use serde::Deserialize;

use super::{ContentChange, ContentHeader, ContentSelector, EntryKind, Tree, select, tree::View};
use crate::{Error, Result};

#[derive(Deserialize)]
struct TreeCase {
    name: String,
    root: EntryCase,
    entries: Vec<EntryCase>,
}

#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct EntryCase {
    path: String,
    #[serde(rename = "type")]
    kind: String,
    mode: String,
    uid: u32,
    gid: u32,
    xattrs: std::collections::BTreeMap<String, String>,
    content: String,
    target: String,
    devmajor: u32,
    devminor: u32,
}

impl EntryCase {
    fn mode(&self) -> u32 {
        u32::from_str_radix(&self.mode, 8).unwrap()
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Row {
    tree: String,
    path: String,
    follow_links: bool,
    wildcard: bool,
    include: Vec<String>,
    exclude: Vec<String>,
    required: Vec<String>,
    scan: Answer,
    transfer: Answer,
}

#[derive(Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(untagged)]
enum Answer {
    Text(String),
    Error { error: String },
}

impl Default for Answer {
    fn default() -> Self {
        Self::Text(String::new())
    }
}

fn own() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/contenthash")
}

fn cases(dir: &Path) -> (Vec<TreeCase>, Vec<Row>) {
    let read = |name: &str| fs::read(dir.join(name)).unwrap();
    (
        serde_json::from_slice(&read("trees.json")).unwrap(),
        serde_json::from_slice(&read("rows.json")).unwrap(),
    )
}

fn make(tree: &TreeCase, at: &Path) {
    let root = Root::open(at).unwrap();
    let attributes = |entry: &EntryCase, path: &Path| {
        lchown(path, Some(entry.uid), Some(entry.gid)).unwrap();
        for (name, value) in &entry.xattrs {
            root.set_xattr(&entry.path, name, value.as_bytes()).unwrap();
        }
        if entry.kind != "symlink" {
            fs::set_permissions(path, fs::Permissions::from_mode(entry.mode())).unwrap();
        }
    };
    for entry in &tree.entries {
        let path = at.join(&entry.path);
        match entry.kind.as_str() {
            "file" => fs::write(&path, &entry.content).unwrap(),
            "dir" => fs::create_dir(&path).unwrap(),
            "symlink" => std::os::unix::fs::symlink(&entry.target, &path).unwrap(),
            "hardlink" => {
                fs::hard_link(at.join(&entry.target), &path).unwrap();
                continue;
            }
            other => {
                let kind = match other {
                    "fifo" => Kind::Fifo,
                    "char" => Kind::CharDevice,
                    "block" => Kind::BlockDevice,
                    "socket" => Kind::Socket,
                    _ => panic!("{other}"),
                };
                root.mknod(&entry.path, kind, 0o600, (entry.devmajor, entry.devminor)).unwrap();
            }
        }
        attributes(entry, &path);
    }
    let top = EntryCase {
        path: ".".into(),
        mode: tree.root.mode.clone(),
        uid: tree.root.uid,
        gid: tree.root.gid,
        ..EntryCase::default()
    };
    attributes(&top, at);
}

fn changes(tree: &TreeCase) -> Vec<(String, ContentChange)> {
    let change = |entry: &EntryCase| {
        let kind = match entry.kind.as_str() {
            "hardlink" => return ContentChange::HardLink { target: entry.target.clone() },
            "file" => EntryKind::File,
            "dir" => EntryKind::Dir,
            "symlink" => EntryKind::Symlink,
            "fifo" => EntryKind::Fifo,
            "char" => EntryKind::CharDevice,
            "block" => EntryKind::BlockDevice,
            "socket" => EntryKind::Socket,
            other => panic!("{other}"),
        };
        let header = ContentHeader {
            kind,
            mode: entry.mode(),
            uid: entry.uid,
            gid: entry.gid,
            size: entry.content.len() as u64,
            link: if kind == EntryKind::Symlink { entry.target.clone().into_bytes() } else { Vec::new() },
            device: (entry.devmajor.into(), entry.devminor.into()),
            xattrs: entry
                .xattrs
                .iter()
                .map(|(k, v)| (k.clone().into_bytes(), v.clone().into_bytes()))
                .collect(),
        };
        let mut hasher = header.hasher();
        hasher.update(entry.content.as_bytes());
        ContentChange::Entry { header, digest: (kind == EntryKind::File).then(|| hasher.finish()) }
    };
    tree.entries.iter().map(|entry| (entry.path.clone(), change(entry))).collect()
}

fn answer(got: Result<kiln_digest::Digest>, root: &str) -> Answer {
    match got {
        Ok(digest) => Answer::Text(digest.to_string()),
        Err(Error::ContentPath(text)) => Answer::Error { error: text.replace(root, "ROOT") },
        Err(other) => Answer::Error { error: format!("{other:?}") },
    }
}

#[test]
fn recorded_answers() {
    let mut vectors = Vectors::new(own());
    let (trees, rows) = cases(vectors.dir());
    for tree in &trees {
        let dir = tempfile::tempdir().unwrap();
        make(tree, dir.path());
        let root = Root::open(dir.path()).unwrap();
        let name = dir.path().display().to_string();
        let mut shared = Tree::default();
        let mut received = Tree::default();
        for (path, change) in changes(tree) {
            received.apply(&path, change).unwrap();
        }
        received.begin(&View { root: &root, name: &name, received: true }).unwrap();
        for (number, row) in rows.iter().enumerate().filter(|(_, row)| row.tree == tree.name) {
            let mut wrong = Vec::new();
            let selector = ContentSelector {
                path: row.path.clone(),
                wildcard: row.wildcard,
                follow_links: row.follow_links,
                include: row.include.clone(),
                exclude: row.exclude.clone(),
                required: row.required.clone(),
            };
            let view = View { root: &root, name: &name, received: false };
            let mut fresh = Tree::default();
            // A tree that holds what earlier requests found has to say the same.
            for scanned in [&mut fresh, &mut shared] {
                scanned.begin(&view).unwrap();
                let got = answer(select::digest(scanned, Some(&view), &selector), &name);
                if got != row.scan {
                    wrong.push(format!("scan {} {selector:?}: {got:?} instead of {:?}", tree.name, row.scan));
                }
            }
            let want = if row.transfer == Answer::Text("same".into()) { &row.scan } else { &row.transfer };
            let told = View { root: &root, name: &name, received: true };
            let view = tree.entries.is_empty().then_some(&told);
            let got = answer(select::digest(&mut received, view, &selector), &name);
            if got != *want {
                wrong.push(format!("transfer {} {selector:?}: {got:?} instead of {want:?}", tree.name));
            }
            let name = format!("row {} of {}: {}", number + 1, tree.name, row.path);
            vectors.check(name, || if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ")) });
        }
    }
    vectors.finish(201);
}

#[test]
fn changes_lead_where_a_fresh_tree_would_be() {
    let (trees, _) = cases(&own());
    let deep = trees.iter().find(|tree| tree.name == "deep").unwrap();
    let whole = ContentSelector::default();
    let mut before = Tree::default();
    for (path, change) in changes(deep) {
        before.apply(&path, change).unwrap();
    }
    let first = select::digest(&mut before, None, &whole).unwrap();
    let mut after = before.clone();
    // A directory becomes a file, and the file goes again.
    let (_, file) = changes(deep).into_iter().find(|(path, _)| path == "foo").unwrap();
    after.apply("x/d2", file).unwrap();
    assert_ne!(select::digest(&mut after, None, &whole).unwrap(), first);
    assert!(
        select::digest(&mut after, None, &ContentSelector { path: "x/d2/n".into(), ..whole.clone() })
            .is_err()
    );
    after.apply("x/d2", ContentChange::Removed).unwrap();
    for (path, change) in changes(deep).into_iter().filter(|(path, _)| path.starts_with("x/d2")) {
        after.apply(&path, change).unwrap();
    }
    assert_eq!(select::digest(&mut after, None, &whole).unwrap(), first);
}
