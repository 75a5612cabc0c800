//! Images that run as frontends.
//!
//! The image's entry point runs in a container of its own, over a copy of the image that is thrown away afterwards. The
//! process calls back over its standard streams, where the build's bridge is served to it, and returns its result there.
//!
//! Follows moby/buildkit: frontend/gateway/gateway.go.

mod image;
mod process;
mod streams;

use std::sync::Arc;
use std::time::Duration;

use kiln_cache::{MutableRef, RecordOptions, RecordType};
use kiln_digest::Digest;
use kiln_executor::{ContainerId, Executor, Exit, ProcessIo, ProcessSpec, StepMount};
use kiln_frontend::{Error as FrontendError, FrontendRequest, FrontendResult};
use kiln_solver::{OpError, VertexDigest};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::build::{BuildBridge, BuildState};
use crate::caller::Caller;
use crate::error::{BoxError, Error, FrontendExit, Result, chain};
use crate::frontends::{FrontendImages, MAX_PROCESSES};
use crate::gateway::image::FrontendImage;
use crate::gateway::process::Metadata;
use crate::gateway::streams::Streams;
use crate::ops::common;
use crate::reference::SolvedRef;

/// How long a process may go on once it has returned its result. After that it is killed, and the result counts.
const RETURN_GRACE: Duration = Duration::from_secs(10);
/// How long a process may go on once nobody listens to it any more.
const SERVER_GRACE: Duration = Duration::from_secs(2);

/// Runs the image that a request names, within `depth` frontends.
pub(crate) async fn run(
    bridge: &BuildBridge,
    images: &FrontendImages,
    request: FrontendRequest,
    depth: u32,
) -> Result<FrontendResult, FrontendError> {
    if request.opts.contains_key("gateway-devel") {
        return Err(FrontendError::input("development gateway is no longer supported"));
    }
    let source = request.opts.get("source").filter(|source| !source.is_empty());
    let source = source.ok_or_else(|| FrontendError::input("no source specified for gateway"))?;
    let state = &bridge.state;
    let _slot = state.frontend_slots.try_acquire().map_err(|_| {
        FrontendError::input(format!("a build may run at most {MAX_PROCESSES} frontend images at a time"))
    })?;
    let image = image::find(bridge, images, &request, source).await?;
    image.check_capabilities(&request)?;

    let (returned, result) = oneshot::channel();
    let caller = Arc::new(Caller::new(request.inputs.clone(), depth, Some(returned)));
    let inner = BuildBridge { state: state.clone(), caller: caller.clone() };
    let outcome = Run { state, images, image: &image }.process(inner, &request, result).await;
    caller.clear();
    outcome
}

/// One run of an image.
struct Run<'a> {
    state: &'a Arc<BuildState>,
    images: &'a FrontendImages,
    image: &'a FrontendImage,
}

/// What was seen of a process until it ended.
struct Seen {
    exit: Result<Exit, kiln_executor::Error>,
    /// The disk was full, and it had to stop.
    full: Option<kiln_cache::Error>,
    returned: Option<Result<FrontendResult>>,
    /// It was killed because it went on after it had returned.
    lingered: bool,
    /// Why nobody listened to it any more, if that came first.
    server: Option<String>,
    last_words: String,
}

/// What a process uses. It is given back once the process has ended, whoever waits for that.
struct Used {
    root: MutableRef,
    mount: StepMount,
    metadata: Metadata,
}

impl Used {
    /// Runs the process, and stops it if the disk is full.
    async fn run(
        self,
        executor: Arc<dyn Executor>,
        id: ContainerId,
        spec: ProcessSpec,
        io: ProcessIo,
        stop: CancellationToken,
    ) -> (Result<Exit, kiln_executor::Error>, Option<kiln_cache::Error>) {
        let mounts = vec![self.metadata.mount()];
        let running = executor.run(&id, self.mount.clone(), mounts, spec, io, None, stop.clone());
        tokio::pin!(running);
        tokio::select! {
            exit = &mut running => (exit, None),
            full = self.root.out_of_space() => {
                stop.cancel();
                (running.await, Some(full))
            }
        }
    }
}

