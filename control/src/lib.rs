//! The gRPC surface of the daemon.
