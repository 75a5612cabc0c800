//! Filesystem states of a build: how they are prepared, committed and mounted.
