//! Images out of a real registry, directories and layouts of a client.

#[cfg(test)]
mod client;
#[cfg(test)]
mod image;
#[cfg(test)]
mod lent;
#[cfg(test)]
mod local;
#[cfg(test)]
mod sendable;
