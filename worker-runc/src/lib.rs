//! Processes on this machine through an OCI runtime.
