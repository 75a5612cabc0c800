use std::collections::BTreeMap;
use std::pin::pin;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kiln_api::control::{SolveRequest, StatusResponse};
use kiln_session::attach::{self, SessionHead};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::client::Client;
use crate::error::{Error, Result};
use crate::layout;
use crate::request::{CacheLayout, Prepared, SolveOptions, random_id};
use crate::solve_error::SolveError;

/// How long progress may be silent after the build has ended.
const SILENCE: Duration = Duration::from_secs(5);
/// How long the answer to a build may take once its session has failed.
const LAST_WORD: Duration = Duration::from_secs(5);

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
        let ending = CancellationToken::new();
        let mut serving = pin!(attach::run(self.channel(), &head, &attachments, ending.clone()));
        let mut building = pin!(self.build(request, progress));
        let answer = tokio::select! {
            biased;
            answer = &mut building => answer?,
            served = &mut serving => {
                // A daemon that ends the session has its reasons, and tells them with the build.
                match served {
                    Ok(()) => building.await?,
                    Err(error) => match tokio::time::timeout(LAST_WORD, &mut building).await {
                        Ok(answer) => answer?,
                        Err(_) => return Err(Error::Session(error)),
                    },
                }
            }
        };
        ending.cancel();
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
