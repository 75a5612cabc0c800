//! The client against a server that misbehaves on purpose and against a real registry.

#[cfg(test)]
mod auth;
#[cfg(test)]
mod faulty;
#[cfg(test)]
mod real;
#[cfg(test)]
mod server;
#[cfg(test)]
mod tls;
