//! The gateway service: what clients that drive a build themselves call, and frontends that run as processes.

mod exec;
mod stdio;

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use kiln_api::apicaps::ApiCap;
use kiln_api::gateway::llb_bridge_server::LlbBridge;
use kiln_api::gateway::{
    self as wire, EvaluateRequest, EvaluateResponse, ExecMessage, InputsRequest, InputsResponse,
    NewContainerRequest, NewContainerResponse, PingRequest, PongResponse, ReadDirRequest, ReadDirResponse,
    ReadFileRequest, ReadFileResponse, ReleaseContainerRequest, ReleaseContainerResponse,
    ResolveImageConfigRequest, ResolveImageConfigResponse, ResolveSourceMetaRequest,
    ResolveSourceMetaResponse, ReturnRequest, ReturnResponse, SolveRequest, SolveResponse, StatFileRequest,
    StatFileResponse, WarnRequest, WarnResponse,
};
use kiln_api::types::BuildkitVersion;
use kiln_api::{fsutil, pb};
use kiln_engine::{BuildBridge, Container, ContainerMount, ContainerRequest, Engine};
use kiln_frontend::{
    Bridge as _, FileRange, FileStat, FrontendResult, Reference, References, ResolveMode, ResolveRequest,
    SourceMetadata, Warning,
};
use kiln_llb::caps::{CapList, CapSet};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};

pub use self::stdio::FrontendServer;
use crate::{convert, errors};

/// Names the build that a call belongs to.
const BUILD_ID: &str = "buildkit-controlapi-buildid";
/// How long a call waits for its build to begin.
const BUILD_WAIT: Duration = Duration::from_secs(3);
/// Messages about processes on their way to a client; when it is full, the processes wait.
const EXEC_BUFFER: usize = 16;

/// The gateway over the builds of an engine, or over one bridge.
#[derive(Clone, Debug)]
pub struct Gateway {
    calls: Calls,
    version: BuildkitVersion,
    /// Owns streams that are open.
    tasks: TaskTracker,
}

/// What calls are about.
#[derive(Clone, Debug)]
enum Calls {
    /// The build that each names.
    Of(Engine),
    /// Always the same.
    One(BuildBridge),
}

impl Gateway {
    pub(crate) fn new(engine: Engine, version: BuildkitVersion, tasks: TaskTracker) -> Self {
        Self { calls: Calls::Of(engine), version, tasks }
    }

    async fn bridge<T>(&self, request: &Request<T>) -> Result<BuildBridge, Status> {
        let engine = match &self.calls {
            Calls::Of(engine) => engine,
            Calls::One(bridge) => return Ok(bridge.clone()),
        };
        let id = request.metadata().get(BUILD_ID).and_then(|v| v.to_str().ok()).filter(|id| !id.is_empty());
        let id = id.ok_or_else(|| Status::invalid_argument("no buildid found in context"))?;
        tokio::time::timeout(BUILD_WAIT, engine.bridge(id))
            .await
            .map_err(|_| Status::not_found(format!("unknown job {id}")))
    }

    /// A result for the client; its references get ids.
    fn result(bridge: &BuildBridge, result: FrontendResult, arrays: bool) -> Result<wire::Result, Status> {
        use wire::result::Result as Kind;
        let reference = |reference: Option<Arc<dyn Reference>>| -> Result<wire::Ref, Status> {
            match reference {
                None => Ok(wire::Ref::default()),
                Some(reference) => {
                    let def = reference.definition();
                    Ok(wire::Ref { id: keep(bridge, reference)?, def })
                }
            }
        };
        let kind = match result.refs {
            References::Single(single) => {
                let made = reference(single)?;
                if arrays { Kind::Ref(made) } else { Kind::RefDeprecated(made.id) }
            }
            References::Map(map) => {
                let made = map
                    .into_iter()
                    .map(|(id, r)| Ok((id, reference(r)?)))
                    .collect::<Result<BTreeMap<_, _>, Status>>()?;
                if arrays {
                    Kind::Refs(wire::RefMap { refs: made })
                } else {
                    Kind::RefsDeprecated(wire::RefMapDeprecated {
                        refs: made.into_iter().map(|(k, r)| (k, r.id)).collect(),
                    })
                }
            }
        };
        Ok(wire::Result { result: Some(kind), metadata: result.metadata, attestations: BTreeMap::new() })
    }

