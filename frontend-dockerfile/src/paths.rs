//! Paths inside images and contexts: lexical, with `/`, and Windows spellings where the target is Windows.

pub(crate) use kiln_patterns::clean;

/// Joins and cleans; an absolute second part does not replace the first.
pub(crate) fn join(first: &str, second: &str) -> String {
    match (first.is_empty(), second.is_empty()) {
        (true, true) => String::new(),
        (true, false) => clean(second),
        (false, true) => clean(first),
        (false, false) => clean(&format!("{first}/{second}")),
    }
}

/// `path` below the root, with `..` stopping there.
pub(crate) fn rooted(path: &str) -> String {
    clean(&format!("/{path}"))
}

/// Cleans `path` below `parent` and keeps a trailing `/` or `/.`, which say "directory".
pub(crate) fn keep_slash(parent: &str, path: &str) -> String {
    let mut out = if path.starts_with('/') { clean(path) } else { join("/", &format!("{parent}/{path}")) };
    if path.ends_with('/') {
        if !out.ends_with('/') {
            out.push('/');
        }
    } else if path.ends_with("/.") {
        if out != "/" {
            out.push('/');
        }
        out.push('.');
    }
    out
}

/// The last component, `.` for an empty path, `/` for the root.
pub(crate) fn base(path: &str) -> &str {
    if path.is_empty() {
        return ".";
    }
    let trimmed = path.trim_end_matches('/');
    if trimmed.is_empty() {
        return "/";
    }
    trimmed.rsplit('/').next().unwrap_or(trimmed)
}

/// Takes the drive letter off a path for a Windows target; other targets have none.
pub(crate) fn strip_drive(path: &str, windows: bool) -> Result<String, String> {
    if !windows {
        return Ok(path.to_owned());
    }
    let path = path.replace('\\', "/");
    if path.starts_with("//") {
        return Err(format!("UNC paths are not supported: {path}"));
    }
    let bytes = path.as_bytes();
    if bytes.get(1) == Some(&b':') {
        let rest = &path[2..];
        if !bytes[0].is_ascii_alphabetic() {
            return Err(format!("invalid path: {path}"));
        }
        if rest.is_empty() {
            return Err(format!("No relative path specified in {}", crate::text::quote(&path)));
        }
        if !bytes[0].eq_ignore_ascii_case(&b'c') {
            return Err("The specified path is not on the system drive (C:)".to_owned());
        }
        return Ok(rest.to_owned());
    }
    Ok(path)
}
