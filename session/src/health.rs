//! Whether the client of a session still answers.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::uri::PathAndQuery;
use tonic::{Code, Request, Status};

use crate::channel::Channel;
use crate::codec::RawCodec;

pub(crate) const CHECK: &str = "/grpc.health.v1.Health/Check";
const INTERVAL: Duration = Duration::from_secs(5);
const TIMEOUT: Duration = Duration::from_secs(15);
const FAILURES: u32 = 2;
/// Shortest interval that a client may ask for.
const MIN_CUSTOM: u64 = 1000;

/// How often and how patiently a client is asked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HealthOptions {
    interval: Duration,
    timeout: Duration,
    failures: u32,
}

impl HealthOptions {
    pub(crate) fn new(custom_millis: Option<u64>) -> Self {
        match custom_millis.filter(|millis| *millis >= MIN_CUSTOM) {
            Some(millis) => {
                let each = Duration::from_millis(millis);
                Self { interval: each, timeout: each, failures: 1 }
            }
            None => Self { interval: INTERVAL, timeout: TIMEOUT, failures: FAILURES },
        }
    }
}

/// Asks until the client has failed too often in a row, and returns the last failure.
pub(crate) async fn watch(channel: Channel, options: HealthOptions) -> Status {
    let mut failures = 0;
    let mut last = Duration::ZERO;
    loop {
        tokio::time::sleep(options.interval).await;
        let started = Instant::now();
        // A client that was slow to answer is given more time.
        let timeout = options.timeout.max(last.mul_f64(1.5));
        let failure = match tokio::time::timeout(timeout, check(channel.clone())).await {
            Ok(Ok(())) => None,
            // Whoever says so is alive.
            Ok(Err(status)) if status.code() == Code::Unimplemented => None,
            Ok(Err(status)) => Some(status),
            Err(_) => Some(Status::deadline_exceeded("context deadline exceeded")),
        };
        last = started.elapsed();
        match failure {
            None => failures = 0,
            Some(status) => {
                failures += 1;
                if failures >= options.failures {
                    return status;
                }
            }
        }
    }
}

async fn check(channel: Channel) -> Result<(), Status> {
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let path = PathAndQuery::from_static(CHECK);
    grpc.unary(Request::new(Bytes::new()), path, RawCodec).await.map(drop)
}
