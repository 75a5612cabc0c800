//! Steps for other platforms than the worker's.

use kiln_executor::{ProcessSpec, StepMount, emulation};
use kiln_llb::pb;
use kiln_solver::OpError;

use crate::error::ExecError;
use crate::worker::Worker;

/// How runtimes say that the kernel does not know a program's format.
const REFUSED: &str = "exec format error";

/// A platform that neither the machine nor its kernel's emulators run.
#[derive(Debug)]
pub(super) struct Foreign {
    platform: String,
    emulator: String,
}

/// Puts an emulator in front of a process that needs one. What is returned is a platform for which there is none: its
/// process is tried as it is, because the kernel may know better.
pub(super) async fn prepare(
    worker: &Worker,
    platform: Option<&pb::Platform>,
    process: &mut ProcessSpec,
    mounts: &mut Vec<StepMount>,
) -> Result<Option<Foreign>, ExecError> {
    let Some(platform) = platform else { return Ok(None) };
    let same = |known: &&pb::Platform| known.architecture == platform.architecture;
    let mut known = worker.platforms.iter().filter(same).peekable();
    if known.peek().is_some() {
        // Levels of a processor are no matter of emulation.
        let level = |platform: &pb::Platform| match platform.architecture.as_str() {
            "amd64" => platform.variant.trim_start_matches('v').parse().unwrap_or(1),
            _ => 0,
        };
        return match known.any(|known| level(known) >= level(platform)) {
            true => Ok(None),
            false => Err(ExecError::Platform {
                wanted: name(platform),
                supported: worker.platforms.iter().map(name).collect::<Vec<_>>().join(", "),
            }),
        };
    }
    let Some(emulator) = emulation::emulator_name(&platform.architecture) else { return Ok(None) };
    let architecture = platform.architecture.clone();
    let looking = tokio::task::spawn_blocking(move || emulation::emulator(&architecture));
    // Failed, it has ended in a panic, and has found nothing.
    match looking.await.unwrap_or_default() {
        Some(path) => {
            mounts.push(StepMount::host(emulation::EMULATOR, path, &["rbind", "ro", "nosuid", "nodev"]));
            process.args.insert(0, emulation::EMULATOR.to_owned());
            Ok(None)
        }
        None => {
            let platform = name(platform);
            tracing::warn!(platform, emulator, "no emulator for a step: it is tried as it is");
            Ok(Some(Foreign { platform, emulator }))
        }
    }
}

impl Foreign {
    /// An error of the executor; with what to do about it if it is the kernel that refused the program.
    pub(super) fn explain(&self, error: kiln_executor::Error) -> OpError {
        match &error {
            kiln_executor::Error::Start { message, .. } if message.contains(REFUSED) => {
                let (platform, emulator) = (self.platform.clone(), self.emulator.clone());
                OpError::failed(ExecError::Foreign { platform, emulator, source: Box::new(error) })
            }
            _ => OpError::failed(error),
        }
    }
}

fn name(platform: &pb::Platform) -> String {
    let parts = [&platform.os, &platform.architecture, &platform.variant];
    parts.into_iter().filter(|part| !part.is_empty()).cloned().collect::<Vec<_>>().join("/")
}
