//! What an op is made of, in words: what its op digest covers, and what it selects of its inputs.
//!
//! What a key leaves out is left out here, so that nothing is named that would not have mattered. Left out are also the
//! positions of inputs and outputs: they change with every mount or action added, which is what has to be named.
//! Values that may be secret are compared and never kept.

use kiln_llb::pb::{self, file_action::Action, op::Op as Kind, user_opt::User};
use kiln_llb::{gojson, platform};
use kiln_solver::Fingerprint;

use crate::keys::KeyError;
use crate::keys::exec::{names_its_destination, normalized};

/// Words in names of variables whose values nobody else is to see.
const SECRET_WORDS: [&str; 13] = [
    "apikey",
    "auth",
    "cred",
    "credential",
    "credentials",
    "key",
    "pass",
    "passwd",
    "password",
    "private",
    "pword",
    "secret",
    "token",
];
/// Stands for the destination of a mount where a value repeats it.
const OWN_TARGET: &str = "(its target)";

/// What `op` is made of; nothing for sources, of which their providers know.
///
/// # Errors
/// [`KeyError`], where the op has no key either.
pub(crate) fn fingerprint(op: &pb::Op) -> Result<Fingerprint, KeyError> {
    let mut out = Fingerprint::default();
    match &op.op {
        None | Some(Kind::Source(_)) => {}
        Some(Kind::Exec(exec)) => add_exec(&mut out, exec, op.platform.as_ref())?,
        Some(Kind::File(file)) => file.actions.iter().for_each(|action| add_action(&mut out, action)),
        Some(Kind::Merge(merge)) => {
            let inputs: Vec<String> = merge.inputs.iter().map(|input| input.input.to_string()).collect();
            out.add("merged inputs", &inputs.join(" "));
        }
        Some(Kind::Diff(diff)) => {
            let side = |input: Option<i64>| input.map_or_else(|| "scratch".to_owned(), |i| i.to_string());
            out.add("lower input", &side(diff.lower.map(|lower| lower.input)));
            out.add("upper input", &side(diff.upper.map(|upper| upper.input)));
        }
        Some(Kind::Build(build)) => {
            out.add("builder", &build.builder.to_string());
            for (name, value) in &build.attrs {
                add_variable(&mut out, "attribute", name, value);
            }
            out.add_hidden("", "definition and inputs", &gojson::pb("pb.BuildOp", build)?);
        }
        Some(Kind::Passthrough(passthrough)) => {
            out.add("id", &passthrough.id);
            out.add("outputs", &format!("{:?}", passthrough.outputs));
        }
    }
    Ok(out)
}

/// A platform as people write it.
pub(crate) fn platform_text(platform: &pb::Platform) -> String {
    let mut parts = vec![platform.os.as_str(), &platform.architecture, &platform.variant];
    parts.retain(|part| !part.is_empty());
    let mut text = parts.join("/");
    if !platform.os_version.is_empty() || !platform.os_features.is_empty() {
        text.push_str(&format!(" ({}; {})", platform.os_version, platform.os_features.join(",")));
    }
    text
}

fn add_exec(out: &mut Fingerprint, exec: &pb::ExecOp, target: Option<&pb::Platform>) -> Result<(), KeyError> {
    let exec = &normalized(exec)?;
    let meta = exec.meta.clone().unwrap_or_default();
    out.add("platform", &platform_text(target.unwrap_or(&platform::host())));
    for (index, argument) in meta.args.iter().enumerate() {
        add_value(out, &format!("argument {index}"), argument);
    }
    for entry in &meta.env {
        let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
        add_variable(out, "env", name, value);
    }
    out.add("workdir", &meta.cwd);
    out.add("user", &meta.user);
    let network = pb::NetMode::try_from(exec.network).map_or("UNKNOWN", |mode| match mode {
        pb::NetMode::Unset => "sandbox",
        pb::NetMode::Host => "host",
        pb::NetMode::None => "none",
    });
    out.add("network", network);
    let security = pb::SecurityMode::try_from(exec.security).map_or("UNKNOWN", |mode| mode.as_str_name());
    out.add("security", &security.to_lowercase());
    out.add("hostname", &meta.hostname);
    let hosts: Vec<_> = meta.extra_hosts.iter().map(|host| host.host.as_str()).collect();
    out.add("extra hosts", &hosts.join(" "));
    for limit in &meta.ulimit {
        out.add(&format!("ulimit {}", limit.name), &format!("{}:{}", limit.soft, limit.hard));
    }
    out.add("cgroup parent", &meta.cgroup_parent);
    let codes: Vec<String> = meta.valid_exit_codes.iter().map(ToString::to_string).collect();
    out.add("valid exit codes", &codes.join(" "));
    out.add("removal of mount points", if meta.remove_mount_stubs_recursive { "recursive" } else { "" });
    for secret in &exec.secretenv {
        let optional = if secret.optional { " (optional)" } else { "" };
        out.add(&format!("secret env {}", secret.name), &format!("id {}{optional}", secret.id));
    }
    for device in &exec.cdi_devices {
        out.add(&format!("device {}", device.name), if device.optional { "optional" } else { "" });
    }
    exec.mounts.iter().for_each(|mount| add_mount(out, mount));
    Ok(())
}

