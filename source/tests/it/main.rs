//! Images out of a real registry.

#[cfg(test)]
mod image;
#[cfg(test)]
mod sendable;
