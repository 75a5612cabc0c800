#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub mod attach;
pub mod auth;
pub mod blobs;
mod channel;
mod codec;
mod error;
pub mod exporters;
pub mod filesend;
pub mod filesync;
pub mod fsutil;
mod headers;
mod health;
mod lender;
mod pipe;
pub mod secrets;
mod sessions;
pub mod ssh;
pub mod upload;
mod wire;

pub use crate::channel::Channel;
pub use crate::error::{Error, Result};
pub use crate::lender::{FixedWaiters, Lender, Waiters};
pub use crate::pipe::Pipe;
pub use crate::sessions::{
    APPEAR_TIMEOUT, ID_KEY, METHOD_KEY, SHARED_KEY_KEY, Session, SessionStream, Sessions,
};
