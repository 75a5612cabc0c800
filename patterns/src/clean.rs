/// Returns the shortest path that names the same file lexically: `.` and empty components dropped, `..` resolved.
///
/// The empty path becomes `.`; `..` at an absolute root is dropped and kept at a relative one.
///
/// ```
/// assert_eq!(kiln_patterns::clean("a//b/../c/."), "a/c");
/// assert_eq!(kiln_patterns::clean("../a"), "../a");
/// assert_eq!(kiln_patterns::clean("/../a"), "/a");
/// ```
pub fn clean(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => match parts.last() {
                Some(&last) if last != ".." => {
                    parts.pop();
                }
                _ if rooted => {}
                _ => parts.push(".."),
            },
            name => parts.push(name),
        }
    }
    let joined = parts.join("/");
    match (rooted, joined.is_empty()) {
        (true, _) => format!("/{joined}"),
        (false, true) => ".".to_owned(),
        (false, false) => joined,
    }
}

/// Returns `path` cleaned as if it were absolute: `/a/b`, or `/`.
///
/// ```
/// assert_eq!(kiln_patterns::clean_absolute("../a/./b"), "/a/b");
/// ```
pub fn clean_absolute(path: &str) -> String {
    clean(&format!("/{path}"))
}