    /// The result that a client returns, from the ids of its references.
    fn returned(bridge: &BuildBridge, result: wire::Result) -> Result<FrontendResult, Status> {
        use wire::result::Result as Kind;
        let find = |id: &str| -> Result<Option<Arc<dyn Reference>>, Status> {
            if id.is_empty() { Ok(None) } else { find(bridge, id).map(Some) }
        };
        if !result.attestations.is_empty() {
            return Err(Status::unimplemented("attestations are not supported yet"));
        }
        let mut made = FrontendResult::default();
        made.metadata = result.metadata;
        made.refs = match result.result {
            None => References::default(),
            Some(Kind::RefDeprecated(id)) => References::Single(find(&id)?),
            Some(Kind::Ref(r)) => References::Single(find(&r.id)?),
            Some(Kind::RefsDeprecated(map)) => References::Map(
                map.refs.into_iter().map(|(k, id)| Ok((k, find(&id)?))).collect::<Result<_, Status>>()?,
            ),
            Some(Kind::Refs(map)) => References::Map(
                map.refs.into_iter().map(|(k, r)| Ok((k, find(&r.id)?))).collect::<Result<_, Status>>()?,
            ),
        };
        Ok(made)
    }
}

fn keep(bridge: &BuildBridge, reference: Arc<dyn Reference>) -> Result<String, Status> {
    bridge.keep(reference).map_err(|e| errors::status(&e))
}

fn find(bridge: &BuildBridge, id: &str) -> Result<Arc<dyn Reference>, Status> {
    bridge.find(id).map_err(|e| errors::status(&e))
}

fn caps(list: CapList, set: &CapSet) -> Vec<ApiCap> {
    let known = list.all().iter().filter_map(|cap| Some((cap, set.get(cap.id)?)));
    known
        .map(|(cap, state)| ApiCap {
            id: cap.id.to_owned(),
            enabled: state.enabled,
            deprecated: cap.deprecated,
            disabled_reason_msg: state.disabled_reason.clone(),
            ..ApiCap::default()
        })
        .collect()
}

fn resolve_mode(mode: &str) -> Result<ResolveMode, Status> {
    match mode {
        "" | "default" => Ok(ResolveMode::Default),
        "pull" => Ok(ResolveMode::ForcePull),
        "local" => Ok(ResolveMode::PreferLocal),
        other => Err(Status::invalid_argument(format!("invalid resolvemode: {other}"))),
    }
}

fn stat(stat: FileStat) -> fsutil::Stat {
    fsutil::Stat {
        path: stat.path,
        mode: stat.mode,
        uid: stat.uid,
        gid: stat.gid,
        size: stat.size,
        mod_time: stat.mod_time,
        linkname: stat.linkname,
        devmajor: stat.dev_major,
        devminor: stat.dev_minor,
        xattrs: BTreeMap::new(),
    }
}

fn source_meta(metadata: SourceMetadata) -> ResolveSourceMetaResponse {
    ResolveSourceMetaResponse {
        source: Some(metadata.source),
        image: metadata.image.map(|i| wire::ResolveSourceImageResponse {
            digest: i.digest,
            config: i.config,
            attestation_chain: None,
        }),
        git: metadata.git.map(|g| wire::ResolveSourceGitResponse {
            checksum: g.checksum,
            r#ref: g.reference,
            commit_checksum: g.commit_checksum,
            commit_object: g.commit_object,
            tag_object: g.tag_object,
        }),
        http: metadata.http.map(|h| wire::ResolveSourceHttpResponse {
            checksum: h.digest,
            filename: h.filename,
            last_modified: h.last_modified.map(|seconds| prost_types::Timestamp { seconds, nanos: 0 }),
            checksum_response: None,
        }),
    }
}

