//! Whose daemon this is, and so where its things are.

use std::path::{Path, PathBuf};

use kiln_executor::spec::in_user_namespace;

/// Environment variables that say where an ordinary user's things are.
const USER: &str = "USER";
const HOME: &str = "HOME";
const RUNTIME_DIR: &str = "XDG_RUNTIME_DIR";
const DATA_HOME: &str = "XDG_DATA_HOME";
const CONFIG_HOME: &str = "XDG_CONFIG_HOME";

/// Defaults of paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Whether the daemon is in a user namespace, and so without the machine's control groups.
    pub(crate) rootless: bool,
    pub(crate) root: PathBuf,
    pub(crate) address: String,
    pub(crate) config: PathBuf,
    pub(crate) cni_config: PathBuf,
}

impl Place {
    /// Looks at the process; `entered` if it made its user namespace itself.
    pub(crate) fn find(entered: bool) -> Self {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        Self::of(in_user_namespace(), entered, &variable)
    }

    fn of(rootless: bool, entered: bool, variable: &dyn Fn(&str) -> Option<String>) -> Self {
        let of_user = rootless && (entered || variable(USER).is_some_and(|user| user != "root"));
        let home = variable(HOME).map(PathBuf::from);
        let below = |name: &str, dirs: &str| {
            variable(name).map(PathBuf::from).or_else(|| Some(home.as_ref()?.join(dirs))).filter(|_| of_user)
        };
        let data = below(DATA_HOME, ".local/share").unwrap_or_else(|| PathBuf::from("/var/lib"));
        let config = below(CONFIG_HOME, ".config").unwrap_or_else(|| PathBuf::from("/etc"));
        let run = variable(RUNTIME_DIR).filter(|_| of_user).unwrap_or_else(|| "/run".to_owned());
        let config = config.join("buildkit");
        Self {
            rootless,
            root: data.join("buildkit"),
            address: format!("unix://{}/buildkit/buildkitd.sock", Path::new(&run).display()),
            cni_config: config.join("cni.json"),
            config: config.join("buildkitd.toml"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(rootless: bool, entered: bool, variables: &[(&str, &str)]) -> Place {
        Place::of(rootless, entered, &|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn an_ordinary_users_things_are_his_own() {
        let machine = place(false, false, &[(USER, "ann"), (HOME, "/home/ann")]);
        assert_eq!(machine.root, PathBuf::from("/var/lib/buildkit"));
        assert_eq!(machine.address, "unix:///run/buildkit/buildkitd.sock");
        assert_eq!(machine.config, PathBuf::from("/etc/buildkit/buildkitd.toml"));
        let ann = place(true, false, &[(USER, "ann"), (HOME, "/home/ann"), (RUNTIME_DIR, "/run/user/7")]);
        assert_eq!(ann.root, PathBuf::from("/home/ann/.local/share/buildkit"));
        assert_eq!(ann.address, "unix:///run/user/7/buildkit/buildkitd.sock");
        assert_eq!(ann.cni_config, PathBuf::from("/home/ann/.config/buildkit/cni.json"));
        let own = place(true, true, &[(DATA_HOME, "/data"), (CONFIG_HOME, "/config")]);
        assert_eq!(
            (own.root, own.config),
            ("/data/buildkit".into(), "/config/buildkit/buildkitd.toml".into())
        );
        // A container has a user namespace too, and is the machine for what runs in it.
        assert_eq!(place(true, false, &[(USER, "root")]), Place { rootless: true, ..machine });
    }
}
