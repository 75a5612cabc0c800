//! Keys of file ops.

use std::collections::{BTreeMap, BTreeSet};

use kiln_digest::Digest;
use kiln_llb::gojson;
use kiln_llb::pb::{self, file_action::Action, user_opt::User};

use crate::keys::selector::{ContentSelector, merged};
use crate::keys::{DepKey, KeyError, OpKey};

pub(super) fn key(file: &pb::FileOp, inputs: usize, unlazy: &DepKey) -> Result<OpKey, KeyError> {
    let mut selectors: BTreeMap<i64, Vec<ContentSelector>> = BTreeMap::new();
    let mut written = BTreeSet::new();
    let mut actions = String::new();
    for action in &file.actions {
        actions.push(if actions.is_empty() { '[' } else { ',' });
        let Some(kind) = &action.action else {
            actions.push_str("null");
            continue;
        };
        written.insert(action.input);
        let json = match kind {
            Action::Mkdir(mkdir) => {
                select_owner(mkdir.owner.as_ref(), &mut selectors);
                gojson::pb("pb.FileActionMkDir", mkdir)?
            }
            Action::Mkfile(mkfile) => {
                select_owner(mkfile.owner.as_ref(), &mut selectors);
                gojson::pb("pb.FileActionMkFile", mkfile)?
            }
            Action::Symlink(symlink) => gojson::pb("pb.FileActionSymlink", symlink)?,
            Action::Rm(rm) => gojson::pb("pb.FileActionRm", rm)?,
            Action::Copy(copy) => {
                select_owner(copy.owner.as_ref(), &mut selectors);
                let from = action.secondary_input;
                if from != -1 && usize::try_from(from).map_or(true, |from| from < inputs) {
                    selectors.entry(from).or_default().push(selector_of(copy));
                    // Where the source lies is in the selector; only its name shows in the result.
                    let copy = pb::FileActionCopy { src: base(&copy.src), ..copy.clone() };
                    gojson::pb("pb.FileActionCopy", &copy)?
                } else {
                    gojson::pb("pb.FileActionCopy", copy)?
                }
            }
        };
        gojson::write_bytes(json.as_bytes(), &mut actions);
    }
    actions.push_str(if actions.is_empty() { "[]" } else { "]" });

    let mut out = String::new();
    let mut object = gojson::Object::new(&mut out);
    gojson::write_text("buildkit.file.v0", object.key("Type"));
    object.key("Actions").push_str(&actions);
    if !file.actions.is_empty() && !has_default_indexes(&file.actions) {
        let indexes: Vec<String> = file
            .actions
            .iter()
            .map(|a| format!("[{},{},{}]", a.input, a.secondary_input, a.output))
            .collect();
        let out = object.key("indexes");
        out.push('[');
        out.push_str(&indexes.join(","));
        out.push(']');
    }
    object.end();

    let mut deps = vec![unlazy.clone(); inputs];
    for (index, selected) in selectors {
        let position = usize::try_from(index).unwrap_or(usize::MAX);
        let Some(dep) = deps.get_mut(position) else { return Err(KeyError::FileInput { index, inputs }) };
        // What is written to is part of the result as a whole.
        if written.contains(&index) {
            continue;
        }
        let mut paths: Vec<&str> = selected.iter().map(|s| s.path.as_str()).collect();
        paths.sort_unstable_by(|a, b| b.cmp(a));
        dep.selector = Some(Digest::of(paths.join("\0")));
        dep.content = Some(merged(selected));
    }
    Ok(OpKey { digest: Digest::of(&out), deps })
}

/// Whether the indexes are those of a plain chain, which keys do not mention. The count that actions are
/// offset by is that of actions, not of inputs; keys depend on that mistake.
fn has_default_indexes(actions: &[pb::FileAction]) -> bool {
    let count = i64::try_from(actions.len()).unwrap_or(i64::MAX);
    actions.iter().zip(0_i64..).all(|(action, i)| {
        let input = if i == 0 { 0 } else { count + i - 1 };
        let output = if i == count - 1 { 0 } else { -1 };
        action.input == input && matches!(action.secondary_input, -1 | 1) && action.output == output
    })
}

fn selector_of(copy: &pb::FileActionCopy) -> ContentSelector {
    ContentSelector {
        path: copy.src.clone(),
        wildcard: copy.allow_wildcard && kiln_patterns::has_wildcard(&copy.src),
        follow_links: copy.follow_symlink,
        include_patterns: copy.include_patterns.clone(),
        exclude_patterns: copy.exclude_patterns.clone(),
        required_paths: copy.required_paths.clone(),
    }
}

/// Adds the files that names of an owner are looked up in. A negative input ends it, and fails later.
fn select_owner(owner: Option<&pb::ChownOpt>, selectors: &mut BTreeMap<i64, Vec<ContentSelector>>) {
    let Some(owner) = owner else { return };
    for (user, path) in [(&owner.user, "/etc/passwd"), (&owner.group, "/etc/group")] {
        let Some(User::ByName(named)) = user.as_ref().and_then(|u| u.user.as_ref()) else { continue };
        if named.input < 0 {
            return;
        }
        selectors.entry(named.input).or_default().push(ContentSelector {
            path: path.to_owned(),
            follow_links: true,
            ..ContentSelector::default()
        });
    }
}

/// Returns the last component like Go's `path.Base`.
fn base(path: &str) -> String {
    if path.is_empty() {
        return ".".to_owned();
    }
    match path.trim_end_matches('/').rsplit('/').next() {
        None | Some("") => "/".to_owned(),
        Some(base) => base.to_owned(),
    }
}
