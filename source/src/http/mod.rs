//! Files from web servers.

mod client;
mod filename;
mod records;
mod request;
mod response;

pub use self::client::{Downloads, Fetched, Http, HttpOptions};
pub use self::request::HttpRequest;