impl Run<'_> {
    async fn process(
        &self,
        bridge: BuildBridge,
        request: &FrontendRequest,
        result: oneshot::Receiver<Result<FrontendResult>>,
    ) -> Result<FrontendResult, FrontendError> {
        let worker = &self.state.worker;
        let root = self.root().await.map_err(solve_error)?;
        let mount = root.mount().await.map_err(|error| internal(&error))?;
        let (scratch, definition) = (worker.scratch.clone(), self.image.definition.clone());
        let made = tokio::task::spawn_blocking(move || Metadata::make(&scratch, &definition)).await;
        let metadata = made.map_err(|e| internal(&e))?.map_err(|e| internal(&e))?;
        let used = Used { root, mount: StepMount::snapshot("/", mount), metadata };
        let seen = self.follow(bridge, request, used, result).await?;
        self.judge(seen)
    }

    /// The image's files, to be written to and thrown away.
    async fn root(&self) -> Result<MutableRef> {
        let state = self.state;
        let solved = SolvedRef::new(state.clone(), self.image.definition.clone());
        let files = solved.state().await?;
        if let Some(files) = &files {
            let name = format!("[internal] unpack frontend image {}", self.image.name);
            let digest = VertexDigest(Digest::of(name.as_bytes()));
            let unpacked = state.job.vertex_scope(&name, digest, |cx| async move {
                let provider = common::provider(&state.worker, &cx);
                common::unlazy_all(&[Some(files.clone())], &provider, &cx).await
            });
            unpacked.await.map_err(|error: OpError| Error::request(chain(error.inner())))?;
        }
        let options =
            RecordOptions::new(format!("root of frontend image {}", self.image.name), RecordType::Internal);
        let made = state.worker.cache.new_mutable(files.as_ref(), options).await;
        made.map_err(|error| Error::request(chain(&error)))
    }

    /// Runs the process to its end and serves it meanwhile.
    async fn follow(
        &self,
        bridge: BuildBridge,
        request: &FrontendRequest,
        used: Used,
        mut result: oneshot::Receiver<Result<FrontendResult>>,
    ) -> Result<Seen, FrontendError> {
        let id = ContainerId::new(common::random_id()).map_err(|error| internal(&error))?;
        let spec = process::spec(&self.image.config, request).map_err(|error| internal(&error))?;
        let (mut streams, io, connection) = Streams::new(&self.image.name);
        let cancel = self.state.cancel.child_token();
        let _end = cancel.clone().drop_guard();
        let executor = self.state.worker.executor.clone();
        let running = self.state.tasks.spawn(used.run(executor, id, spec, io, cancel.clone()));
        let mut serving = self.images.server.serve(bridge, connection);
        let (mut server, mut served) = (None, false);
        let (mut exit, mut returned, mut lingered) = (None, None, false);
        {
            let pumping = streams.pump();
            let deadline = tokio::time::sleep(Duration::MAX);
            tokio::pin!(running, pumping, deadline);
            let mut pumped = false;
            // Once the process has ended, what is left of its output is handed on.
            while exit.is_none() || !pumped {
                tokio::select! {
                    ended = &mut running, if exit.is_none() => {
                        exit = Some(ended.unwrap_or((Err(kiln_executor::Error::Interrupted), None)));
                        deadline.as_mut().reset(Instant::now() + SERVER_GRACE);
                    }
                    ended = &mut serving, if !served => {
                        served = true;
                        if exit.is_none() && returned.is_none() {
                            server = Some(ended.err().map(|error| chain(&*error)).unwrap_or_default());
                            deadline.as_mut().reset(Instant::now() + SERVER_GRACE);
                        }
                    }
                    outcome = &mut result, if returned.is_none() => {
                        returned = Some(outcome.unwrap_or(Err(Error::Cancelled)));
                        deadline.as_mut().reset(Instant::now() + RETURN_GRACE);
                    }
                    () = &mut pumping, if !pumped => pumped = true,
                    () = &mut deadline, if exit.is_some() || server.is_some() || returned.is_some() => {
                        if exit.is_some() {
                            break;
                        }
                        lingered = returned.is_some();
                        cancel.cancel();
                        deadline.as_mut().reset(Instant::now() + SERVER_GRACE * 10);
                    }
                }
            }
        }
        drop(serving);
        let returned = returned.or_else(|| result.try_recv().ok());
        let (exit, full) = exit.unwrap_or((Err(kiln_executor::Error::Interrupted), None));
        Ok(Seen { exit, full, returned, lingered, server, last_words: streams.last_words() })
    }

    /// What a process that has ended comes to. An error that it returned says more than its exit code, and a bad exit
    /// makes a result doubtful.
    fn judge(&self, seen: Seen) -> Result<FrontendResult, FrontendError> {
        let image = &self.image.name;
        let Seen { exit, full, returned, lingered, server, last_words } = seen;
        if let Some(full) = full {
            return Err(internal(&full).context(format!("frontend image `{image}` had to stop")));
        }
        match (returned, exit, server) {
            (Some(Err(error)), _, _) => Err(solve_error(error)),
            (Some(Ok(result)), Ok(exit), _) if exit.code == 0 => Ok(result),
            (Some(Ok(result)), Err(kiln_executor::Error::Cancelled), _) if lingered => {
                tracing::warn!(image, "a frontend went on after it had returned its result, and was killed");
                Ok(result)
            }
            (_, Ok(exit), _) if exit.code != 0 => {
                let (code, oom) = (exit.code, exit.oom);
                let exit = FrontendExit { image: image.clone(), code, oom, last_words };
                Err(solve_error(Error::FrontendExit(exit)))
            }
            (_, Err(kiln_executor::Error::Cancelled), Some(reason)) => {
                let reason = if reason.is_empty() { reason } else { format!(" ({reason})") };
                Err(FrontendError::input(format!(
                    "frontend grpc server closed unexpectedly{reason}: `{image}` must speak gRPC on its standard \
                     streams and nothing else"
                )))
            }
            (_, Ok(_), _) => {
                let said =
                    if last_words.is_empty() { last_words } else { format!("; it said last: {last_words}") };
                Err(FrontendError::input(format!(
                    "no result for incomplete build: frontend image `{image}` ended without returning one, over gRPC on its \
                     standard streams{said}"
                )))
            }
            (_, Err(kiln_executor::Error::Cancelled), None) => Err(FrontendError::Cancelled),
            (_, Err(error), _) => {
                let message = format!("frontend image `{image}` could not be run");
                Err(internal(&error).context(message))
            }
        }
    }
}

fn solve_error(error: Error) -> FrontendError {
    let sources = match &error {
        Error::Client { places, .. } => places.clone(),
        _ => Vec::new(),
    };
    FrontendError::Solve { source: Box::new(error), sources }
}

fn internal(error: &(dyn std::error::Error + 'static)) -> FrontendError {
    let source: Option<BoxError> = error.source().map(|source| chain(source).into());
    FrontendError::Internal { message: error.to_string(), source }
}
