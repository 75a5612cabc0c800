use std::error::Error as StdError;
use std::fmt;

use kiln_api::errdetails::{self, Detail};
use kiln_api::rpc;
use kiln_frontend::{Error as FrontendError, ErrorKind, ErrorSource};
use tonic::{Code, Status};

/// Results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a request could not be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no daemon to speak to.
    #[error(
        "no daemon speaks gRPC on standard input and output: a daemon starts this program, from an image"
    )]
    Connect(#[source] tonic::transport::Error),
    /// A call failed that nothing can go on without.
    #[error("cannot {operation}: {}", status.message())]
    Call {
        /// What was tried, as a verb phrase.
        operation: &'static str,
        /// What the daemon answered.
        status: Box<Status>,
    },
}

impl Error {
    pub(crate) fn call(operation: &'static str) -> impl Fn(Status) -> Self {
        move |status| Self::Call { operation, status: Box::new(status) }
    }
}

/// What the daemon answered to a call of the frontend, shown as its text.
#[derive(Debug)]
pub(crate) struct Answer(Status);

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.message())
    }
}

impl StdError for Answer {}

/// A failed solve.
pub(crate) fn solve(status: Status) -> FrontendError {
    if status.code() == Code::Cancelled {
        return FrontendError::Cancelled;
    }
    let places = errdetails::details(&status).into_iter().filter_map(|detail| match detail {
        Detail::Source { info, ranges } => Some(ErrorSource { info, ranges }),
        _ => None,
    });
    let sources = places.collect();
    FrontendError::Solve { source: Box::new(Answer(status)), sources }
}

/// A failed look-up.
pub(crate) fn resolve(status: Status) -> FrontendError {
    FrontendError::Resolve { message: String::new(), source: Some(Box::new(Answer(status))) }
}

/// A failed call about `path` of a result.
pub(crate) fn path(path: &str) -> impl Fn(Status) -> FrontendError {
    move |status| match status.message().ends_with("no such file or directory") {
        true => FrontendError::NotFound { path: path.to_owned() },
        false => solve(status),
    }
}

/// An error as the daemon is told it.
pub(crate) fn to_wire(error: &FrontendError) -> rpc::Status {
    let mut details: Vec<Detail> = error
        .sources()
        .into_iter()
        .map(|s| Detail::Source { info: s.info.clone(), ranges: s.ranges.clone() })
        .collect();
    match innermost(error) {
        FrontendError::UnsupportedRequest { name } => details.push(Detail::Subrequest { name: name.clone() }),
        FrontendError::UnsupportedCapability { name } => {
            details.push(Detail::FrontendCap { name: name.clone() })
        }
        _ => {}
    }
    let answer = answer(error);
    if let Some(Answer(status)) = answer {
        // Places that the frontend knows are better, and those of the answer are among them already.
        details
            .extend(errdetails::details(status).into_iter().filter(|d| !matches!(d, Detail::Source { .. })));
    }
    let code = match (error.kind(), answer) {
        (ErrorKind::Cancelled, _) => Code::Cancelled,
        (ErrorKind::Unimplemented, _) => Code::Unimplemented,
        (_, Some(Answer(status))) => status.code(),
        _ => Code::Unknown,
    };
    rpc::Status {
        code: code.into(),
        message: error.chain(),
        details: details.iter().map(Detail::to_any).collect(),
    }
}

/// The error below what only says what was being done.
fn innermost(error: &FrontendError) -> &FrontendError {
    match error {
        FrontendError::Context { source, .. } => innermost(source),
        error => error,
    }
}

/// The answer of the daemon that an error goes back to.
fn answer(error: &FrontendError) -> Option<&Answer> {
    let mut next: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(answer) = error.downcast_ref() {
            return Some(answer);
        }
        next = match error.downcast_ref() {
            Some(FrontendError::Solve { source, .. }) => Some(source.as_ref()),
            _ => error.source(),
        };
    }
    None
}

#[cfg(test)]
mod tests {
    use kiln_frontend::pb;

    use super::*;

    fn details(status: rpc::Status) -> Vec<Detail> {
        status.details.into_iter().map(Detail::from_any).collect()
    }

    #[test]
    fn what_the_daemon_answered_goes_back_to_it_whole() {
        let vertex = Detail::Vertex { digest: "sha256:aa".into() };
        let place = Detail::Source {
            info: pb::SourceInfo { filename: "f".into(), ..Default::default() },
            ranges: Vec::new(),
        };
        let all = [place.clone(), vertex.clone(), Detail::Exit { code: 3 }];
        let failed = solve(errdetails::status(Code::Unknown, "exit code: 3", &all));
        let back = to_wire(&failed.context("failed to build"));
        assert_eq!(back.message, "failed to build: exit code: 3");
        assert_eq!(details(back), [place, vertex, Detail::Exit { code: 3 }]);

        let missing = path("/x")(Status::unknown("open /x: no such file or directory"));
        assert!(matches!(missing, FrontendError::NotFound { .. }));
        let resolved = to_wire(&resolve(Status::not_found("no image")).context("failed to resolve"));
        assert_eq!(
            (resolved.code, resolved.message.as_str()),
            (Code::NotFound.into(), "failed to resolve: no image")
        );
        let cap = to_wire(&FrontendError::UnsupportedCapability { name: "x".into() });
        assert_eq!(cap.code, i32::from(Code::Unimplemented));
        assert_eq!(details(cap), [Detail::FrontendCap { name: "x".into() }]);
    }
}
