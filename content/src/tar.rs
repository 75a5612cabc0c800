//! Tar headers as Go's `archive/tar` reads and writes them.
