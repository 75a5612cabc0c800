//! What becomes of namespaces, with plugins that are shell scripts and namespaces that are plain files.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kiln_cni::{CniNetwork, CniOptions, Error, Namespaces, NetworkList, Plugins, Result};
use kiln_executor::{Network, NetworkLease, NetworkNamespace, NetworkRequest};

const PATIENCE: Duration = Duration::from_secs(20);
/// Notes each call, and what came on its standard input; fails where a file tells it to.
const PLUGIN: &str = r#"#!/bin/sh
dir=${0%/*}
name=${0##*/}
input=$(cat)
test -e "$dir/refuse-$name-$CNI_COMMAND" && echo '{"code":11,"msg":"no more addresses","details":"all taken"}' && exit 1
case $input in *prevResult*) previous=previous ;; *) previous=first ;; esac
echo "$CNI_COMMAND $name $previous $CNI_IFNAME $CNI_ARGS ${CNI_NETNS:+namespace}" >> "$dir/calls"
test "$CNI_COMMAND" = DEL || echo '{"cniVersion":"1.0.0","interfaces":[]}'
"#;

/// Namespaces that are plain files.
#[derive(Debug)]
struct Files;

impl Namespaces for Files {
    fn make(&self, path: &Path) -> Result<()> {
        std::fs::write(path, "namespace").unwrap();
        Ok(())
    }

    fn remove(&self, path: &Path) -> Result<()> {
        let _ = std::fs::remove_file(path);
        Ok(())
    }

    fn exists(&self, path: &Path) -> bool {
        path.exists()
    }
}

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap() };
        std::fs::create_dir(place.plugins()).unwrap();
        for name in ["link", "wall"] {
            let path = place.plugins().join(name);
            std::fs::write(&path, PLUGIN).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        place
    }

    fn plugins(&self) -> PathBuf {
        self.dir.path().join("plugins")
    }

    fn options(&self, ready: usize) -> CniOptions {
        let file = self.dir.path().join("net.conflist");
        let text = r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"link"},{"type":"wall"}]}"#;
        std::fs::write(&file, text).unwrap();
        CniOptions {
            state: self.state(),
            list: NetworkList::read(&file).unwrap(),
            plugins: Plugins::new(Some(self.plugins())),
            ready,
        }
    }

    fn open(&self, ready: usize) -> CniNetwork {
        CniNetwork::open(self.options(ready), Arc::new(Files)).unwrap()
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    fn calls(&self) -> String {
        std::fs::read_to_string(self.plugins().join("calls")).unwrap_or_default()
    }

    fn count(&self, call: &str) -> usize {
        self.calls().lines().filter(|line| line.starts_with(call)).count()
    }

    fn refuse(&self, what: &str) -> PathBuf {
        let path = self.plugins().join(format!("refuse-{what}"));
        std::fs::write(&path, "").unwrap();
        path
    }

    fn left(&self) -> usize {
        std::fs::read_dir(self.state()).map_or(0, Iterator::count)
    }
}

async fn take(network: &CniNetwork, hostname: Option<&str>, privileged: bool) -> Box<dyn NetworkLease> {
    network.lease(NetworkRequest { hostname, privileged }).await.unwrap()
}

fn path(lease: &dyn NetworkLease) -> PathBuf {
    match lease.namespace() {
        NetworkNamespace::At(path) => path.clone(),
        other => unreachable!("{other:?}"),
    }
}

