//! Paths of images, with `/` on every platform.

/// Cleans like Go's `path.Clean`.
pub(super) fn clean(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            ".." if rooted => {}
            part => parts.push(part),
        }
    }
    match (rooted, parts.join("/")) {
        (true, path) => format!("/{path}"),
        (false, path) if path.is_empty() => ".".to_owned(),
        (false, path) => path,
    }
}

/// Joins like Go's `path.Join`.
pub(super) fn join(base: &str, path: &str) -> String {
    clean(&format!("{base}/{path}"))
}

/// Makes `path` absolute below `parent`. A trailing `/` or `/.` says "directory" and may be kept.
pub(super) fn absolute(parent: &str, path: &str, keep_slash: bool) -> String {
    let mut out = clean(path);
    if !out.starts_with('/') {
        out = clean(&format!("/{parent}/{out}"));
    }
    if keep_slash {
        if path.ends_with('/') && !out.ends_with('/') {
            out.push('/');
        } else if path.ends_with("/.") {
            out.push_str(if out == "/" { "." } else { "/." });
        }
    }
    out
}
