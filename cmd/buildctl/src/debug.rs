//! `debug` and `prune-histories`

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _, stdin, stdout};
use std::path::Path;

use kiln_cli::{Duration, Error, Format, Result, Table, rpc_text, short_bytes, timestamp, timestamp_text};
use kiln_client::Client;
use kiln_client::api::content::ReadContentRequest;
use kiln_client::api::content::content_client::ContentClient;
use kiln_client::api::control::{BuildHistoryEvent, BuildHistoryRequest, UpdateBuildHistoryRequest};
use kiln_client::api::kiln::Losses;
use kiln_client::api::types::{BuildkitVersion, WorkerRecord};
use kiln_progress::{Display, Mode};
use serde::Serialize;
use tokio_stream::StreamExt as _;
use tokio_util::sync::CancellationToken;

use crate::build::parse_definition;
use crate::cache::print;
use crate::connection::Connection;
use crate::flags::Parsed;

/// How long a definition may be, in bytes.
const MAX_DEFINITION: u64 = 64 << 20;
/// What is put before an error of the daemon.
const LIST_WORKERS: &str = "failed to list workers: ";
const INFO: &str = "failed to call info: ";

/// Prints a graph.
pub(crate) fn dump_llb(parsed: &Parsed) -> Result<()> {
    let mut content = Vec::new();
    let file = parsed.arguments.first().map(String::as_str).unwrap_or_default();
    let read = match file {
        "" | "-" => stdin().take(MAX_DEFINITION).read_to_end(&mut content),
        file => std::fs::File::open(file)
            .map_err(|error| Error::io("open", Path::new(file), &error))?
            .take(MAX_DEFINITION)
            .read_to_end(&mut content),
    };
    read.map_err(|error| Error::option(kiln_cli::io_text(&error)))?;
    let definition = parse_definition(&content)?;
    let rendered = if parsed.is("dot") {
        kiln_llb::render::dot(&definition)
    } else {
        kiln_llb::render::json_lines(&definition)
    };
    print(&rendered.map_err(|error| Error::option(error.to_string()))?)
}

/// Lists workers.
pub(crate) async fn workers(connection: &Connection<'_>, parsed: &Parsed) -> Result<()> {
    let format = Format::parse(parsed.text("format").unwrap_or_default())?;
    let client = connection.open(LIST_WORKERS).await?;
    let workers = client
        .list_workers(parsed.list("filter").to_vec())
        .await
        .map_err(|source| Error::Client { context: LIST_WORKERS, source })?;
    if let Some(format) = format {
        let workers: Vec<_> = workers.iter().map(WorkerJson::from).collect();
        return print(&format.line(&workers)?);
    }
    let mut table = Table::new();
    if parsed.is("verbose") {
        workers.iter().for_each(|worker| verbose_worker(&mut table, worker));
    } else {
        table.row(["ID", "PLATFORMS"]);
        for worker in &workers {
            table.row([worker.id.clone(), platforms(worker)]);
        }
    }
    print(&table.render())
}

fn platforms(worker: &WorkerRecord) -> String {
    let platforms = worker.platforms.iter().map(|p| {
        let parts = [&p.os, &p.architecture, &p.variant];
        parts.into_iter().filter(|part| !part.is_empty()).map(String::as_str).collect::<Vec<_>>().join("/")
    });
    platforms.collect::<Vec<_>>().join(",")
}

fn version_text(version: &BuildkitVersion) -> String {
    format!("{} {} {}", version.package, version.version, version.revision)
}

fn verbose_worker(table: &mut Table, worker: &WorkerRecord) {
    table.row(["ID:", &worker.id]);
    table.row(["Platforms:", &platforms(worker)]);
    if let Some(version) = &worker.buildkit_version {
        table.row(["BuildKit:", &version_text(version)]);
        if !version.dockerfile_version.is_empty() {
            table.row(["Dockerfile:", &version.dockerfile_version]);
        }
    }
    table.row(["Labels:"]);
    for (key, value) in worker.labels.iter().collect::<BTreeMap<_, _>>() {
        table.row(["", &format!("{key}:"), value]);
    }
    if !worker.cdi_devices.is_empty() {
        table.row(["Devices:"]);
    }
    for device in &worker.cdi_devices {
        table.row(["", "Name:", &device.name]);
        if device.on_demand {
            table.row(["", "OnDemand:", "true"]);
        } else {
            table.row(["", "AutoAllow:", &device.auto_allow.to_string()]);
        }
        for (key, value) in device.annotations.iter().collect::<BTreeMap<_, _>>() {
            table.row(["", "Annotations:", &format!("{key}={value}")]);
        }
    }
    for (number, policy) in worker.gc_policy.iter().enumerate() {
        table.row([format!("GC Policy rule#{number}:")]);
        table.row(["", "All:", &policy.all.to_string()]);
        if !policy.filters.is_empty() {
            table.row(["", "Filters:", &policy.filters.join(" ")]);
        }
        if policy.keep_duration > 0 {
            table.row(["", "Keep duration:", &Duration(policy.keep_duration).to_string()]);
        }
        for (name, size) in [
            ("Reserved space:", policy.reserved_space),
            ("Minimum free space:", policy.min_free_space),
            ("Maximum used space:", policy.max_used_space),
        ] {
            if size > 0 {
                table.row(["", name, &short_bytes(size)]);
            }
        }
    }
    table.row([""]);
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WorkerJson<'a> {
    id: &'a str,
    labels: BTreeMap<&'a String, &'a String>,
    platforms: Vec<PlatformJson<'a>>,
    gc_policy: Vec<PolicyJson<'a>>,
    buildkit_version: VersionJson<'a>,
    cdi_devices: Option<Vec<DeviceJson<'a>>>,
}

