//! Errors as the reference's client reports them.

use std::error::Error as StdError;
use std::io::{self, Write};

use kiln_client::{Address, Error as ClientError};

use crate::error::Error;
use crate::go::{io_text, quote};

/// What a client's error says, without the chain of its causes except where the reference shows it.
pub fn describe(error: &ClientError) -> String {
    match error {
        ClientError::Connect { address, source } => connecting(address, source.as_ref()),
        ClientError::Session(source) => format!("{error}: {}", chain(source)),
        ClientError::NotADirectory { name, source: Some(source) } => {
            format!("{name} not a directory: {}", io_text(source))
        }
        ClientError::Address { address, reason } if reason == "no scheme" => {
            format!("address {address} does not contain proto, you meant unix://{address} ?")
        }
        ClientError::Address { reason, .. } => reason.clone(),
        other => other.to_string(),
    }
}

/// An error of a streaming call, which the reference prints as its gRPC library does.
pub fn rpc_text(error: &ClientError) -> String {
    match error {
        ClientError::Call { status } => {
            format!("rpc error: code = {:?} desc = {}", status.code(), status.message())
        }
        other => describe(other),
    }
}

/// Prints what led to an error in source files, and the error.
///
/// # Errors
/// Of the writer.
pub fn report(out: &mut dyn Write, error: &Error) -> io::Result<()> {
    if let Error::Client { source: ClientError::Solve(failed), .. } = error {
        for source in &failed.sources {
            write!(out, "{source}")?;
        }
    }
    writeln!(out, "error: {error}")
}

/// The daemon cannot be reached. The reference's wording comes from its transport.
fn connecting(address: &str, source: &(dyn StdError + 'static)) -> String {
    let dialled = match Address::parse(address) {
        Ok(Address::Unix(path)) => format!("dial unix {}: connect: ", path.display()),
        Ok(Address::Tcp(host)) => format!("dial tcp {host}: connect: "),
        _ => String::new(),
    };
    let Some(reason) = system_error(source) else {
        // A time limit, or a failure above the socket such as TLS.
        let reason = chain(source);
        return if reason == "context deadline exceeded" { reason } else { unavailable(&reason) };
    };
    unavailable(&format!("{dialled}{reason}"))
}

fn unavailable(reason: &str) -> String {
    let reason = format!("transport: Error while dialing: {reason}");
    format!("Unavailable: connection error: desc = {}", quote(&reason))
}

fn system_error(error: &(dyn StdError + 'static)) -> Option<String> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return Some(io_text(error));
        }
        cause = error.source();
    }
    None
}

/// A message with those of its causes, each once.
fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        if !text.contains(&message) {
            text.push_str(": ");
            text.push_str(&message);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(error: ClientError, want: &str) {
        let mut out = Vec::new();
        report(&mut out, &Error::Client { context: "failed to list workers: ", source: error }).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), want);
    }

    #[test]
    fn daemons_that_are_not_there() {
        let connect = |address: &str, source: io::Error| ClientError::Connect {
            address: address.to_owned(),
            source: Box::new(source),
        };
        check(
            connect("unix:///nonexistent/sock", io::Error::from_raw_os_error(2)),
            "error: failed to list workers: Unavailable: connection error: desc = \"transport: Error while dialing: dial unix /nonexistent/sock: connect: no such file or directory\"\n",
        );
        check(
            connect("tcp://127.0.0.1:1", io::Error::from_raw_os_error(111)),
            "error: failed to list workers: Unavailable: connection error: desc = \"transport: Error while dialing: dial tcp 127.0.0.1:1: connect: connection refused\"\n",
        );
    }
}
