//! Times of sources: git commits and tar archives.

/// The committer's time of a raw commit object, in seconds since the epoch.
pub(crate) fn committer_time(commit: &[u8]) -> Option<i64> {
    let text = String::from_utf8_lossy(commit);
    let line =
        text.lines().take_while(|line| !line.is_empty()).find_map(|line| line.strip_prefix("committer "))?;
    line.rsplit(' ').nth(1)?.parse().ok()
}

/// A regular file's size and time in a tar header.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TarEntry {
    size: u64,
    time: i64,
    regular: bool,
}

/// Reads a tar header if the checksum is right.
pub(crate) fn tar_header(data: &[u8]) -> Option<TarEntry> {
    let header = data.get(..512)?;
    let octal = |range: std::ops::Range<usize>| {
        let text = std::str::from_utf8(header.get(range)?).ok()?.trim_matches(['\0', ' ']);
        u64::from_str_radix(if text.is_empty() { "0" } else { text }, 8).ok()
    };
    let sum: u64 = header
        .iter()
        .enumerate()
        .map(|(i, &b)| u64::from(if (148..156).contains(&i) { b' ' } else { b }))
        .sum();
    if octal(148..156)? != sum {
        return None;
    }
    let time = i64::try_from(octal(136..148)?).ok()?;
    Some(TarEntry { size: octal(124..136)?, time, regular: matches!(header[156], b'0' | 0) })
}

/// The newest time of a regular file in an uncompressed tar.
pub(crate) fn newest_in_tar(data: &[u8]) -> Option<i64> {
    let (mut at, mut newest) = (0_usize, None);
    while let Some(entry) = data.get(at..).and_then(tar_header) {
        if entry.regular {
            newest = newest.max(Some(entry.time));
        }
        let blocks = usize::try_from(entry.size.div_ceil(512)).ok()?;
        at = at.checked_add(512)?.checked_add(blocks.checked_mul(512)?)?;
    }
    newest
}