#[derive(Serialize)]
struct PlatformJson<'a> {
    architecture: &'a str,
    os: &'a str,
    #[serde(rename = "os.version", skip_serializing_if = "str::is_empty")]
    os_version: &'a str,
    #[serde(rename = "os.features", skip_serializing_if = "<[String]>::is_empty")]
    os_features: &'a [String],
    #[serde(skip_serializing_if = "str::is_empty")]
    variant: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PolicyJson<'a> {
    all: bool,
    filter: Option<&'a [String]>,
    keep_duration: i64,
    reserved_space: i64,
    max_used_space: i64,
    min_free_space: i64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct VersionJson<'a> {
    package: &'a str,
    version: &'a str,
    revision: &'a str,
    dockerfile_version: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DeviceJson<'a> {
    name: &'a str,
    auto_allow: bool,
    annotations: BTreeMap<&'a String, &'a String>,
    on_demand: bool,
}

impl<'a> From<&'a WorkerRecord> for WorkerJson<'a> {
    fn from(worker: &'a WorkerRecord) -> Self {
        let devices = worker.cdi_devices.iter().map(|device| DeviceJson {
            name: &device.name,
            auto_allow: device.auto_allow,
            annotations: device.annotations.iter().collect(),
            on_demand: device.on_demand,
        });
        let policies = worker.gc_policy.iter().map(|policy| PolicyJson {
            all: policy.all,
            filter: (!policy.filters.is_empty()).then_some(&policy.filters),
            keep_duration: policy.keep_duration,
            reserved_space: policy.reserved_space,
            max_used_space: policy.max_used_space,
            min_free_space: policy.min_free_space,
        });
        let platforms = worker.platforms.iter().map(|platform| PlatformJson {
            architecture: &platform.architecture,
            os: &platform.os,
            os_version: &platform.os_version,
            os_features: &platform.os_features,
            variant: &platform.variant,
        });
        Self {
            id: &worker.id,
            labels: worker.labels.iter().collect(),
            platforms: platforms.collect(),
            gc_policy: policies.collect(),
            buildkit_version: VersionJson::of(worker.buildkit_version.as_ref()),
            cdi_devices: (!worker.cdi_devices.is_empty()).then(|| devices.collect()),
        }
    }
}

