//! Checkouts of git repositories, by the `git` of this machine.

mod access;
mod checkout;
mod listing;
mod process;
mod remote;
mod repository;
mod request;
mod source;

pub use self::listing::{Listings, Resolved};
pub use self::remote::Remote;
pub use self::request::{GitRequest, Mtime};
pub use self::source::{For, Git, GitObjects, GitOptions};
