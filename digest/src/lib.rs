//! The sha256 digest value: parse, order, hash while reading or writing.
