//! The Dockerfile language.
#![forbid(unsafe_code)]
mod shell;
mod text;
