//! `debug monitor`.

use std::collections::BTreeMap;

use kiln_cli::{Error, Result, rpc_text};
use kiln_client::api::control::{
    BuildHistoryEvent, BuildHistoryRecord, BuildHistoryRequest, BuildResultInfo, Descriptor,
};
use tokio_stream::StreamExt as _;

use crate::cache::print;
use crate::connection::Connection;
use crate::flags::Parsed;

/// Prints what happens to builds until it is interrupted or the daemon ends.
pub(crate) async fn run(connection: &Connection<'_>, parsed: &Parsed) -> Result<()> {
    let request = BuildHistoryRequest {
        active_only: !parsed.is("completed"),
        r#ref: parsed.text("ref").unwrap_or_default().to_owned(),
        ..BuildHistoryRequest::default()
    };
    let failed = |error: kiln_client::Error| Error::option(rpc_text(&error));
    let client = connection.open("").await?;
    let mut events = client.build_history(request).await.map_err(failed)?;
    while let Some(event) = events.next().await {
        print(&text(&event.map_err(failed)?))?;
    }
    Ok(())
}

fn text(event: &BuildHistoryEvent) -> String {
    let nothing = BuildHistoryRecord::default();
    let record = event.record.as_ref().unwrap_or(&nothing);
    let mut lines = vec![format!("event: {} ref:{}", event.r#type().as_str_name(), record.r#ref)];
    if record.num_total_steps > 0 {
        lines.push(format!("  cache: {}/{}", record.num_cached_steps, record.num_total_steps));
    }
    if record.num_warnings > 0 {
        lines.push(format!("  warnings: {}", record.num_warnings));
    }
    lines.extend(record.logs.as_ref().map(|logs| format!("  logs: {}", descriptor(logs))));
    lines.extend(record.trace.as_ref().map(|trace| format!("  trace: {}", descriptor(trace))));
    if let Some(result) = &record.result {
        outcome(&mut lines, "", result);
    }
    for (platform, result) in &record.results {
        outcome(&mut lines, &format!("[{platform}] "), result);
    }
    lines.push(String::new());
    lines.join("\n")
}

fn outcome(lines: &mut Vec<String>, platform: &str, result: &BuildResultInfo) {
    let made: BTreeMap<_, _> = result.results.iter().collect();
    for found in made.into_values() {
        lines.push(format!("  {platform}descriptor: {}", descriptor(found)));
    }
    for found in &result.attestations {
        lines.push(format!("  {platform}attestation: {}", descriptor(found)));
    }
}

/// As protocol buffers are written as text.
fn descriptor(found: &Descriptor) -> String {
    let Descriptor { media_type, digest, size, annotations } = found;
    let mut text = format!("media_type:{media_type:?} digest:{digest:?} size:{size}");
    for (key, value) in annotations {
        text.push_str(&format!(" annotations:{{key:{key:?} value:{value:?}}}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_shown_with_what_they_have() {
        let blob = |media_type: &str| Descriptor {
            media_type: media_type.into(),
            digest: "sha256:ab".into(),
            size: 7,
            annotations: BTreeMap::new(),
        };
        let record = BuildHistoryRecord {
            r#ref: "abc".into(),
            num_cached_steps: 1,
            num_total_steps: 3,
            num_warnings: 2,
            logs: Some(blob("log")),
            result: Some(BuildResultInfo {
                results: BTreeMap::from([(0, blob("image"))]),
                ..BuildResultInfo::default()
            }),
            ..BuildHistoryRecord::default()
        };
        let event = BuildHistoryEvent { r#type: 1, record: Some(record) };
        let want = "event: COMPLETE ref:abc\n  cache: 1/3\n  warnings: 2\n  \
                    logs: media_type:\"log\" digest:\"sha256:ab\" size:7\n  \
                    descriptor: media_type:\"image\" digest:\"sha256:ab\" size:7\n";
        assert_eq!(text(&event), want);
        let nothing = BuildHistoryEvent { r#type: 2, record: None };
        assert_eq!(text(&nothing), "event: DELETED ref:\n");
    }
}
