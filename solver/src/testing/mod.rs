//! For tests of users and implementations.
