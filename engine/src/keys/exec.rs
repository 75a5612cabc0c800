//! Keys of exec ops.

use kiln_digest::Digest;
use kiln_llb::{Message, Schema, gojson, pb, platform, render};
use serde_json::Value as Json;

use crate::keys::selector::{ContentSelector, without_children};
use crate::keys::{DepKey, KeyError, OpKey};

pub(super) fn key(
    exec: &pb::ExecOp,
    target: Option<&pb::Platform>,
    inputs: usize,
    unlazy: DepKey,
) -> Result<OpKey, KeyError> {
    let json = gojson::pb("pb.ExecOp", &without_plain_root(normalized(exec)?))?;
    let host;
    let target = match target {
        Some(target) => target,
        None => {
            host = platform::host();
            &host
        }
    };
    let mut out = String::new();
    let mut object = gojson::Object::new(&mut out);
    gojson::write_text("buildkit.exec.v0", object.key("Type"));
    object.key("Exec").push_str(&json);
    gojson::write_text(&target.os, object.key("OS"));
    gojson::write_text(&target.architecture, object.key("Arch"));
    if !target.variant.is_empty() {
        gojson::write_text(&target.variant, object.key("Variant"));
    }
    if !target.os_version.is_empty() {
        gojson::write_text(&target.os_version, object.key("OSVersion"));
    }
    if !target.os_features.is_empty() {
        let out = object.key("OSFeatures");
        for (i, feature) in target.os_features.iter().enumerate() {
            out.push(if i == 0 { '[' } else { ',' });
            gojson::write_text(feature, out);
        }
        out.push(']');
    }
    object.end();
    Ok(OpKey { digest: Digest::of(&out), deps: deps(exec, inputs, unlazy)? })
}

/// Leaves out what does not change the result.
pub(super) fn normalized(exec: &pb::ExecOp) -> Result<pb::ExecOp, KeyError> {
    let mut exec = exec.clone();
    let meta = exec.meta.as_mut().ok_or(KeyError::Invalid("exec op with no meta"))?;
    for host in &mut meta.extra_hosts {
        host.ip.clear();
    }
    meta.proxy_env = None;
    for mount in &mut exec.mounts {
        mount.selector.clear();
        let keep = names_its_destination(mount);
        if let Some(cache) = mount.cache_opt.as_mut().filter(|_| !keep) {
            cache.id.clear();
            cache.sharing = 0;
        }
    }
    Ok(exec)
}

/// Leaves the mounts of the plain case out: early versions did so by mistake, and keys must not change.
fn without_plain_root(mut exec: pb::ExecOp) -> pb::ExecOp {
    if let [mount] = exec.mounts.as_slice()
        && mount.dest == "/"
        && !mount.readonly
        && mount.mount_type == pb::MountType::Bind as i32
        && mount.cache_opt.is_none()
        && mount.ssh_opt.is_none()
        && mount.secret_opt.is_none()
        && mount.result_id.is_empty()
    {
        exec.mounts.clear();
    }
    exec
}

/// Whether a shared cache mount has the id that Dockerfiles give it by default: its destination, possibly
/// after a namespace. Such ids were always part of the key.
pub(super) fn names_its_destination(mount: &pb::Mount) -> bool {
    let Some(cache) = &mount.cache_opt else { return true };
    let after_namespace = cache.id.split_once('/').map(|(_, rest)| rest);
    cache.sharing == pb::CacheSharingOpt::Shared as i32
        && (cache.id == mount.dest || after_namespace == Some(&mount.dest))
}

fn deps(exec: &pb::ExecOp, inputs: usize, unlazy: DepKey) -> Result<Vec<DepKey>, KeyError> {
    let mut selectors: Vec<Vec<String>> = vec![Vec::new(); inputs];
    let mut by_content = vec![false; inputs];
    for mount in &exec.mounts {
        let kind = pb::MountType::try_from(mount.mount_type);
        if matches!(kind, Ok(pb::MountType::Secret | pb::MountType::Ssh | pb::MountType::Tmpfs)) {
            continue;
        }
        if mount.input == -1 {
            continue;
        }
        let position = usize::try_from(mount.input).unwrap_or(usize::MAX);
        let (Some(selected), Some(content)) = (selectors.get_mut(position), by_content.get_mut(position))
        else {
            return Err(KeyError::MountInput(describe(mount)?));
        };
        let selector = kiln_patterns::clean_absolute(&mount.selector);
        // A part of an input may be compared by content only if the step cannot hand on the rest of it.
        let allowed = mount.output == -1 || mount.readonly || selector == "/";
        *content = match pb::MountContentCache::try_from(mount.content_cache) {
            Ok(pb::MountContentCache::Off) => false,
            Ok(pb::MountContentCache::On) if !allowed => {
                return Err(KeyError::MountContent(describe(mount)?));
            }
            Ok(pb::MountContentCache::Default) if mount.dest == "/" => false,
            _ => allowed,
        };
        selected.push(selector);
    }
    let deps = selectors.into_iter().zip(by_content).map(|(selected, content)| DepKey {
        selector: (!selected.is_empty()).then(|| Digest::of(selected.join("\0"))),
        content: content.then(|| content_selectors(selected)),
        ..unlazy.clone()
    });
    Ok(deps.collect())
}

fn content_selectors(paths: Vec<String>) -> Vec<ContentSelector> {
    let paths = without_children(paths);
    if paths.iter().any(|path| path == "/") {
        return Vec::new();
    }
    paths
        .into_iter()
        .map(|path| ContentSelector { path, follow_links: true, ..ContentSelector::default() })
        .collect()
}

/// Writes a mount as Go prints it in errors.
fn describe(mount: &pb::Mount) -> Result<String, KeyError> {
    let rendered = render::message(&Message::of(Schema::llb(), "pb.Mount", mount)?)?;
    let fields: Vec<String> = rendered
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, value)| match value {
            Json::String(text) if name == "mountType" || name == "contentCache" => format!("{name}:{text}"),
            value => format!("{name}:{value}"),
        })
        .collect();
    Ok(fields.join("  "))
}