async fn wait_for(mut condition: impl FnMut() -> bool) {
    let since = Instant::now();
    while !condition() {
        assert!(since.elapsed() < PATIENCE, "it does not come");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn plugins_are_asked_in_their_order_and_back() {
    let place = Place::new();
    let network = place.open(0);
    drop(take(&network, Some("box"), false).await);
    network.close().await;
    let args = "eth0 IgnoreUnknown=1;K8S_POD_NAME=box namespace";
    let want = format!(
        "ADD link first {args}\nADD wall previous {args}\nDEL wall previous {args}\nDEL link previous {args}\n"
    );
    assert_eq!(place.calls(), want);
    assert_eq!(place.left(), 0);
}

#[tokio::test]
async fn a_namespace_is_used_again_unless_it_may_have_been_changed() {
    let place = Place::new();
    let network = place.open(0);
    let first = take(&network, None, false).await;
    let second = take(&network, None, false).await;
    let (one, other) = (path(&*first), path(&*second));
    assert_ne!(one, other);
    drop(first);
    let again = take(&network, None, true).await;
    assert_eq!(path(&*again), one);
    drop(again);
    wait_for(|| !one.exists()).await;
    drop(second);
    assert_eq!(path(&*take(&network, None, false).await), other);
    network.close().await;
    assert_eq!((place.count("ADD link"), place.count("DEL link"), place.left()), (2, 2, 0));
}

#[tokio::test]
async fn some_are_ready_before_anybody_asks() {
    let place = Place::new();
    let network = place.open(2);
    wait_for(|| place.count("ADD wall") == 2).await;
    // Both are in the pool when one of them can be had without a plugin.
    let lease = take(&network, None, false).await;
    wait_for(|| place.count("ADD wall") == 3).await;
    network.close().await;
    assert!(path(&*lease).exists(), "what is leased stays");
    drop(lease);
    wait_for(|| place.left() == 0).await;
    assert!(network.lease(NetworkRequest::default()).await.is_err());
}

#[tokio::test]
async fn a_failure_is_told_and_taken_back() {
    let place = Place::new();
    let network = place.open(0);
    let refusal = place.refuse("wall-ADD");
    let error = network.lease(NetworkRequest::default()).await.unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert_eq!(error.to_string(), "cannot set up the network of the step");
    assert_eq!(source, "CNI plugin `wall` failed to add the network: no more addresses: all taken");
    assert_eq!((place.count("ADD link"), place.count("DEL link"), place.left()), (1, 1, 0));
    std::fs::remove_file(refusal).unwrap();
    drop(take(&network, None, false).await);
    let odd = NetworkRequest { hostname: Some("a;CNI_X=1"), privileged: false };
    let error = network.lease(odd).await.unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("cannot be told to CNI plugins"), "{source}");
    network.close().await;
    assert_eq!(place.left(), 0);
}

#[tokio::test]
async fn what_an_earlier_process_left_is_taken_down() {
    let place = Place::new();
    let earlier = place.open(0);
    let lease = take(&earlier, None, false).await;
    let left = path(&*lease);
    // Killed, it gives nothing back.
    std::mem::forget(lease);
    std::mem::forget(earlier);
    std::fs::write(place.state().join("unfinished.new"), "{").unwrap();
    let network = place.open(0);
    wait_for(|| place.left() == 0).await;
    assert!(!left.exists());
    assert_eq!((place.count("DEL wall previous"), place.count("DEL link previous")), (1, 1));
    network.close().await;
}

#[tokio::test]
async fn what_cannot_be_taken_down_is_tried_again_at_the_next_start() {
    let place = Place::new();
    let network = place.open(0);
    drop(take(&network, None, false).await);
    let refusal = place.refuse("link-DEL");
    network.close().await;
    assert_eq!(place.left(), 1, "the record stays");
    std::fs::remove_file(refusal).unwrap();
    let network = place.open(0);
    wait_for(|| place.left() == 0).await;
    network.close().await;
    // The namespace was gone by then.
    assert_eq!(
        place.calls().lines().filter(|line| line.starts_with("DEL") && !line.contains("namespace")).count(),
        2
    );
}

#[tokio::test]
async fn a_caller_that_goes_away_takes_nothing() {
    let place = Place::new();
    let network = place.open(0);
    let request = network.lease(NetworkRequest::default());
    drop(tokio::time::timeout(Duration::ZERO, request).await);
    network.close().await;
    assert_eq!((place.count("ADD wall"), place.count("DEL wall"), place.left()), (1, 1, 0));
}

#[tokio::test]
async fn missing_plugins_are_named() {
    let place = Place::new();
    std::fs::remove_file(place.plugins().join("wall")).unwrap();
    let error = CniNetwork::open(place.options(0), Arc::new(Files)).unwrap_err();
    assert!(matches!(&error, Error::PluginMissing { plugin, .. } if plugin == "wall"), "{error}");
    assert!(error.to_string().contains("containernetworking-plugins"), "{error}");
}