impl<'a> VersionJson<'a> {
    fn of(version: Option<&'a BuildkitVersion>) -> Self {
        let text = |field: fn(&'a BuildkitVersion) -> &'a String| version.map_or("", |v| field(v).as_str());
        Self {
            package: text(|v| &v.package),
            version: text(|v| &v.version),
            revision: text(|v| &v.revision),
            dockerfile_version: text(|v| &v.dockerfile_version),
        }
    }
}

/// Prints the daemon's version.
pub(crate) async fn info(connection: &Connection<'_>, parsed: &Parsed) -> Result<()> {
    let format = Format::parse(parsed.text("format").unwrap_or_default())?;
    let client = connection.open(INFO).await?;
    let info = client.all_info().await.map_err(|source| Error::Client { context: INFO, source })?;
    let version = info.buildkit_version.unwrap_or_default();
    if let Some(format) = format {
        let version = VersionJson::of(Some(&version));
        return print(&format.line(&BTreeMap::from([("buildkitVersion", version)]))?);
    }
    let mut out = format!("BuildKit:   {}\n", version_text(&version));
    if !version.dockerfile_version.is_empty() {
        out.push_str(&format!("Dockerfile: {}\n", version.dockerfile_version));
    }
    if let Some(losses) = info.losses.filter(|losses| *losses != Losses::default()) {
        let Losses { snapshots, blobs, records } = losses;
        out.push_str(&format!("Lost:       {snapshots} snapshots, {blobs} blobs, {records} records\n"));
    }
    print(&out)
}

fn reference(parsed: &Parsed) -> Result<&str> {
    let reference = parsed.arguments.first().filter(|it| !it.is_empty());
    reference.map(String::as_str).ok_or_else(|| Error::option("build ref must be specified"))
}

/// Shows the progress of a build again, on standard output.
pub(crate) async fn logs(
    connection: &Connection<'_>,
    parsed: &Parsed,
    stop: &CancellationToken,
) -> Result<()> {
    let reference = reference(parsed)?;
    if parsed.is("trace") {
        return Err(Error::option("--trace is not supported yet"));
    }
    let mode: Mode = parsed.text("progress").unwrap_or_default().parse().map_err(Error::option)?;
    let mode = if mode == Mode::Tty { Mode::Plain } else { mode };
    let client = connection.open("").await?;
    let display = Display::to(Box::new(stdout()), mode);
    kiln_cli::follow(&client, reference, display, stop).await.map_err(called)
}

/// Pins, unpins or deletes the record of a build.
pub(crate) async fn control(connection: &Connection<'_>, parsed: &Parsed) -> Result<()> {
    let reference = reference(parsed)?.to_owned();
    let (pin, unpin, delete) = (parsed.is("pin"), parsed.is("unpin"), parsed.is("delete"));
    if !pin && !unpin && !delete {
        return Err(Error::option("must specify one of --pin, --unpin, --delete"));
    }
    if pin && unpin {
        return Err(Error::option("cannot specify both --pin and --unpin"));
    }
    if delete && (pin || unpin) {
        return Err(Error::option("cannot specify --delete with --pin or --unpin"));
    }
    let client = connection.open("").await?;
    let request = UpdateBuildHistoryRequest { r#ref: reference, pinned: pin, delete, finalize: false };
    Ok(client.update_build_history(request).await?)
}

/// Writes a blob of the daemon to standard output.
pub(crate) async fn get(connection: &Connection<'_>, parsed: &Parsed) -> Result<()> {
    let digest = parsed.arguments.first().ok_or_else(|| Error::option("blob digest must be specified"))?;
    let client = connection.open("").await?;
    let request = ReadContentRequest { digest: digest.clone(), ..ReadContentRequest::default() };
    let failed = |status: tonic::Status| Error::from(kiln_client::Error::from(status));
    let answer = ContentClient::new(client.channel()).read(request).await.map_err(failed)?;
    let mut pieces = answer.into_inner();
    while let Some(piece) = pieces.message().await.map_err(failed)? {
        stdout().write_all(&piece.data).map_err(|error| Error::option(kiln_cli::io_text(&error)))?;
    }
    Ok(())
}

/// Lists builds.
pub(crate) async fn histories(connection: &Connection<'_>, parsed: &Parsed) -> Result<()> {
    no_format(parsed)?;
    let client = connection.open("").await?;
    let mut table = Table::new();
    table.row(["TYPE", "REF", "CREATED", "COMPLETED", "GENERATION", "PINNED"]);
    for event in ended(&client).await? {
        let pinned = event.record.as_ref().is_some_and(|record| record.pinned);
        let mut cells = cells(&event);
        cells.push(if pinned { "*" } else { "" }.to_owned());
        table.row(cells);
    }
    print(&table.render())
}

/// Removes the records of builds that are not pinned, and prints them.
pub(crate) async fn prune_histories(connection: &Connection<'_>, parsed: &Parsed) -> Result<()> {
    no_format(parsed)?;
    let client = connection.open("").await?;
    let mut table = Table::new();
    table.row(["TYPE", "REF", "CREATED", "COMPLETED", "GENERATION"]);
    let mut failed = Vec::new();
    for event in ended(&client).await? {
        let Some(record) = event.record.as_ref().filter(|record| !record.pinned) else { continue };
        let request = UpdateBuildHistoryRequest {
            r#ref: record.r#ref.clone(),
            delete: true,
            ..UpdateBuildHistoryRequest::default()
        };
        match client.update_build_history(request).await {
            Ok(()) => table.row(cells(&event)),
            Err(error) => failed.push(kiln_cli::describe(&error)),
        }
    }
    print(&table.render())?;
    if failed.is_empty() { Ok(()) } else { Err(Error::option(failed.join("\n"))) }
}

fn no_format(parsed: &Parsed) -> Result<()> {
    match parsed.text("format") {
        None | Some("") => Ok(()),
        Some(_) => Err(Error::option("--format is not supported yet for records of builds")),
    }
}

async fn ended(client: &Client) -> Result<Vec<BuildHistoryEvent>> {
    let request = BuildHistoryRequest { early_exit: true, ..BuildHistoryRequest::default() };
    let mut events = client.build_history(request).await?;
    let mut ended = Vec::new();
    while let Some(event) = events.next().await {
        ended.push(event.map_err(called)?);
    }
    Ok(ended)
}

fn cells(event: &BuildHistoryEvent) -> Vec<String> {
    let Some(record) = &event.record else { return vec![event.r#type().as_str_name().to_owned()] };
    let time = |time: Option<(i64, i32)>| {
        time.map(|(seconds, _)| timestamp_text(timestamp(seconds, 0))).unwrap_or_default()
    };
    vec![
        event.r#type().as_str_name().to_owned(),
        record.r#ref.clone(),
        time(record.created_at.as_ref().map(|t| (t.seconds, t.nanos))),
        time(record.completed_at.as_ref().map(|t| (t.seconds, t.nanos))),
        record.generation.to_string(),
    ]
}

fn called(error: kiln_client::Error) -> Error {
    Error::option(rpc_text(&error))
}
