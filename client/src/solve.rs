use std::collections::BTreeMap;
use std::pin::pin;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kiln_api::control::{SolveRequest, StatusResponse};
use kiln_api::errdetails::{Detail, details};
use kiln_api::gateway::llb_bridge_client::LlbBridgeClient;
use kiln_api::gateway::{self, ReturnRequest, result};
use kiln_api::rpc;
use kiln_session::attach::{self, Attachments, SessionHead};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::{IntoRequest as _, Request, Status};

use crate::client::{Client, MAX_ANSWER, MAX_REQUEST};
use crate::error::{Error, Result};
use crate::layout;
use crate::request::{CacheLayout, Prepared, SolveOptions, random_id};
use crate::solve_error::SolveError;

/// How long progress may be silent after the build has ended.
const SILENCE: Duration = Duration::from_secs(5);
/// How long the answer to a build may take once its session has failed.
const LAST_WORD: Duration = Duration::from_secs(5);
/// Metadata of calls that belong to a build.
const BUILD_ID: &str = "buildkit-controlapi-buildid";

/// A finished build.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct SolveOutcome {
    /// What the exporters returned.
    pub exporter_response: BTreeMap<String, String>,
}

impl Client {
    /// Builds: opens a session, solves, and sends progress until there is no more of it.
    ///
    /// # Errors
    /// [`Error::Solve`] if the build failed; [`Error::Session`] if the session did.
    ///
    /// # Cancel safety
    /// Dropping the future cancels the build.
    pub async fn solve(
        &self,
        options: SolveOptions,
        progress: mpsc::Sender<StatusResponse>,
    ) -> Result<SolveOutcome> {
        let session = random_id();
        let Prepared { request, attachments, shared_key, cache_layouts, export_layouts } =
            options.prepare(&session)?;
        let head = SessionHead { id: session, shared_key };
        let answer = self.in_session(&head, &attachments, self.build(request, progress)).await?;
        for CacheLayout { dir, tag, position, reset } in cache_layouts {
            // Daemons that do not tell several exports apart name the manifest of one of them.
            let own = answer.get(&format!("cache.manifest.{position}"));
            let Some(manifest) = own.or_else(|| answer.get("cache.manifest")) else { continue };
            let manifest = descriptor(manifest)?;
            if own.is_none() && !layout::has(&dir, &manifest) {
                continue;
            }
            layout::put(&dir, manifest, Some(&tag))?;
            if reset {
                layout::remove_unreferenced(&dir)?;
            }
        }
        for (dir, name) in export_layouts {
            if let Some(encoded) = answer.get("containerimage.descriptor") {
                let decoded = STANDARD.decode(encoded).unwrap_or_default();
                layout::put(&dir, descriptor(&String::from_utf8_lossy(&decoded))?, tag(name.as_deref()))?;
            }
        }
        Ok(SolveOutcome { exporter_response: answer })
    }

    /// Asks a frontend a question about its input (option `requestid`); the metadata it answers with.
    ///
    /// # Errors
    /// [`Error::Solve`] if the frontend has no answer; [`Error::Session`] if the session failed.
    ///
    /// # Cancel safety
    /// Dropping the future withdraws the question.
    pub async fn ask(
        &self,
        mut options: SolveOptions,
        progress: mpsc::Sender<StatusResponse>,
    ) -> Result<BTreeMap<String, Vec<u8>>> {
        let question = gateway::SolveRequest {
            frontend: std::mem::take(&mut options.frontend),
            frontend_opt: options.frontend_attrs.clone(),
            frontend_inputs: options.frontend_inputs.clone(),
            allow_result_return: true,
            allow_result_array_ref: true,
            ..gateway::SolveRequest::default()
        };
        let session = random_id();
        let Prepared { request, attachments, shared_key, .. } = options.prepare(&session)?;
        let head = SessionHead { id: session, shared_key };
        let reference = request.r#ref.clone();
        let asking = async {
            // A question without an answer ends the build with the frontend's own error, which is told there.
            let (_, answer) =
                tokio::try_join!(self.build(request, progress), self.drive(&reference, question))?;
            answer.map_err(|status| failure(&status))
        };
        self.in_session(&head, &attachments, asking).await
    }

