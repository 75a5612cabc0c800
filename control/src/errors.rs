//! Errors as gRPC statuses with typed details.

use std::error::Error as StdError;
use std::fmt;

use kiln_api::errdetails::{self, Detail};
use kiln_engine::{Error, ExecError, FrontendExit};
use kiln_frontend::{Error as FrontendError, ErrorKind, ErrorSource};
use kiln_solver::{LimitExceeded, OpError, SolveError};
use tonic::{Code, Status};

/// What a client or a frontend returned instead of a result; shown as its text.
#[derive(Debug)]
struct Returned(Status);

impl fmt::Display for Returned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.message())
    }
}

impl StdError for Returned {}

fn returned(error: &Error) -> Option<&Status> {
    let Error::Client { source, .. } = error else { return None };
    source.downcast_ref::<Returned>().map(|returned| &returned.0)
}

/// The error that a client or a frontend returned, details and all.
pub(crate) fn from_returned(error: &kiln_api::rpc::Status) -> Error {
    let details: Vec<Detail> = error.details.iter().cloned().map(Detail::from_any).collect();
    let places = details.iter().filter_map(|detail| match detail {
        Detail::Source { info, ranges } => Some(ErrorSource { info: info.clone(), ranges: ranges.clone() }),
        _ => None,
    });
    let places = places.collect();
    let status = errdetails::status(Code::from(error.code), error.message.clone(), &details);
    Error::Client { source: Box::new(Returned(status)), places }
}

/// The status of a failed build.
pub(crate) fn status(error: &Error) -> Status {
    returned(error)
        .cloned()
        .unwrap_or_else(|| errdetails::status(code(error), message(error), &details(error)))
}

/// The status of a failed call of a frontend.
pub(crate) fn frontend_status(error: &FrontendError) -> Status {
    errdetails::status(frontend_code(error), message(error), &frontend_details(error))
}

fn code(error: &Error) -> Code {
    match error {
        Error::Cancelled | Error::Solve { source: SolveError::Cancelled, .. } => Code::Cancelled,
        Error::NoSuchJob { .. } => Code::NotFound,
        Error::ContainerExists { .. } => Code::AlreadyExists,
        Error::TimeLimit(_) => Code::DeadlineExceeded,
        other if limit_exceeded(other) => Code::DeadlineExceeded,
        Error::Frontend(error) => frontend_code(error),
        Error::Client { .. } => returned(error).map_or(Code::Unknown, Status::code),
        other => os_code(other).unwrap_or(Code::Unknown),
    }
}

fn frontend_code(error: &FrontendError) -> Code {
    match (error.kind(), error) {
        (ErrorKind::Cancelled, _) => Code::Cancelled,
        (ErrorKind::Unimplemented, _) => Code::Unimplemented,
        (_, FrontendError::Solve { source, .. }) => {
            source.downcast_ref::<Error>().map_or(Code::Unknown, code)
        }
        (_, FrontendError::Context { source, .. }) => frontend_code(source),
        (_, error) => os_code(error).unwrap_or(Code::Unknown),
    }
}

/// Whether a step has run into a limit of time.
fn limit_exceeded(error: &(dyn StdError + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.is::<LimitExceeded>() {
            return true;
        }
        next = inner(error);
    }
    false
}

/// A full disk or a failing one says so wherever in the chain it happened.
fn os_code(error: &(dyn StdError + 'static)) -> Option<Code> {
    let mut next = Some(error);
    while let Some(error) = next {
        let errno = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error);
        match errno.map(rustix::io::Errno::from_raw_os_error) {
            Some(rustix::io::Errno::NOSPC | rustix::io::Errno::NOMEM | rustix::io::Errno::DQUOT) => {
                return Some(Code::ResourceExhausted);
            }
            Some(rustix::io::Errno::IO | rustix::io::Errno::FAULT) => return Some(Code::Internal),
            _ => {}
        }
        next = inner(error);
    }
    None
}

