//! `debug fsck`.

use kiln_cli::{Error, Format, Result, Table};
use kiln_client::api::kiln::{CheckRequest, Finding};
use serde::Serialize;
use tokio_stream::StreamExt as _;

use crate::cache::print;
use crate::connection::Connection;
use crate::flags::Parsed;

/// What is put before an error of the daemon.
const CHECK: &str = "failed to check the catalogue: ";

#[derive(Serialize)]
struct FindingJson<'a> {
    fault: &'a str,
    gravity: &'a str,
    subject: &'a str,
    detail: &'a str,
    mended: bool,
}

/// Compares the daemon's catalogue with its stores; an error if more than litter is left.
pub(crate) async fn run(connection: &Connection<'_>, parsed: &Parsed) -> Result<()> {
    let format = Format::parse(parsed.text("format").unwrap_or_default())?;
    let request = CheckRequest { repair: parsed.is("repair"), digests: parsed.is("digests") };
    let client = connection.open(CHECK).await?;
    let failed = |source| Error::Client { context: CHECK, source };
    let mut answers = client.check(request).await.map_err(failed)?;
    let (mut left, mut first) = (0_u64, true);
    while let Some(answer) = answers.next().await {
        let answer = answer.map_err(failed)?;
        if let Some(finding) = answer.finding {
            left += u64::from(!finding.mended && finding.gravity != "litter");
            match format {
                Some(format) => print(&format.line(&json(&finding))?)?,
                None => print(&row(&finding, first))?,
            }
            first = false;
        }
        if let Some(summary) = answer.summary.filter(|_| format.is_none()) {
            let (records, snapshots, blobs) = (summary.records, summary.snapshots, summary.blobs);
            let findings = summary.findings;
            print(&format!(
                "{records} records, {snapshots} snapshots, {blobs} blobs: {findings} findings\n"
            ))?;
        }
    }
    match left {
        0 => Ok(()),
        left => Err(Error::option(format!("{left} findings are not mended: run again with --repair"))),
    }
}

fn row(finding: &Finding, first: bool) -> String {
    let mut table = Table::new();
    if first {
        table.row(["FAULT                 ", "GRAVITY ", "MENDED", "SUBJECT"]);
    }
    let mended = if finding.mended { "true  " } else { "false " };
    let subject = format!("{} {}", finding.subject, finding.detail);
    table.row([
        format!("{:<22}", finding.fault),
        format!("{:<8}", finding.gravity),
        mended.to_owned(),
        subject.trim_end().to_owned(),
    ]);
    table.render()
}

fn json(finding: &Finding) -> FindingJson<'_> {
    FindingJson {
        fault: &finding.fault,
        gravity: &finding.gravity,
        subject: &finding.subject,
        detail: &finding.detail,
        mended: finding.mended,
    }
}