    /// Runs a build's calls while its session is served.
    async fn in_session<T>(
        &self,
        head: &SessionHead,
        attachments: &Attachments,
        calls: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let ending = CancellationToken::new();
        let mut serving = pin!(attach::run(self.channel(), head, attachments, ending.clone()));
        let mut calls = pin!(calls);
        let answer = tokio::select! {
            biased;
            answer = &mut calls => answer?,
            served = &mut serving => {
                // A daemon that ends the session has its reasons, and tells them with the build.
                match served {
                    Ok(()) => calls.await?,
                    Err(error) => match tokio::time::timeout(LAST_WORD, &mut calls).await {
                        Ok(answer) => answer?,
                        Err(_) => return Err(Error::Session(error)),
                    },
                }
            }
        };
        ending.cancel();
        Ok(answer)
    }

    /// Puts a question to a frontend within a build that has none of its own, and ends that build.
    async fn drive(
        &self,
        reference: &str,
        question: gateway::SolveRequest,
    ) -> Result<std::result::Result<BTreeMap<String, Vec<u8>>, Status>> {
        let mut gateway = LlbBridgeClient::new(self.channel())
            .max_decoding_message_size(MAX_ANSWER)
            .max_encoding_message_size(MAX_REQUEST);
        let solved = gateway.solve(of_build(reference, question)?).await;
        let mut last = ReturnRequest::default();
        let answer = match solved {
            Ok(solved) => {
                let nothing = result::Result::Ref(gateway::Ref::default());
                last.result = Some(gateway::Result { result: Some(nothing), ..gateway::Result::default() });
                Ok(solved.into_inner().result.unwrap_or_default().metadata)
            }
            Err(status) => {
                last.error = Some(rpc_status(&status));
                Err(status)
            }
        };
        gateway.r#return(of_build(reference, last)?).await.map_err(|status| failure(&status))?;
        Ok(answer)
    }

    /// Solves and follows the progress, which may go on for a while after the answer.
    async fn build(
        &self,
        request: SolveRequest,
        progress: mpsc::Sender<StatusResponse>,
    ) -> Result<BTreeMap<String, String>> {
        let reference = request.r#ref.clone();
        let (alive, mut heard) = mpsc::channel::<()>(1);
        let mut control = self.control();
        let mut following = pin!(self.follow(&reference, progress, alive));
        let mut solving = pin!(async { control.solve(request).await });
        let mut followed = false;
        let answer = loop {
            tokio::select! {
                answer = &mut solving => break answer,
                outcome = &mut following, if !followed => {
                    followed = true;
                    if let Err(error) = outcome {
                        tracing::debug!(%error, "progress ended");
                    }
                }
                Some(()) = heard.recv() => {}
            }
        };
        while !followed {
            tokio::select! {
                // Its error says less than the answer does.
                _outcome = &mut following => followed = true,
                Some(()) = heard.recv() => {}
                () = tokio::time::sleep(SILENCE) => followed = true,
            }
        }
        match answer {
            Ok(answer) => Ok(answer.into_inner().exporter_response),
            Err(status) => Err(failure(&status)),
        }
    }

    async fn follow(
        &self,
        reference: &str,
        progress: mpsc::Sender<StatusResponse>,
        alive: mpsc::Sender<()>,
    ) -> Result<()> {
        use futures::StreamExt as _;
        let mut updates = self.status(reference).await?;
        while let Some(update) = updates.next().await {
            // Whoever does not want progress any more still wants the build.
            let _shown = progress.send(update?).await;
            // Full means that there is news anyway.
            let _heard = alive.try_send(());
        }
        Ok(())
    }
}

fn failure(status: &Status) -> Error {
    Error::Solve(Box::new(SolveError::new(status)))
}

/// A call that belongs to a build.
fn of_build<T>(reference: &str, message: T) -> Result<Request<T>> {
    let id = reference
        .parse()
        .map_err(|_| Error::Options { reason: format!("`{reference}` cannot be the name of a build") })?;
    let mut request = message.into_request();
    request.metadata_mut().insert(BUILD_ID, id);
    Ok(request)
}

/// An error as messages carry it, with its details.
fn rpc_status(status: &Status) -> rpc::Status {
    let details = details(status).iter().map(Detail::to_any).collect();
    rpc::Status { code: status.code().into(), message: status.message().to_owned(), details }
}

fn descriptor(text: &str) -> Result<serde_json::Value> {
    serde_json::from_str(text)
        .map_err(|error| Error::Options { reason: format!("the daemon returned no descriptor: {error}") })
}

/// The tag of an image name: what follows the last colon, unless that belongs to a port.
fn tag(name: Option<&str>) -> Option<&str> {
    let name = name?.split(',').next()?;
    let name = name.split('@').next().unwrap_or(name);
    Some(match name.rsplit_once(':') {
        Some((_, tag)) if !tag.contains('/') => tag,
        _ => "latest",
    })
}
