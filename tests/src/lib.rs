//! Integration tests through the real binaries.
