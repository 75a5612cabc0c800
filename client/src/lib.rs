//! A client of the build daemon.
