/// Returns whether a shell pattern has a wildcard that is not escaped.
///
/// ```
/// assert!(kiln_patterns::has_wildcard("a*"));
/// assert!(kiln_patterns::has_wildcard(r"\[["));
/// assert!(!kiln_patterns::has_wildcard(r"\*\?"));
/// ```
pub fn has_wildcard(pattern: &str) -> bool {
    let mut bytes = pattern.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => {
                bytes.next();
            }
            b'*' | b'?' | b'[' => return true,
            _ => {}
        }
    }
    false
}
