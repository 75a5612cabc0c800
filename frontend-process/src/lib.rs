//! Runs a frontend as the process of a frontend image.
//!
//! [`run`] takes the request from the environment, gives the frontend a [`Bridge`](kiln_frontend::Bridge) that calls the
//! daemon over standard input and output, and returns the result there. Nothing else may write to standard output.
//!
//! Follows moby/buildkit: frontend/gateway/grpcclient/client.go.
#![forbid(unsafe_code)]

mod bridge;
mod connection;
mod environment;
mod error;
mod reference;
mod result;

use std::sync::Arc;

use kiln_api::gateway::{InputsRequest, PingRequest, ReturnRequest};
use kiln_frontend::{Frontend, WorkerInfo};

use crate::bridge::{RemoteBridge, enabled};
pub use crate::error::{Error, Result};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// Serves the one request that this process was started for. That the frontend fails is told to the daemon and is no
/// error.
///
/// # Errors
/// What keeps the request from being served: no daemon at the other end of the standard streams, or one that does not
/// take the result.
pub async fn run(frontend: &dyn Frontend) -> Result<()> {
    let mut request = environment::request(std::env::vars_os());
    let mut client = connection::open().await?;
    let call = Error::call;
    let pong = client.ping(PingRequest {}).await.map_err(call("greet the daemon"))?.into_inner();
    let gateway_caps = enabled(&pong.frontend_api_caps);
    let worker =
        |w: kiln_api::types::WorkerRecord| WorkerInfo { id: w.id, labels: w.labels, platforms: w.platforms };
    request.workers = pong.workers.into_iter().map(worker).collect();
    request.llb_caps = Some(enabled(&pong.llb_caps));
    request.gateway_caps = Some(gateway_caps.clone());
    if gateway_caps.contains("frontend.inputs") {
        let inputs = client.inputs(InputsRequest {}).await.map_err(call("ask for the inputs"))?;
        request.inputs = inputs.into_inner().definitions;
    }
    let bridge = Arc::new(RemoteBridge::new(client.clone(), gateway_caps));
    let outcome = frontend.solve(bridge, request).await.and_then(result::to_wire);
    let answer = match outcome {
        Ok(result) => ReturnRequest { result: Some(result), error: None },
        Err(error) => ReturnRequest { result: None, error: Some(error::to_wire(&error)) },
    };
    client.r#return(answer).await.map_err(call("return the result")).map(drop)
}
