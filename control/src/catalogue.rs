//! The service of the catalogue, which only our own clients know.

use std::pin::Pin;

use futures::{Stream, StreamExt as _};
use kiln_api::kiln::catalogue_server::Catalogue as CatalogueService;
use kiln_api::kiln::{CheckRequest, CheckResponse, CheckSummary, Finding};
use kiln_cache::{CacheManager, CheckOptions};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status};

use crate::service::internal;

/// Findings on their way to a slow client; when it is full, looking waits.
const FINDINGS: usize = 16;

/// The service.
#[derive(Clone, Debug)]
pub struct Catalogue {
    cache: CacheManager,
    tasks: TaskTracker,
}

impl Catalogue {
    pub(crate) fn new(cache: CacheManager, tasks: TaskTracker) -> Self {
        Self { cache, tasks }
    }
}

#[tonic::async_trait]
impl CatalogueService for Catalogue {
    type CheckStream = Pin<Box<dyn Stream<Item = Result<CheckResponse, Status>> + Send>>;

    async fn check(&self, request: Request<CheckRequest>) -> Result<Response<Self::CheckStream>, Status> {
        let CheckRequest { repair, digests } = request.into_inner();
        let (tell, mut told) = mpsc::channel::<kiln_cache::Finding>(FINDINGS);
        let (out, answers) = mpsc::channel(FINDINGS);
        let last = out.clone();
        let cache = self.cache.clone();
        self.tasks.spawn(async move {
            // Once nobody listens, the receiver goes, and with it the looking ends.
            let findings = async move {
                while let Some(found) = told.recv().await {
                    if out.send(Ok(finding(found))).await.is_err() {
                        return;
                    }
                }
            };
            let (outcome, ()) = tokio::join!(cache.check(CheckOptions { digests, repair }, tell), findings);
            let summary = match outcome {
                Ok(summary) => Ok(CheckResponse {
                    finding: None,
                    summary: Some(CheckSummary {
                        records: summary.records,
                        snapshots: summary.snapshots,
                        blobs: summary.blobs,
                        findings: summary.findings,
                    }),
                }),
                Err(error) => Err(internal(error)),
            };
            last.send(summary).await.ok();
        });
        Ok(Response::new(ReceiverStream::new(answers).boxed()))
    }
}

fn finding(found: kiln_cache::Finding) -> CheckResponse {
    CheckResponse {
        finding: Some(Finding {
            fault: found.fault.as_str().to_owned(),
            gravity: found.fault.gravity().as_str().to_owned(),
            subject: found.subject,
            detail: found.detail,
            mended: found.mended,
        }),
        summary: None,
    }
}
