//! The generic build scheduler: vertices, cache keys, single flight, progress.
