//! Certificates, client certificates and hosts that do not speak TLS.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use kiln_registry::testing::RegistryProcess;
use kiln_registry::{Access, HostConfig, KeyPair, Registry};

use crate::faulty::{chain, config};

/// Makes `<name>.crt` and `<name>.key`, signed by themselves.
fn certificate(dir: &Path, name: &str) -> std::io::Result<()> {
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test"])
        .args(["-addext", "subjectAltName=IP:127.0.0.1"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .arg("-keyout")
        .arg(dir.join(format!("{name}.key")))
        .arg("-out")
        .arg(dir.join(format!("{name}.crt")))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    if made.success() { Ok(()) } else { Err(std::io::Error::other("openssl failed")) }
}

/// Asks a registry that is configured so for a tag that it does not have; `found` means it was reached.
async fn reach(process: &RegistryProcess, entry: HostConfig) -> String {
    let mut config = config();
    config.hosts = BTreeMap::from([(process.address().to_owned(), entry)]);
    let reference = process.reference("a/b:t").unwrap();
    let registry = Registry::new(config);
    let error = registry.resolve(&reference, Access::anonymous()).await.unwrap_err();
    match error.kind() {
        kiln_registry::Kind::NotFound => "reached".to_owned(),
        _ => chain(&error),
    }
}

fn https() -> HostConfig {
    HostConfig { http: Some(false), ..HostConfig::default() }
}

#[tokio::test]
async fn certificates_are_checked_against_those_configured() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["server", "client"] {
        if let Err(error) = certificate(dir.path(), name) {
            assert!(std::env::var_os("CI").is_none(), "openssl: {error}");
            eprintln!("skipped: openssl cannot be used: {error}");
            return;
        }
    }
    let path = |name: &str| dir.path().join(name);
    let started = RegistryProcess::start_with(|_| {
        let at = dir.path().display();
        Ok(format!("  tls:\n    certificate: {at}/server.crt\n    key: {at}/server.key\n"))
    });
    let Some(process) = started.unwrap() else { return };
    let unknown = reach(&process, https()).await;
    assert!(unknown.contains("certificate"), "{unknown}");
    assert_eq!(reach(&process, HostConfig { ca: vec![path("server.crt")], ..https() }).await, "reached");
    assert_eq!(reach(&process, HostConfig { insecure: Some(true), ..https() }).await, "reached");

    let with_dir = |name: &str| HostConfig { tls_config_dirs: vec![path(name)], ..https() };
    std::fs::create_dir(path("config")).unwrap();
    std::fs::copy(path("server.crt"), path("config/ca.crt")).unwrap();
    assert_eq!(reach(&process, with_dir("config")).await, "reached");
    let missing = reach(&process, with_dir("missing")).await;
    assert!(missing.contains("certificate"), "{missing}");

    let started = RegistryProcess::start_with(|_| {
        let at = dir.path().display();
        Ok(format!(
            "  tls:\n    certificate: {at}/server.crt\n    key: {at}/server.key\n    clientcas:\n      - \
             {at}/client.crt\n"
        ))
    });
    let Some(process) = started.unwrap() else { return };
    let trusted = HostConfig { ca: vec![path("server.crt")], ..https() };
    let refused = reach(&process, trusted.clone()).await;
    assert!(refused != "reached", "{refused}");
    let pair = KeyPair { key: path("client.key"), cert: path("client.crt") };
    assert_eq!(reach(&process, HostConfig { keypairs: vec![pair], ..trusted.clone() }).await, "reached");
    let pair = KeyPair { key: path("missing.key"), cert: path("client.crt") };
    let named = reach(&process, HostConfig { keypairs: vec![pair], ..trusted }).await;
    assert!(named.contains("missing.key"), "{named}");
}

#[tokio::test]
async fn a_host_without_tls_is_spoken_to_plainly_only_where_allowed() {
    let Some(process) = RegistryProcess::start().unwrap() else { return };
    let entry = |http, insecure| HostConfig { http, insecure, ..HostConfig::default() };
    for (http, insecure) in [(None, None), (Some(true), None), (Some(true), Some(true)), (None, Some(true))] {
        assert_eq!(reach(&process, entry(http, insecure)).await, "reached", "{http:?} {insecure:?}");
    }
    for insecure in [None, Some(true)] {
        let refused = reach(&process, entry(Some(false), insecure)).await;
        assert!(refused.contains("failed to do request"), "{refused}");
    }
}