/// What a call about a container's mount names.
fn mounted(bridge: &BuildBridge, id: &str, mount: i32) -> Result<(Arc<Container>, usize), Status> {
    let missing = || Status::unknown(format!("container details for {id}@{mount} not found"));
    let container = bridge.container(id).ok_or_else(missing)?;
    Ok((container, usize::try_from(mount).map_err(|_| missing())?))
}

fn range(range: Option<wire::FileRange>) -> Option<FileRange> {
    range.map(|r| FileRange {
        offset: u64::try_from(r.offset).unwrap_or(0),
        length: u64::try_from(r.length).unwrap_or(0),
    })
}

#[tonic::async_trait]
impl LlbBridge for Gateway {
    type ExecProcessStream = Pin<Box<dyn Stream<Item = Result<ExecMessage, Status>> + Send>>;

    async fn ping(&self, request: Request<PingRequest>) -> Result<Response<PongResponse>, Status> {
        let bridge = self.bridge(&request).await?;
        Ok(Response::new(PongResponse {
            frontend_api_caps: caps(kiln_llb::caps::GATEWAY, &kiln_engine::caps::gateway()),
            llb_caps: caps(kiln_llb::caps::LLB, &kiln_engine::caps::llb()),
            workers: vec![convert::worker(bridge.worker(), &[], &self.version).await],
        }))
    }

