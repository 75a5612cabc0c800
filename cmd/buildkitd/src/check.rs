//! `--fsck`: the catalogue and the stores of a daemon that does not run.

use anyhow::{Result, bail};
use kiln_cache::{CheckOptions, Finding, Gravity};
use tokio::sync::mpsc;

use crate::compose::{lock, open_cache};
use crate::settings::Settings;

/// Findings that wait to be printed.
const FINDINGS: usize = 16;

/// Compares, reading every blob, and prints; an error if more than litter is left.
pub(crate) async fn run(settings: &Settings, repair: bool) -> Result<()> {
    let _lock = lock(&settings.root)?;
    let cache = open_cache(settings, &settings.root.join("kiln")).await?.cache;
    let (tell, told) = mpsc::channel(FINDINGS);
    let (summary, left) =
        tokio::join!(cache.check(CheckOptions { digests: true, repair }, tell), print(told));
    let summary = summary?;
    cache.close().await?;
    line(&format!(
        "{} records, {} snapshots, {} blobs: {} findings",
        summary.records, summary.snapshots, summary.blobs, summary.findings
    ));
    match left {
        0 => Ok(()),
        left => bail!("{left} findings are not mended: run again with --fsck=repair"),
    }
}

async fn print(mut told: mpsc::Receiver<Finding>) -> u64 {
    let mut left = 0;
    while let Some(Finding { fault, subject, detail, mended }) = told.recv().await {
        let gravity = fault.gravity();
        left += u64::from(!mended && gravity != Gravity::Litter);
        let mended = if mended { ", mended" } else { "" };
        line(format!("{fault} ({}{mended}): {subject} {detail}", gravity.as_str()).trim_end());
    }
    left
}

#[expect(clippy::print_stdout, reason = "this is the answer of the program")]
fn line(text: &str) {
    println!("{text}");
}
