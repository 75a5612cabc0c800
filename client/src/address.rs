use std::path::PathBuf;

use crate::error::{Error, Result};

/// Where a daemon is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Address {
    /// A unix socket.
    Unix(PathBuf),
    /// `host:port`.
    Tcp(String),
    /// A command whose stdin and stdout carry the connection.
    Command(Vec<String>),
}

impl Address {
    /// Reads an address with its scheme: `unix`, `tcp`, or one of the commands' `docker-container`,
    /// `podman-container`, `nerdctl-container`, `kube-pod`, `ssh`.
    ///
    /// # Errors
    /// [`Error::Address`].
    pub fn parse(text: &str) -> Result<Self> {
        let invalid = |reason: String| Error::Address { address: text.to_owned(), reason };
        let (scheme, rest) = text.split_once("://").ok_or_else(|| invalid("no scheme".to_owned()))?;
        let command = |words: Vec<&str>| Ok(Self::Command(words.into_iter().map(str::to_owned).collect()));
        match scheme {
            "unix" => Ok(Self::Unix(PathBuf::from(rest))),
            "tcp" => Ok(Self::Tcp(rest.trim_end_matches('/').to_owned())),
            "docker-container" | "podman-container" | "nerdctl-container" => {
                let url = Url::parse(rest);
                if url.host.is_empty() {
                    return Err(invalid("url lacks container name".to_owned()));
                }
                let mut words = Vec::new();
                match scheme {
                    "docker-container" => {
                        words.push("docker");
                        if let Some(context) = url.option("context").filter(|it| !it.is_empty()) {
                            words.extend(["--context", context]);
                        }
                        words.push("exec");
                    }
                    "podman-container" => words.extend(["podman", "exec"]),
                    _ => {
                        words.extend(["nerdctl", "exec"]);
                        if let Some(namespace) = url.option("namespace").filter(|it| !it.is_empty()) {
                            words.extend(["--namespace", namespace]);
                        }
                    }
                }
                words.extend(["-i", url.host, "buildctl", "dial-stdio"]);
                command(words)
            }
            "kube-pod" => {
                let url = Url::parse(rest);
                if url.host.is_empty() {
                    return Err(invalid("url lacks pod name".to_owned()));
                }
                let named = |name: &str| url.option(name).unwrap_or_default();
                for (what, name) in
                    [("pod", url.host), ("namespace", named("namespace")), ("container", named("container"))]
                {
                    let plain =
                        |c: char| c == '-' || c == '.' || c.is_ascii_lowercase() || c.is_ascii_digit();
                    if !name.chars().all(plain) {
                        return Err(invalid(format!("unsupported {what} name: {name:?}")));
                    }
                }
                let context = format!("--context={}", named("context"));
                let namespace = format!("--namespace={}", named("namespace"));
                let container = format!("--container={}", named("container"));
                let mut words = vec!["kubectl", &context, &namespace, "exec", &container];
                words.extend(["-i", url.host, "--", "buildctl", "dial-stdio"]);
                command(words)
            }
            "ssh" => Self::ssh(rest).map_err(invalid),
            other => Err(invalid(format!("unsupported scheme `{other}`"))),
        }
    }

    fn ssh(rest: &str) -> std::result::Result<Self, String> {
        let url = Url::parse(rest);
        if !url.query.is_empty() {
            return Err(format!("extra query after the host: {:?}", url.query));
        }
        if !url.fragment.is_empty() {
            return Err(format!("extra fragment after the host: {:?}", url.fragment));
        }
        let (user, host) = url.host.rsplit_once('@').unwrap_or(("", url.host));
        if user.contains(':') {
            return Err("plain-text password is not supported".to_owned());
        }
        let (host, port) = match host.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => (host, port),
            _ => (host, ""),
        };
        if host.is_empty() {
            return Err("no host specified".to_owned());
        }
        let socket = format!("unix://{}", url.path);
        let mut words = vec!["ssh"];
        if !user.is_empty() {
            words.extend(["-l", user]);
        }
        if !port.is_empty() {
            words.extend(["-p", port]);
        }
        words.extend(["--", host, "buildctl"]);
        if !url.path.is_empty() && url.path != "/" {
            words.extend(["--addr", &socket]);
        }
        words.push("dial-stdio");
        Ok(Self::Command(words.into_iter().map(str::to_owned).collect()))
    }
}

/// The parts of what comes after the scheme.
struct Url<'a> {
    host: &'a str,
    path: &'a str,
    query: &'a str,
    fragment: &'a str,
}

impl<'a> Url<'a> {
    fn parse(rest: &'a str) -> Self {
        let (rest, fragment) = rest.split_once('#').unwrap_or((rest, ""));
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        Self { host, path, query, fragment }
    }

    fn option(&self, name: &str) -> Option<&'a str> {
        self.query
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .find(|(key, _)| *key == name)
            .map(|(_, v)| v)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(address: &str, want: &str) {
        let got = match Address::parse(address) {
            Ok(Address::Command(words)) => words.join(" "),
            Ok(other) => format!("{other:?}"),
            Err(error) => format!("{error}"),
        };
        assert_eq!(got, want);
    }

    #[test]
    fn addresses() {
        check("unix:///run/x.sock", r#"Unix("/run/x.sock")"#);
        check("tcp://h:1234", r#"Tcp("h:1234")"#);
        check("docker-container://b", "docker exec -i b buildctl dial-stdio");
        check("docker-container://b?context=c", "docker --context c exec -i b buildctl dial-stdio");
        check("podman-container://b", "podman exec -i b buildctl dial-stdio");
        check("nerdctl-container://b?namespace=n", "nerdctl exec --namespace n -i b buildctl dial-stdio");
        check(
            "kube-pod://p?namespace=n",
            "kubectl --context= --namespace=n exec --container= -i p -- buildctl dial-stdio",
        );
        check("ssh://h", "ssh -- h buildctl dial-stdio");
        check("ssh://u@h:22/s.sock", "ssh -l u -p 22 -- h buildctl --addr unix:///s.sock dial-stdio");
        check("docker-container://", "invalid address `docker-container://`: url lacks container name");
        check("kube-pod://", "invalid address `kube-pod://`: url lacks pod name");
        check("kube-pod://P;", r#"invalid address `kube-pod://P;`: unsupported pod name: "P;""#);
        check("ssh://u:p@h", "invalid address `ssh://u:p@h`: plain-text password is not supported");
        check("ssh://", "invalid address `ssh://`: no host specified");
        check("ssh://h?x", r#"invalid address `ssh://h?x`: extra query after the host: "x""#);
        check("/run/x.sock", "invalid address `/run/x.sock`: no scheme");
        check("npipe:////./pipe/x", "invalid address `npipe:////./pipe/x`: unsupported scheme `npipe`");
    }
}