fn add_mount(out: &mut Fingerprint, mount: &pb::Mount) {
    let part = format!("mount {}", mount.dest);
    let mut add = |name: &str, value: &str| {
        let value = if value == mount.dest { OWN_TARGET } else { value };
        out.add_to(&part, name, value);
    };
    let kind = pb::MountType::try_from(mount.mount_type).map_or("UNKNOWN", |kind| kind.as_str_name());
    add("type", &kind.to_lowercase());
    add("access", if mount.readonly { "read-only" } else { "read-write" });
    if let Some(cache) = &mount.cache_opt {
        // A key has either no id at all, or one that says no more than the target does.
        match cache.id.strip_suffix(&mount.dest).filter(|_| names_its_destination(mount)) {
            Some("" | "/") => add("cache id", OWN_TARGET),
            Some(namespace) => add("cache id", &format!("{namespace}{OWN_TARGET}")),
            None => add("cache id", "of its own"),
        }
    }
    if let Some(tmpfs) = &mount.tmpfs_opt {
        add("size", &tmpfs.size.to_string());
    }
    let guarded = |id: &str, uid: u32, gid: u32, mode: u32, optional: bool| {
        [
            ("id", id.to_owned()),
            ("owner", format!("{uid}:{gid}")),
            ("mode", format!("{mode:04o}")),
            ("need", if optional { "optional" } else { "required" }.to_owned()),
        ]
    };
    let secret = mount.secret_opt.as_ref().map(|o| guarded(&o.id, o.uid, o.gid, o.mode, o.optional));
    let ssh = mount.ssh_opt.as_ref().map(|o| guarded(&o.id, o.uid, o.gid, o.mode, o.optional));
    for (name, value) in secret.into_iter().chain(ssh).flatten() {
        add(name, &value);
    }
    if !mount.result_id.is_empty() {
        add("result", &mount.result_id);
    }
    let compared = pb::MountContentCache::try_from(mount.content_cache);
    add("comparison by content", &compared.map_or("UNKNOWN", |c| c.as_str_name()).to_lowercase());
}

fn add_action(out: &mut Fingerprint, action: &pb::FileAction) {
    let Some(kind) = &action.action else { return };
    let flag = |is: bool| if is { "yes" } else { "no" };
    let part;
    match kind {
        Action::Copy(copy) => {
            part = format!("copy {}", copy.src);
            let mut add = |name: &str, value: &str| out.add_to(&part, name, value);
            add("destination", &copy.dest);
            add("owner", &owner_text(copy.owner.as_ref()));
            let mode = match (copy.mode_str.as_str(), copy.mode) {
                ("", -1) => "kept".to_owned(),
                ("", mode) => format!("{mode:04o}"),
                (text, _) => text.to_owned(),
            };
            add("mode", &mode);
            add("included", &copy.include_patterns.join(" "));
            add("excluded", &copy.exclude_patterns.join(" "));
            add("required", &copy.required_paths.join(" "));
            for (name, is) in [
                ("following of links", copy.follow_symlink),
                ("copying of contents", copy.dir_copy_contents),
                ("unpacking of archives", copy.attempt_unpack_docker_compatibility),
                ("making of directories", copy.create_dest_path),
                ("wildcards", copy.allow_wildcard),
                ("empty wildcards", copy.allow_empty_wildcard),
                ("replacing", copy.always_replace_existing_dest_paths),
            ] {
                add(name, flag(is));
            }
            add("timestamp", &copy.timestamp.to_string());
        }
        Action::Mkfile(file) => {
            part = format!("mkfile {}", file.path);
            out.add_to(&part, "mode", &format!("{:04o}", file.mode));
            out.add_to(&part, "owner", &owner_text(file.owner.as_ref()));
            out.add_hidden(&part, "content", &text_of(&file.data));
            out.add_to(&part, "timestamp", &file.timestamp.to_string());
        }
        Action::Mkdir(dir) => {
            part = format!("mkdir {}", dir.path);
            out.add_to(&part, "mode", &format!("{:04o}", dir.mode));
            out.add_to(&part, "owner", &owner_text(dir.owner.as_ref()));
            out.add_to(&part, "making of parents", flag(dir.make_parents));
            out.add_to(&part, "timestamp", &dir.timestamp.to_string());
        }
        Action::Symlink(link) => {
            part = format!("symlink {}", link.newpath);
            out.add_to(&part, "target", &link.oldpath);
            out.add_to(&part, "owner", &owner_text(link.owner.as_ref()));
            out.add_to(&part, "timestamp", &link.timestamp.to_string());
        }
        Action::Rm(rm) => {
            part = format!("rm {}", rm.path);
            out.add_to(&part, "missing paths", flag(rm.allow_not_found));
            out.add_to(&part, "wildcards", flag(rm.allow_wildcard));
        }
    }
}

