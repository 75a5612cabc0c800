//! The control service.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::{Stream, StreamExt as _};
use kiln_api::content::content_server::ContentServer;
use kiln_api::control::control_server::{Control as ControlService, ControlServer};
use kiln_api::control::{
    BuildHistoryEvent, BuildHistoryRequest, BytesMessage, DiskUsageRequest, DiskUsageResponse, InfoRequest,
    InfoResponse, ListWorkersRequest, ListWorkersResponse, PruneRequest, SolveRequest, SolveResponse,
    StatusRequest, StatusResponse, UpdateBuildHistoryRequest, UpdateBuildHistoryResponse, UsageRecord,
};
use kiln_api::gateway::llb_bridge_server::LlbBridgeServer;
use kiln_api::kiln::catalogue_server::CatalogueServer;
use kiln_api::types::BuildkitVersion;
use kiln_cache::{BuildRetention, GcPolicy, PruneOptions, UsageQuery};
use kiln_engine::{BuildRequest, CacheSpec, Engine, ExporterSpec};
use kiln_session::SessionStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};

use crate::blobs::Blobs;
use crate::catalogue::Catalogue;
use crate::gateway::Gateway;
use crate::history::History;
use crate::{convert, errors, status};

/// Requests are at most this large. That is four times what the reference takes, for definitions: the largest that is
/// loaded, of 100 000 vertices, has 25 MiB and more. A request is decoded before anything of it is looked at, into
/// a few times its size as a rule, so this also bounds what a client can make the daemon hold.
pub(crate) const MAX_REQUEST: usize = 64 << 20;
/// Answers are at most this large, because clients take no more.
pub(crate) const MAX_ANSWER: usize = 16 << 20;
/// How long a status call waits for a build that has not begun.
const JOB_WAIT: Duration = Duration::from_secs(6);
/// Responses on their way to a slow client; when it is full, the stream waits (progress itself is kept by the job).
const STATUS_BUFFER: usize = 16;
/// Time between responses, while more are to come. Shorter than anybody sees.
const STATUS_PAUSE: Duration = Duration::from_millis(20);
/// The newest behaviour that clients can ask for.
const COMPATIBILITY: [i64; 3] = [10, 20, 30];

/// The services of the daemon.
#[derive(Clone, Debug)]
pub struct Control {
    engine: Engine,
    options: Arc<ControlOptions>,
    history: History,
    tasks: TaskTracker,
}

/// A version as clients are told it.
pub type Version = BuildkitVersion;

/// What the services say of the daemon.
#[derive(Clone, Debug, Default)]
pub struct ControlOptions {
    /// Version of the daemon and of its Dockerfile frontend.
    pub version: Version,
    /// Policies of the garbage collector, as listed with the worker.
    pub gc_policies: Vec<GcPolicy>,
    /// Which records of builds stay.
    pub retention: BuildRetention,
}

impl Control {
    /// Services over `engine`.
    pub fn new(engine: Engine, options: ControlOptions) -> Self {
        let tasks = TaskTracker::new();
        let history = History::new(engine.clone(), options.retention, tasks.clone());
        Self { engine, options: Arc::new(options), history, tasks }
    }

    /// The control service.
    pub fn control_server(&self) -> ControlServer<Self> {
        ControlServer::new(self.clone())
            .max_decoding_message_size(MAX_REQUEST)
            .max_encoding_message_size(MAX_ANSWER)
    }

    /// The gateway service, for clients that drive builds themselves.
    pub fn gateway_server(&self) -> LlbBridgeServer<Gateway> {
        LlbBridgeServer::new(Gateway::new(
            self.engine.clone(),
            self.options.version.clone(),
            self.tasks.clone(),
        ))
        .max_decoding_message_size(MAX_REQUEST)
        .max_encoding_message_size(MAX_ANSWER)
    }

    /// The service of the catalogue, which only our own clients know.
    pub fn catalogue_server(&self) -> CatalogueServer<Catalogue> {
        CatalogueServer::new(Catalogue::new(self.engine.worker().cache.clone(), self.tasks.clone()))
    }