/// The cause of an error, where types that show as their cause are stepped into.
fn inner<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a (dyn StdError + 'static)> {
    if let Some(op) = error.downcast_ref::<OpError>() {
        return Some(op.inner());
    }
    match error.downcast_ref::<Error>() {
        Some(Error::Solve { source, .. }) => return Some(source),
        Some(Error::Frontend(source)) => return Some(source),
        _ => {}
    }
    match error.downcast_ref::<FrontendError>() {
        Some(FrontendError::Solve { source, .. }) => Some(source.as_ref()),
        _ => error.source(),
    }
}

/// Whether an error's own text is that of its cause.
fn shows_cause(error: &(dyn StdError + 'static)) -> bool {
    error.is::<OpError>()
        || matches!(
            error.downcast_ref::<Error>(),
            Some(Error::Solve { .. } | Error::Frontend(_) | Error::Export(_) | Error::Client { .. })
        )
        || matches!(error.downcast_ref::<FrontendError>(), Some(FrontendError::Solve { .. }))
        || error.is::<SolveError>()
}

/// The whole text: each error of the chain once, joined by `: `.
fn message(error: &(dyn StdError + 'static)) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        if !shows_cause(error) || inner(error).is_none() {
            let text = error.to_string();
            if !text.is_empty() && parts.last().is_none_or(|last| !last.ends_with(&text)) {
                parts.push(text);
            }
        }
        next = inner(error);
    }
    parts.join(": ")
}

fn details(error: &Error) -> Vec<Detail> {
    match error {
        Error::Solve { sources, source } => {
            let mut details: Vec<Detail> = sources.iter().map(place).collect();
            details.extend(source.vertex().map(|v| Detail::Vertex { digest: v.to_string() }));
            details.extend(within(source));
            details
        }
        Error::Vertex { vertex, sources, .. } => {
            let mut details: Vec<Detail> = sources.iter().map(place).collect();
            details.push(Detail::Vertex { digest: vertex.to_string() });
            details
        }
        Error::Frontend(error) => frontend_details(error),
        Error::Client { .. } => returned(error).map(errdetails::details).unwrap_or_default(),
        Error::FrontendExit(FrontendExit { code, .. }) => vec![Detail::Exit { code: code.cast_unsigned() }],
        _ => Vec::new(),
    }
}

fn frontend_details(error: &FrontendError) -> Vec<Detail> {
    let mut all: Vec<Detail> = error.sources().into_iter().map(place).collect();
    match error {
        FrontendError::UnsupportedRequest { name } => all.push(Detail::Subrequest { name: name.clone() }),
        FrontendError::UnsupportedCapability { name } => all.push(Detail::FrontendCap { name: name.clone() }),
        FrontendError::Solve { source, .. } => {
            if let Some(ours) = source.downcast_ref::<Error>() {
                let known = !all.is_empty();
                // A place that the frontend gave is better than the graph's.
                all.extend(
                    details(ours).into_iter().filter(|d| !known || !matches!(d, Detail::Source { .. })),
                );
            }
        }
        FrontendError::Context { source, .. } => {
            all.extend(frontend_details(source).into_iter().filter(|d| !matches!(d, Detail::Source { .. })));
        }
        _ => {}
    }
    all
}

fn place(source: &ErrorSource) -> Detail {
    Detail::Source { info: source.info.clone(), ranges: source.ranges.clone() }
}

/// What the error of a vertex itself tells: how a process ended, or all about a step of a build within it.
fn within(error: &SolveError) -> Vec<Detail> {
    let SolveError::Vertex { source, .. } = error else { return Vec::new() };
    if let Some(nested) = source.inner().downcast_ref::<Error>() {
        return details(nested);
    }
    match source.inner().downcast_ref::<ExecError>() {
        Some(ExecError::Exit { code, .. }) => vec![Detail::Exit { code: code.cast_unsigned() }],
        _ => Vec::new(),
    }
}