/// Bytes as a text that differs if they do.
fn text_of(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => kiln_digest::Digest::of(bytes).to_string(),
    }
}

fn owner_text(owner: Option<&pb::ChownOpt>) -> String {
    let Some(owner) = owner else { return "kept".to_owned() };
    let text = |user: Option<&pb::UserOpt>| match user.and_then(|user| user.user.as_ref()) {
        Some(User::ByName(named)) => named.name.clone(),
        Some(User::ById(id)) => id.to_string(),
        None => String::new(),
    };
    let (user, group) = (text(owner.user.as_ref()), text(owner.group.as_ref()));
    if group.is_empty() { user } else { format!("{user}:{group}") }
}

fn add_variable(out: &mut Fingerprint, kind: &str, name: &str, value: &str) {
    let shown = format!("{kind} {name}");
    let lower = name.to_lowercase();
    let mut words = lower.split(|c: char| !c.is_ascii_alphanumeric());
    if words.any(|word| SECRET_WORDS.contains(&word)) {
        out.add_hidden("", &shown, value);
    } else {
        add_value(out, &shown, value);
    }
}

fn add_value(out: &mut Fingerprint, name: &str, value: &str) {
    if has_credentials(value) { out.add_hidden("", name, value) } else { out.add(name, value) }
}

/// Whether an address with a user's name and password is in a text.
fn has_credentials(text: &str) -> bool {
    text.match_indices("://").filter_map(|(at, mark)| text.get(at + mark.len()..)).any(|rest| {
        let authority = rest.split(['/', ' ', '"', '\'', '\n']).next().unwrap_or_default();
        authority.rsplit_once('@').is_some_and(|(user, _)| user.contains(':'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(fingerprint: &Fingerprint) -> String {
        let line = |c: &kiln_solver::Component| {
            let part = if c.part.is_empty() { String::new() } else { format!("{}.", c.part) };
            format!("{part}{}={}", c.name, c.shown.as_deref().unwrap_or("?"))
        };
        fingerprint.components().iter().map(line).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn what_may_be_secret_is_not_kept() {
        let meta = pb::Meta {
            args: vec![
                "sh".into(),
                "curl https://me:pw@example.com/x".into(),
                "git clone ssh://git@host/x".into(),
            ],
            env: vec!["A=b".into(), "NPM_TOKEN=t".into(), "P=http://u:p@proxy:80".into(), "KEYS=1".into()],
            ..pb::Meta::default()
        };
        let exec = pb::ExecOp { meta: Some(meta), ..pb::ExecOp::default() };
        let op = pb::Op { op: Some(Kind::Exec(Box::new(exec))), ..pb::Op::default() };
        let text = shown(&fingerprint(&op).unwrap());
        let lines: Vec<_> = text.lines().skip(1).take(7).collect();
        assert_eq!(
            lines,
            [
                "argument 0=sh",
                "argument 1=?",
                "argument 2=git clone ssh://git@host/x",
                "env A=b",
                "env NPM_TOKEN=?",
                "env P=?",
                "env KEYS=1"
            ]
        );
    }

    #[test]
    fn equal_keys_have_equal_fingerprints() {
        let cache = |id: &str, dest: &str| pb::Mount {
            input: -1,
            output: -1,
            dest: dest.into(),
            mount_type: pb::MountType::Cache as i32,
            cache_opt: Some(pb::CacheOpt { id: id.into(), sharing: 0 }),
            ..pb::Mount::default()
        };
        let op = |mounts: Vec<pb::Mount>| {
            let meta = Some(pb::Meta { args: vec!["true".into()], ..pb::Meta::default() });
            pb::Op {
                inputs: vec![pb::Input::default()],
                op: Some(Kind::Exec(Box::new(pb::ExecOp { meta, mounts, ..pb::ExecOp::default() }))),
                ..pb::Op::default()
            }
        };
        let root = || pb::Mount { dest: "/".into(), ..pb::Mount::default() };
        let mounts = [
            vec![root()],
            vec![root(), cache("/c", "/c")],
            vec![root(), cache("one", "/c")],
            vec![root(), cache("two", "/c")],
            vec![root(), cache("ns//c", "/c")],
            vec![root(), cache("/d", "/d")],
        ];
        for a in &mounts {
            for b in &mounts {
                let key =
                    |mounts: &[pb::Mount]| crate::keys::op_key(&op(mounts.to_vec())).unwrap().unwrap().digest;
                let print = |mounts: &[pb::Mount]| shown(&fingerprint(&op(mounts.to_vec())).unwrap());
                if key(a) == key(b) {
                    assert_eq!(print(a), print(b));
                }
                // The id of a shared cache at its own destination counts, with its namespace.
                if a[1..].first().map(|m| &m.cache_opt) == b[1..].first().map(|m| &m.cache_opt)
                    && key(a) != key(b)
                {
                    assert_ne!(print(a), print(b));
                }
            }
        }
    }
}