    /// The content service, by which clients read blobs.
    pub fn content_server(&self) -> ContentServer<Blobs> {
        ContentServer::new(Blobs::new(self.engine.worker().content.clone(), self.tasks.clone()))
    }

    /// Removes the records of builds that do not stay. For the daemon's housekeeping.
    ///
    /// # Errors
    /// Those of the catalogue.
    pub async fn expire_history(&self) -> kiln_cache::Result<()> {
        self.history.expire().await
    }

    /// Ends the streams of those who wait for what builds do next.
    pub fn end_listening(&self) {
        self.history.close();
    }

    /// Waits for the streams that are still open, and for records of builds that are being written.
    pub async fn close(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

type Boxed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl ControlService for Control {
    type PruneStream = Boxed<UsageRecord>;
    type StatusStream = Boxed<StatusResponse>;
    type SessionStream = SessionStream;
    type ListenBuildHistoryStream = Boxed<BuildHistoryEvent>;

    async fn disk_usage(
        &self,
        request: Request<DiskUsageRequest>,
    ) -> Result<Response<DiskUsageResponse>, Status> {
        let request = request.into_inner();
        let query = UsageQuery { filters: request.filter, age_limit: convert::duration(request.age_limit) };
        let records = self.engine.worker().cache.disk_usage(&query).await.map_err(internal)?;
        Ok(Response::new(DiskUsageResponse { record: records.iter().map(convert::usage).collect() }))
    }

    async fn prune(&self, request: Request<PruneRequest>) -> Result<Response<Self::PruneStream>, Status> {
        let request = request.into_inner();
        let options = PruneOptions {
            filters: request.filter,
            all: request.all,
            keep_duration: convert::duration(request.keep_duration),
            reserved_space: request.reserved_space,
            max_used_space: request.max_used_space,
            min_free_space: request.min_free_space,
        };
        let (send, receive) = mpsc::channel(STATUS_BUFFER);
        let (out, answers) = mpsc::channel(STATUS_BUFFER);
        let cache = self.engine.worker().cache.clone();
        self.tasks.spawn(async move {
            let removed = async {
                let mut receive: mpsc::Receiver<kiln_cache::UsageRecord> = receive;
                while let Some(record) = receive.recv().await {
                    if out.send(Ok(convert::usage(&record))).await.is_err() {
                        return;
                    }
                }
            };
            let (pruned, ()) = tokio::join!(cache.prune(&options, send), removed);
            if let Err(error) = pruned {
                out.send(Err(internal(error))).await.ok();
            }
        });
        Ok(Response::new(ReceiverStream::new(answers).boxed()))
    }

    async fn solve(&self, request: Request<SolveRequest>) -> Result<Response<SolveResponse>, Status> {
        let request = request.into_inner();
        let internal = request.internal;
        let request = build_request(request)?;
        let id = request.id.clone();
        let recording = if internal { None } else { self.history.begin(&request) };
        let outcome = self.engine.build(request).await;
        if let Some(recording) = recording {
            recording.ended(&outcome);
        }
        match outcome {
            Ok(response) => {
                Ok(Response::new(SolveResponse { exporter_response: response.exporter_response }))
            }
            Err(error) => {
                let status = errors::status(&error);
                tracing::info!(build = %id, error = status.message(), "build failed");
                Err(status)
            }
        }
    }

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<Self::StatusStream>, Status> {
        let id = request.into_inner().r#ref;
        if let Some(replayed) = self.history.replay(&id).await? {
            return Ok(with_clock(ReceiverStream::new(replayed).boxed()));
        }
        let mut events = tokio::time::timeout(JOB_WAIT, self.engine.progress(&id))
            .await
            .map_err(|_| Status::not_found(format!("no such job {id}")))?;
        let (send, receive) = mpsc::channel(STATUS_BUFFER);
        self.tasks.spawn(async move {
            loop {
                let batch = tokio::select! {
                    batch = events.next() => batch,
                    () = send.closed() => return,
                };
                let Some(batch) = batch else { return };
                for response in status::responses(&batch) {
                    if send.send(Ok(response)).await.is_err() {
                        return;
                    }
                }
                // What comes at once goes at once. A message for every event would cost more than small steps do.
                tokio::select! {
                    () = tokio::time::sleep(STATUS_PAUSE) => {}
                    () = events.closed() => {}
                    () = send.closed() => return,
                }
            }
        });
        Ok(with_clock(ReceiverStream::new(receive).boxed()))
    }

    async fn session(
        &self,
        request: Request<Streaming<BytesMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let metadata = request.metadata().clone();
        let stream = self
            .engine
            .worker()
            .sessions
            .accept(&metadata, request.into_inner())
            .map_err(|e| Status::invalid_argument(e.chain()))?;
        Ok(Response::new(stream))
    }

    async fn list_workers(
        &self,
        request: Request<ListWorkersRequest>,
    ) -> Result<Response<ListWorkersResponse>, Status> {
        let filters = request.into_inner().filter;
        let options = &self.options;
        let worker = convert::worker(self.engine.worker(), &options.gc_policies, &options.version).await;
        let matches = worker_matches(&filters, &worker)?;
        Ok(Response::new(ListWorkersResponse { record: if matches { vec![worker] } else { Vec::new() } }))
    }

    async fn info(&self, _request: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        let losses = convert::losses(self.engine.worker().cache.losses());
        Ok(Response::new(InfoResponse {
            buildkit_version: Some(self.options.version.clone()),
            losses: Some(losses),
        }))
    }

    async fn listen_build_history(
        &self,
        request: Request<BuildHistoryRequest>,
    ) -> Result<Response<Self::ListenBuildHistoryStream>, Status> {
        let events = self.history.listen(request.into_inner()).await?;
        Ok(with_clock(ReceiverStream::new(events).boxed()))
    }

    async fn update_build_history(
        &self,
        request: Request<UpdateBuildHistoryRequest>,
    ) -> Result<Response<UpdateBuildHistoryResponse>, Status> {
        self.history.update(request.into_inner()).await?;
        Ok(Response::new(UpdateBuildHistoryResponse {}))
    }
}

/// Filters on `id` and `labels.KEY` with `==` or `!=`; conditions of one filter are joined by commas, and one filter
/// has to match.
fn worker_matches(filters: &[String], worker: &kiln_api::types::WorkerRecord) -> Result<bool, Status> {
    if filters.is_empty() {
        return Ok(true);
    }
    for filter in filters {
        let mut all = true;
        for condition in filter.split(',') {
            let (field, equal, value) = match (condition.split_once("=="), condition.split_once("!=")) {
                (Some((field, value)), _) => (field, true, value),
                (None, Some((field, value))) => (field, false, value),
                (None, None) => {
                    return Err(Status::invalid_argument(format!(
                        "failed to parse worker filter `{condition}`: use FIELD==VALUE or FIELD!=VALUE"
                    )));
                }
            };
            let label = |key: &str| worker.labels.get(key.trim_matches('"')).map_or("", String::as_str);
            let actual = match field.strip_prefix("labels.") {
                Some(key) => label(key),
                None if field == "id" => worker.id.as_str(),
                None => "",
            };
            all &= (actual == value.trim_matches('"')) == equal;
        }
        if all {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Clients correct the skew of their clocks by this header.
fn with_clock<T>(stream: T) -> Response<T> {
    let mut response = Response::new(stream);
    let now = prost_types::Timestamp::from(SystemTime::now()).to_string();
    if let Ok(now) = now.parse() {
        response.metadata_mut().insert("buildkit-current-timestamp", now);
    }
    response
}

pub(crate) fn internal(error: impl std::error::Error) -> Status {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    Status::unknown(text)
}

/// Both generations of exporter and cache fields.
fn build_request(request: SolveRequest) -> Result<BuildRequest, Status> {
    let newest = COMPATIBILITY[COMPATIBILITY.len() - 1];
    match request.compatibility_version {
        0 => {}
        n if COMPATIBILITY.contains(&n) => {}
        n if n > newest => {
            return Err(Status::invalid_argument(format!(
                "unsupported compatibility-version {n}: upgrade buildkit (max supported: {newest})"
            )));
        }
        n => {
            return Err(Status::invalid_argument(format!(
                "unsupported compatibility-version {n} (supported: [10 20 30])"
            )));
        }
    }
    if request.proxy_network {
        return Err(Status::unknown("proxy network provider is not available"));
    }
    if request.source_policy.as_ref().is_some_and(|p| !p.rules.is_empty())
        || !request.source_policy_session.is_empty()
    {
        return Err(Status::unimplemented("source policies are not supported yet"));
    }
    let mut exporters: Vec<ExporterSpec> =
        request.exporters.into_iter().map(|e| ExporterSpec { kind: e.r#type, attrs: e.attrs }).collect();
    if exporters.is_empty() && !request.exporter_deprecated.is_empty() {
        exporters.push(ExporterSpec {
            kind: request.exporter_deprecated,
            attrs: request.exporter_attrs_deprecated,
        });
    }
    // The frontend refuses what is no number, or gives it another meaning.
    let epoch = request.frontend_attrs.get("build-arg:SOURCE_DATE_EPOCH");
    if let Some(epoch) = epoch.filter(|epoch| epoch.is_empty() || epoch.parse::<i64>().is_ok()) {
        for exporter in &mut exporters {
            exporter.attrs.entry("source-date-epoch".to_owned()).or_insert_with(|| epoch.clone());
        }
    }
    let cache = request.cache.unwrap_or_default();
    let specs = |entries: Vec<kiln_api::control::CacheOptionsEntry>| {
        entries.into_iter().map(|e| CacheSpec { kind: e.r#type, attrs: e.attrs })
    };
    let mut cache_exports: Vec<CacheSpec> = specs(cache.exports).collect();
    if !cache.export_ref_deprecated.is_empty() {
        let mut attrs = cache.export_attrs_deprecated;
        attrs.insert("ref".to_owned(), cache.export_ref_deprecated);
        cache_exports.push(CacheSpec { kind: "registry".to_owned(), attrs });
    }
    let mut cache_imports: Vec<CacheSpec> = specs(cache.imports).collect();
    cache_imports.extend(
        cache.import_refs_deprecated.into_iter().map(|r| CacheSpec {
            kind: "registry".to_owned(),
            attrs: BTreeMap::from([("ref".to_owned(), r)]),
        }),
    );
    let mut built = BuildRequest::default();
    built.id = request.r#ref;
    built.session_id = request.session;
    built.definition = request.definition;
    built.frontend = request.frontend;
    built.attrs = request.frontend_attrs;
    built.inputs = request.frontend_inputs;
    built.exporters = exporters;
    built.cache_exports = cache_exports;
    built.cache_imports = cache_imports;
    built.entitlements = request.entitlements;
    built.compatibility = u64::try_from(request.compatibility_version).unwrap_or(0);
    if built.id.is_empty() {
        return Err(Status::invalid_argument("the build has no ref"));
    }
    Ok(built)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deprecated_exporter_counts_only_alone() {
        let request = SolveRequest {
            r#ref: "r".into(),
            exporter_deprecated: "tar".into(),
            exporters: vec![kiln_api::control::Exporter { r#type: "oci".into(), attrs: BTreeMap::new() }],
            frontend_attrs: BTreeMap::from([("build-arg:SOURCE_DATE_EPOCH".into(), "5".into())]),
            ..SolveRequest::default()
        };
        let built = build_request(request.clone()).unwrap();
        assert_eq!(built.exporters.iter().map(|e| e.kind.as_str()).collect::<Vec<_>>(), ["oci"]);
        assert_eq!(built.exporters[0].attrs["source-date-epoch"], "5");
        let built = build_request(SolveRequest { exporters: Vec::new(), ..request }).unwrap();
        assert_eq!(built.exporters[0].kind, "tar");
    }

    #[test]
    fn unknown_compatibility_versions_are_refused() {
        for (version, want) in [(5, "(supported: [10 20 30])"), (40, "upgrade buildkit")] {
            let request =
                SolveRequest { r#ref: "r".into(), compatibility_version: version, ..SolveRequest::default() };
            assert!(build_request(request).unwrap_err().message().contains(want));
        }
    }
}
