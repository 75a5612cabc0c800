use std::path::{Path, PathBuf};
use std::process::Stdio;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::auth::{Credentials, Secret};
use crate::error::{Error, Result};

/// Under what Docker keeps the credentials of its registry.
const HUB_KEY: &str = "https://index.docker.io/v1/";
/// What the daemon asks for instead.
const HUB_HOST: &str = "registry-1.docker.io";
/// User name by which a helper says that the secret is an identity token.
const TOKEN_USER: &str = "<token>";
/// How long the configuration may be, in bytes.
const MAX_CONFIG: u64 = 16 << 20;

/// The credentials in a configuration directory of Docker.
#[derive(Clone, Debug)]
pub struct DockerConfig {
    dir: PathBuf,
}

impl DockerConfig {
    /// Uses `config.json` in this directory; it is read anew for each question, and may be missing.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Finds what there is for a registry; nothing is not an error.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a malformed file or a helper that fails.
    pub async fn credentials(&self, host: &str) -> Result<Credentials> {
        let config = self.read()?;
        let key = if host == HUB_HOST { HUB_KEY } else { host };
        let helper = config["credHelpers"][key].as_str().or_else(|| config["credHelpers"][host].as_str());
        let helper = helper.or_else(|| config["credsStore"].as_str()).filter(|helper| !helper.is_empty());
        if let Some(helper) = helper {
            let found = from_helper(helper, key).await?;
            if !found.secret.is_empty() {
                return Ok(found);
            }
        }
        let Some(auths) = config["auths"].as_object() else { return Ok(Credentials::default()) };
        let entry = auths.get(key).or_else(|| {
            let same_host = |(name, _): &(&String, &Value)| host_of(name) == host_of(key);
            auths.iter().find(same_host).map(|(_, entry)| entry)
        });
        entry.map_or_else(|| Ok(Credentials::default()), |entry| self.read_entry(entry))
    }

    fn read(&self) -> Result<Value> {
        let path = self.path();
        let content = match read_limited(&path) {
            Ok(content) => content,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Value::Null),
            Err(error) => return Err(self.invalid(error.to_string())),
        };
        serde_json::from_slice(&content).map_err(|error| self.invalid(error.to_string()))
    }

    fn path(&self) -> PathBuf {
        self.dir.join("config.json")
    }

    fn invalid(&self, reason: String) -> Error {
        Error::Invalid { what: format!("`{}`", self.path().display()), reason }
    }

    fn read_entry(&self, entry: &Value) -> Result<Credentials> {
        let text = |name: &str| entry[name].as_str().unwrap_or_default().to_owned();
        if !text("identitytoken").is_empty() {
            return Ok(Credentials { username: String::new(), secret: Secret::new(text("identitytoken")) });
        }
        let auth = text("auth");
        if auth.is_empty() {
            return Ok(Credentials { username: text("username"), secret: Secret::new(text("password")) });
        }
        let decoded = STANDARD.decode(auth.trim()).ok().and_then(|decoded| String::from_utf8(decoded).ok());
        let (username, password) = decoded
            .as_deref()
            .and_then(|decoded| decoded.split_once(':'))
            .ok_or_else(|| self.invalid("an `auth` is not base64 of `user:password`".to_owned()))?;
        Ok(Credentials {
            username: username.to_owned(),
            secret: Secret::new(password.trim_end_matches('\0')),
        })
    }
}

fn read_limited(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read as _;
    let mut content = Vec::new();
    std::fs::File::open(path)?.take(MAX_CONFIG).read_to_end(&mut content)?;
    Ok(content)
}

fn host_of(key: &str) -> &str {
    let rest = key.split_once("://").map_or(key, |(_, rest)| rest);
    rest.split('/').next().unwrap_or(rest)
}

async fn from_helper(helper: &str, key: &str) -> Result<Credentials> {
    let program = format!("docker-credential-{helper}");
    let failed = |reason: String| Error::Invalid { what: format!("`{program}`"), reason };
    if helper.contains('/') {
        return Err(failed("a helper is named without a path".to_owned()));
    }
    let mut child = Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A helper that does not read shows in what it answers.
        let _written = stdin.write_all(key.as_bytes()).await;
    }
    let output = child.wait_with_output().await.map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if text.contains("credentials not found") {
            return Ok(Credentials::default());
        }
        return Err(failed(text));
    }
    let answer: Value =
        serde_json::from_slice(&output.stdout).map_err(|_| failed("it answered no JSON".to_owned()))?;
    let text = |name: &str| answer[name].as_str().unwrap_or_default();
    let username = if text("Username") == TOKEN_USER { "" } else { text("Username") };
    Ok(Credentials { username: username.to_owned(), secret: Secret::new(text("Secret")) })
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn check(config: &str, host: &str, username: &str, secret: &str) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), config).unwrap();
        let found = DockerConfig::new(dir.path()).credentials(host).await.unwrap();
        assert_eq!((found.username.as_str(), found.secret.reveal()), (username, secret), "{config}");
    }

    #[tokio::test]
    async fn entries() {
        // `u:p:q`
        let auths = r#"{"auths":{
            "https://index.docker.io/v1/":{"auth":"dTpwOnE="},
            "r.example":{"identitytoken":"tok","auth":"dTpwOnE="},
            "https://old.example/v1/":{"username":"a","password":"b"}
        }}"#;
        check(auths, "registry-1.docker.io", "u", "p:q").await;
        check(auths, "r.example", "", "tok").await;
        check(auths, "old.example", "a", "b").await;
        check(auths, "other.example", "", "").await;
        check("{}", "r.example", "", "").await;
    }

    #[tokio::test]
    async fn malformed() {
        let dir = tempfile::tempdir().unwrap();
        let config = DockerConfig::new(dir.path());
        assert_eq!(config.credentials("r.example").await.unwrap(), Credentials::default());
        for bad in ["{", r#"{"auths":{"r.example":{"auth":"!"}}}"#, r#"{"credsStore":"../x"}"#] {
            std::fs::write(dir.path().join("config.json"), bad).unwrap();
            assert!(config.credentials("r.example").await.is_err(), "{bad}");
        }
    }
}
