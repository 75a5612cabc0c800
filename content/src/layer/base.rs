//! The state below an upper directory, without mounting it.
