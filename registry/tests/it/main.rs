//! The client against a server that misbehaves on purpose and against a real registry.

mod auth;
mod faulty;
mod real;
mod server;
