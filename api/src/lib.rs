//! Messages and services of the BuildKit wire protocols.
