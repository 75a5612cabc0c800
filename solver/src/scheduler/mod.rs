//! Deciding what to do next.
