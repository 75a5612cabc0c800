use crate::csv;
use crate::error::{Error, Result};
use crate::go::{parse_bool, parse_ram};
use crate::text::{quote, with_suggestion};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum MountKind {
    #[default]
    Bind,
    Cache,
    Tmpfs,
    Secret,
    Ssh,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sharing {
    Shared,
    Private,
    Locked,
}

/// A mount of RUN with its variables expanded.
#[derive(Clone, Debug, Default)]
pub(crate) struct Mount {
    pub(crate) kind: MountKind,
    pub(crate) from: String,
    pub(crate) source: String,
    pub(crate) target: String,
    pub(crate) readonly: bool,
    pub(crate) size: i64,
    pub(crate) id: String,
    pub(crate) sharing: Option<Sharing>,
    pub(crate) required: bool,
    pub(crate) env: Option<String>,
    pub(crate) mode: Option<u32>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
}

const KINDS: [(&str, MountKind); 5] = [
    ("bind", MountKind::Bind),
    ("cache", MountKind::Cache),
    ("tmpfs", MountKind::Tmpfs),
    ("secret", MountKind::Secret),
    ("ssh", MountKind::Ssh),
];

const SHARINGS: [(&str, Sharing); 3] =
    [("shared", Sharing::Shared), ("private", Sharing::Private), ("locked", Sharing::Locked)];

const KEYS: [&str; 19] = [
    "type",
    "from",
    "source",
    "target",
    "readonly",
    "id",
    "sharing",
    "required",
    "size",
    "mode",
    "uid",
    "gid",
    "src",
    "dst",
    "destination",
    "ro",
    "rw",
    "readwrite",
    "env",
];

impl MountKind {
    pub(crate) fn name(self) -> &'static str {
        KINDS.iter().find(|(_, kind)| *kind == self).map(|(name, _)| *name).unwrap_or_default()
    }
}

fn split(text: &str) -> Result<Vec<String>> {
    csv::fields(text).map_err(|error| Error::new(format!("failed to parse csv mounts: {error}")))
}

/// Reads what can be known before variables are: where the mount comes from.
pub(super) fn parse_mount_from(text: &str) -> Result<String> {
    let mut from = String::new();
    for field in split(text)? {
        let Some((key, value)) = field.split_once('=') else { continue };
        if key.to_lowercase() != "from" {
            continue;
        }
        if value.find('$').is_some_and(|at| at + 1 != value.len()) {
            return Err(Error::new("'from' doesn't support variable expansion, define alias stage instead"));
        }
        from = value.to_owned();
    }
    Ok(from)
}

/// Reads a mount, its values expanded by `expand`.
pub(crate) fn parse_mount(text: &str, mut expand: impl FnMut(&str) -> Result<String>) -> Result<Mount> {
    let mut mount = Mount::default();
    let mut access = None;
    for field in split(text)? {
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (key.to_lowercase(), Some(value)),
            None => (field.to_lowercase(), None),
        };
        let takes_required = matches!(mount.kind, MountKind::Secret | MountKind::Ssh);
        let wrong_kind =
            || Error::new(format!("unexpected key '{key}' for mount type '{}'", mount.kind.name()));
        let Some(value) = value else {
            match key.as_str() {
                "readonly" | "ro" => access = Some(true),
                "readwrite" | "rw" => access = Some(false),
                "required" if takes_required => mount.required = true,
                "required" => return Err(wrong_kind()),
                _ => return Err(Error::new(format!("invalid field '{field}' must be a key=value pair"))),
            }
            continue;
        };
        let value = expand(value)?;
        let boolean =
            || parse_bool(&value).ok_or_else(|| Error::new(format!("invalid value for {key}: {value}")));
        let number = |radix: u32| {
            u32::from_str_radix(&value, radix)
                .ok()
                .filter(|_| !value.starts_with('+'))
                .ok_or_else(|| Error::new(format!("invalid value {value} for {key}")))
        };
        match key.as_str() {
            "type" => {
                let lower = value.to_lowercase();
                let known = KINDS.iter().find(|(name, _)| *name == lower);
                mount.kind = known.map(|(_, kind)| *kind).ok_or_else(|| {
                    let message = format!("unsupported mount type {}", quote(&value));
                    Error::new(with_suggestion(message, &value, KINDS.map(|(name, _)| name), true))
                })?;
            }
            "from" => mount.from = value,
            "source" | "src" => mount.source = value,
            "target" | "dst" | "destination" => mount.target = value,
            "readonly" | "ro" => access = Some(boolean()?),
            "readwrite" | "rw" => access = Some(!boolean()?),
            "required" if takes_required => mount.required = boolean()?,
            "required" => return Err(wrong_kind()),
            "size" if mount.kind == MountKind::Tmpfs => {
                mount.size = parse_ram(&value)
                    .ok_or_else(|| Error::new(format!("invalid value for {key}: {value}")))?;
            }
            "size" => return Err(wrong_kind()),
            "id" => mount.id = value,
            "sharing" => {
                let lower = value.to_lowercase();
                let known = SHARINGS.iter().find(|(name, _)| *name == lower);
                mount.sharing = Some(known.map(|(_, sharing)| *sharing).ok_or_else(|| {
                    let message = format!("unsupported sharing value {}", quote(&value));
                    Error::new(with_suggestion(message, &value, SHARINGS.map(|(name, _)| name), true))
                })?);
            }
            "mode" => mount.mode = Some(number(8)?),
            "uid" => mount.uid = Some(number(10)?),
            "gid" => mount.gid = Some(number(10)?),
            "env" => mount.env = Some(value),
            _ => {
                let message = format!("unexpected key '{key}' in '{field}'");
                return Err(Error::new(with_suggestion(message, &key, KEYS, true)));
            }
        }
    }
    mount.readonly = access.unwrap_or(!matches!(mount.kind, MountKind::Cache | MountKind::Tmpfs));
    check(&mount)?;
    Ok(mount)
}

fn check(mount: &Mount) -> Result<()> {
    let kind = mount.kind.name();
    if matches!(mount.kind, MountKind::Bind | MountKind::Tmpfs) {
        let given = [("mode", mount.mode), ("uid", mount.uid), ("gid", mount.gid)];
        if let Some((key, _)) = given.iter().find(|(_, value)| value.is_some()) {
            return Err(Error::new(format!("{key} not allowed for {} type mounts", quote(kind))));
        }
    }
    if mount.kind == MountKind::Secret {
        if !mount.from.is_empty() {
            return Err(Error::new("secret mount should not have a from"));
        }
        if mount.sharing.is_some() {
            return Err(Error::new("secret mount should not define sharing"));
        }
        if mount.source.is_empty() && mount.target.is_empty() && mount.id.is_empty() {
            return Err(Error::new("invalid secret mount. one of source, target required"));
        }
        if !mount.source.is_empty() && !mount.id.is_empty() {
            return Err(Error::new("both source and id can't be set"));
        }
    }
    if mount.sharing.is_some() && mount.kind != MountKind::Cache {
        return Err(Error::new(format!("invalid cache sharing set for {kind} mount")));
    }
    Ok(())
}
