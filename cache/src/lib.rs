//! The catalogue, references and leases, content checksums, disk usage and garbage collection.