    async fn solve(&self, request: Request<SolveRequest>) -> Result<Response<SolveResponse>, Status> {
        let bridge = self.bridge(&request).await?;
        let request = request.into_inner();
        if request.source_policies.iter().any(|p| !p.rules.is_empty()) {
            return Err(Status::unimplemented("source policies are not supported yet"));
        }
        let mut asked = kiln_frontend::SolveRequest::default();
        asked.definition = request.definition;
        asked.frontend = request.frontend;
        asked.opts = request.frontend_opt;
        asked.inputs = request.frontend_inputs;
        asked.evaluate = request.evaluate;
        asked.cache_imports = request
            .cache_imports
            .into_iter()
            .map(|c| kiln_frontend::CacheImport { kind: c.r#type, attrs: c.attrs })
            .collect();
        let solved = bridge.solve(asked).await.map_err(|e| errors::frontend_status(&e))?;
        if !request.allow_result_return {
            let References::Single(reference) = solved.refs else {
                return Err(Status::unknown("solve did not return default result"));
            };
            let r#ref = reference.map(|r| keep(&bridge, r)).transpose()?.unwrap_or_default();
            return Ok(Response::new(SolveResponse { r#ref, result: None }));
        }
        let result = Self::result(&bridge, solved, request.allow_result_array_ref)?;
        Ok(Response::new(SolveResponse { r#ref: String::new(), result: Some(result) }))
    }

    async fn resolve_image_config(
        &self,
        request: Request<ResolveImageConfigRequest>,
    ) -> Result<Response<ResolveImageConfigResponse>, Status> {
        let bridge = self.bridge(&request).await?;
        let request = request.into_inner();
        let scheme = if request.resolver_type == 1 { "oci-layout" } else { "docker-image" };
        let source =
            pb::SourceOp { identifier: format!("{scheme}://{}", request.r#ref), attrs: BTreeMap::new() };
        let mut asked = ResolveRequest::new(source, request.log_name);
        asked.platform = request.platform;
        asked.resolve_mode = resolve_mode(&request.resolve_mode)?;
        if request.resolver_type == 1 {
            asked.oci_store =
                Some(kiln_frontend::OciStore { session_id: request.session_id, store_id: request.store_id });
        }
        let found = bridge.resolve_source_metadata(asked).await.map_err(|e| errors::frontend_status(&e))?;
        let image = found.image.unwrap_or_default();
        Ok(Response::new(ResolveImageConfigResponse {
            digest: image.digest,
            config: image.config,
            r#ref: request.r#ref,
        }))
    }

    async fn resolve_source_meta(
        &self,
        request: Request<ResolveSourceMetaRequest>,
    ) -> Result<Response<ResolveSourceMetaResponse>, Status> {
        let bridge = self.bridge(&request).await?;
        let request = request.into_inner();
        let source = request.source.ok_or_else(|| Status::invalid_argument("source is required"))?;
        let image = request.image.unwrap_or_default();
        if image.attestation_chain || !image.resolve_attestations.is_empty() {
            return Err(Status::unimplemented("attestation chains are not supported yet"));
        }
        let mut asked = ResolveRequest::new(source, request.log_name);
        asked.platform = request.platform;
        asked.resolve_mode = resolve_mode(&request.resolve_mode)?;
        asked.no_config = image.no_config;
        asked.git_objects = request.git.is_some_and(|g| g.return_object);
        if asked.source.identifier.starts_with("oci-layout://") {
            let attr = |key: &str| asked.source.attrs.get(key).cloned().unwrap_or_default();
            asked.oci_store = Some(kiln_frontend::OciStore {
                session_id: attr("oci.session"),
                store_id: attr("oci.store"),
            });
        }
        let found = bridge.resolve_source_metadata(asked).await.map_err(|e| errors::frontend_status(&e))?;
        Ok(Response::new(source_meta(found)))
    }

    async fn read_file(
        &self,
        request: Request<ReadFileRequest>,
    ) -> Result<Response<ReadFileResponse>, Status> {
        let bridge = self.bridge(&request).await?;
        let request = request.into_inner();
        let data = find(&bridge, &request.r#ref)?
            .read_file(&request.file_path, range(request.range))
            .await
            .map_err(|e| errors::frontend_status(&e))?;
        Ok(Response::new(ReadFileResponse { data }))
    }

    async fn read_dir(&self, request: Request<ReadDirRequest>) -> Result<Response<ReadDirResponse>, Status> {
        let bridge = self.bridge(&request).await?;
        let request = request.into_inner();
        let reference = find(&bridge, &request.r#ref)?;
        let entries = reference
            .read_dir(&request.dir_path, &request.include_pattern)
            .await
            .map_err(|e| errors::frontend_status(&e))?;
        Ok(Response::new(ReadDirResponse { entries: entries.into_iter().map(stat).collect() }))
    }

    async fn stat_file(
        &self,
        request: Request<StatFileRequest>,
    ) -> Result<Response<StatFileResponse>, Status> {
        let bridge = self.bridge(&request).await?;
        let request = request.into_inner();
        let found = find(&bridge, &request.r#ref)?
            .stat(&request.path)
            .await
            .map_err(|e| errors::frontend_status(&e))?;
        Ok(Response::new(StatFileResponse { stat: Some(stat(found)) }))
    }

    async fn evaluate(
        &self,
        request: Request<EvaluateRequest>,
    ) -> Result<Response<EvaluateResponse>, Status> {
        let bridge = self.bridge(&request).await?;
        let id = request.into_inner().r#ref;
        find(&bridge, &id)?.evaluate().await.map_err(|e| errors::frontend_status(&e))?;
        Ok(Response::new(EvaluateResponse {}))
    }

    async fn r#return(&self, request: Request<ReturnRequest>) -> Result<Response<ReturnResponse>, Status> {
        let bridge = self.bridge(&request).await?;
        let request = request.into_inner();
        let outcome = match (request.result, request.error) {
            (Some(result), None) => Ok(Self::returned(&bridge, result)?),
            (None, Some(error)) => Err(errors::from_returned(&error)),
            _ => return Err(Status::invalid_argument("gateway return must be either result or err")),
        };
        if !bridge.finish(outcome) {
            return Err(Status::unknown("gateway result is already set"));
        }
        Ok(Response::new(ReturnResponse {}))
    }

    async fn inputs(&self, request: Request<InputsRequest>) -> Result<Response<InputsResponse>, Status> {
        let bridge = self.bridge(&request).await?;
        Ok(Response::new(InputsResponse { definitions: bridge.inputs().clone() }))
    }

    async fn warn(&self, request: Request<WarnRequest>) -> Result<Response<WarnResponse>, Status> {
        let bridge = self.bridge(&request).await?;
        let request = request.into_inner();
        let mut warning = Warning::default();
        warning.vertex = request.digest;
        warning.level = request.level;
        warning.short = String::from_utf8_lossy(&request.short).into_owned();
        warning.detail = request.detail.iter().map(|d| String::from_utf8_lossy(d).into_owned()).collect();
        warning.url = request.url;
        warning.source = request.info;
        warning.ranges = request.ranges;
        bridge.warn(warning).await.map_err(|e| errors::frontend_status(&e))?;
        Ok(Response::new(WarnResponse {}))
    }

    async fn new_container(
        &self,
        request: Request<NewContainerRequest>,
    ) -> Result<Response<NewContainerResponse>, Status> {
        let bridge = self.bridge(&request).await?;
        let request = request.into_inner();
        let mut asked = ContainerRequest::default();
        asked.id = request.container_id;
        asked.network = pb::NetMode::try_from(request.network)
            .map_err(|_| Status::invalid_argument(format!("unknown network mode {}", request.network)))?;
        asked.extra_hosts = request.extra_hosts;
        asked.hostname = request.hostname;
        for mount in request.mounts {
            let reference = match mount.result_id.as_str() {
                "" => None,
                id => Some(find(&bridge, id)?),
            };
            asked.mounts.push(ContainerMount { mount, reference });
        }
        bridge.new_container(asked).await.map_err(|e| errors::status(&e))?;
        Ok(Response::new(NewContainerResponse {}))
    }

    async fn release_container(
        &self,
        request: Request<ReleaseContainerRequest>,
    ) -> Result<Response<ReleaseContainerResponse>, Status> {
        let bridge = self.bridge(&request).await?;
        let id = request.into_inner().container_id;
        if !bridge.release_container(&id).await {
            return Err(Status::unknown(format!("container details for {id} not found")));
        }
        Ok(Response::new(ReleaseContainerResponse {}))
    }

    async fn exec_process(
        &self,
        request: Request<Streaming<ExecMessage>>,
    ) -> Result<Response<Self::ExecProcessStream>, Status> {
        let bridge = self.bridge(&request).await?;
        let (outgoing, messages) = mpsc::channel(EXEC_BUFFER);
        self.tasks.spawn(exec::serve(bridge, request.into_inner(), outgoing));
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }

    async fn read_file_container(
        &self,
        request: Request<ReadFileRequest>,
    ) -> Result<Response<ReadFileResponse>, Status> {
        let bridge = self.bridge(&request).await?;
        let request = request.into_inner();
        let (container, mount) = mounted(&bridge, &request.r#ref, request.mount_index)?;
        let data = container.read_file(mount, &request.file_path, range(request.range)).await;
        Ok(Response::new(ReadFileResponse { data: data.map_err(|e| errors::frontend_status(&e))? }))
    }

    async fn read_dir_container(
        &self,
        request: Request<ReadDirRequest>,
    ) -> Result<Response<ReadDirResponse>, Status> {
        let bridge = self.bridge(&request).await?;
        let request = request.into_inner();
        let (container, mount) = mounted(&bridge, &request.r#ref, request.mount_index)?;
        let entries = container.read_dir(mount, &request.dir_path, &request.include_pattern).await;
        let entries = entries.map_err(|e| errors::frontend_status(&e))?;
        Ok(Response::new(ReadDirResponse { entries: entries.into_iter().map(stat).collect() }))
    }

    async fn stat_file_container(
        &self,
        request: Request<StatFileRequest>,
    ) -> Result<Response<StatFileResponse>, Status> {
        let bridge = self.bridge(&request).await?;
        let request = request.into_inner();
        let (container, mount) = mounted(&bridge, &request.r#ref, request.mount_index)?;
        let found = container.stat(mount, &request.path).await.map_err(|e| errors::frontend_status(&e))?;
        Ok(Response::new(StatFileResponse { stat: Some(stat(found)) }))
    }
}
