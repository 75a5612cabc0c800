//! Following a build, to put it on record when it has ended.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::{BufMut as _, Bytes, BytesMut};
use kiln_api::control::{BuildHistoryRecord, BuildResultInfo, Descriptor};
use kiln_cache::BuildRecord;
use kiln_content::{BlobWriter, ContentStore, ContentStoreExt as _};
use kiln_digest::Digest;
use kiln_engine::{BuildResponse, Error};
use kiln_solver::{ProgressEvent, ProgressStream, VertexDigest};
use prost::Message as _;
use tokio::sync::oneshot;

use crate::convert::timestamp;
use crate::history::{History, LOG_TYPE};
use crate::{errors, status};

const ERROR_TYPE: &str = "application/vnd.googeapis.google.rpc.status+proto";
/// Time between looks at the progress of a build.
const PAUSE: Duration = Duration::from_millis(100);
/// The longest log that is kept; what comes after is left out.
const MAX_LOG: u64 = 256 << 20;
/// How long a build that has ended may take to say its last.
const LAST_WORDS: Duration = Duration::from_secs(30);

/// How a build ended.
pub(super) enum Outcome {
    Done(Box<BuildResponse>),
    Failed(tonic::Status),
}

/// A build whose record is being written. Dropped without [`Recording::ended`], it was cancelled.
pub(crate) struct Recording {
    pub(super) history: History,
    pub(super) id: String,
    pub(super) outcome: Option<oneshot::Sender<Outcome>>,
}

impl Recording {
    /// Says how the build ended. Its record is there for whoever asks from now on.
    pub(crate) fn ended(mut self, outcome: &Result<BuildResponse, Error>) {
        let outcome = match outcome {
            Ok(response) => Outcome::Done(Box::new(response.clone())),
            Err(error) => Outcome::Failed(errors::status(error)),
        };
        if let Some(tell) = self.outcome.take() {
            tell.send(outcome).ok();
        }
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        self.history.has_ended(&self.id);
    }
}

/// Follows a build to its end, then saves its record.
pub(super) async fn run(
    history: History,
    mut record: BuildHistoryRecord,
    mut outcome: oneshot::Receiver<Outcome>,
) {
    let content = Arc::clone(&history.shared.engine.worker().content);
    let mut log = Log::new(Arc::clone(&content));
    let mut steps = Steps::default();
    let progress = history.shared.engine.progress(&record.r#ref);
    let (mut early, mut stream) = (None, None);
    tokio::select! {
        // A build that is over may have its progress all the same; one that was refused has none.
        biased;
        events = progress => stream = Some(events),
        ended = &mut outcome => early = Some(ended),
    }
    if let Some(events) = &mut stream {
        tokio::select! {
            () = follow(&history, &mut record, events, &mut log, &mut steps) => {}
            () = async {
                if early.is_none() {
                    early = Some((&mut outcome).await);
                }
                tokio::time::sleep(LAST_WORDS).await;
            } => tracing::warn!(build = %record.r#ref, "the build has ended and its progress has not"),
        }
    }
    let outcome = match early {
        Some(ended) => ended,
        None => outcome.await,
    };
    let completed_at = SystemTime::now();
    record.completed_at = Some(timestamp(completed_at));
    record.generation += 1;
    let mut blobs = Vec::new();
    if let Some(descriptor) = log.close().await {
        blobs.extend(descriptor.digest.parse::<Digest>());
        record.logs = Some(descriptor);
    }
    match outcome {
        Ok(Outcome::Done(response)) => {
            record.exporter_response = texts(&response.metadata);
            record.result = result(&response);
            for found in response.results.values() {
                if content.contains(&found.digest).await.unwrap_or(false) {
                    blobs.push(found.digest);
                }
            }
        }
        Ok(Outcome::Failed(failed)) => blobs.extend(failure(&mut record, &failed, &*content).await),
        // Its client has gone.
        Err(_) => {
            let cancelled = tonic::Status::cancelled("context canceled");
            blobs.extend(failure(&mut record, &cancelled, &*content).await);
        }
    }
    let created_at = record.created_at.and_then(|time| SystemTime::try_from(time).ok());
    let build = BuildRecord {
        id: record.r#ref.clone(),
        created_at: created_at.unwrap_or(completed_at),
        completed_at,
        generation: record.generation.unsigned_abs(),
        pinned: false,
        body: record.encode_to_vec(),
    };
    // A build is not failed by what cannot be told of it afterwards, on a full disk for example.
    if let Err(error) = history.shared.cache().save_build(build, blobs).await {
        tracing::warn!(build = %record.r#ref, %error, "the build is not put on record");
    }
    history.saved(record);
}

async fn follow(
    history: &History,
    record: &mut BuildHistoryRecord,
    events: &mut ProgressStream,
    log: &mut Log,
    steps: &mut Steps,
) {
    while let Some(batch) = events.next().await {
        if steps.count(&batch) {
            steps.tell(record);
            history.went_on(record);
        }
        for response in status::responses(&batch) {
            log.append(&response).await;
        }
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            () = events.closed() => {}
        }
    }
}

/// What is counted of a build's steps.
#[derive(Debug, Default)]
struct Steps {
    /// Whether each has completed, and was cached.
    seen: HashMap<VertexDigest, (bool, bool)>,
    completed: i32,
    cached: i32,
    warnings: i32,
}

impl Steps {
    /// Returns whether there is anything new.
    fn count(&mut self, batch: &[Arc<ProgressEvent>]) -> bool {
        let mut new = false;
        for event in batch {
            match &**event {
                ProgressEvent::Vertex(event) => {
                    let now = (event.completed.is_some(), event.cached);
                    let before = self.seen.insert(event.digest, now);
                    let (completed, cached) = before.unwrap_or_default();
                    self.completed += i32::from(now.0) - i32::from(completed);
                    self.cached += i32::from(now.1) - i32::from(cached);
                    new |= before != Some(now);
                }
                ProgressEvent::Warning(_) => {
                    self.warnings += 1;
                    new = true;
                }
                _ => {}
            }
        }
        new
    }

    fn tell(&self, record: &mut BuildHistoryRecord) {
        record.num_total_steps = i32::try_from(self.seen.len()).unwrap_or(i32::MAX);
        record.num_completed_steps = self.completed;
        record.num_cached_steps = self.cached;
        record.num_warnings = self.warnings;
    }
}

/// The log of a build: what its status stream had, each message behind its length.
struct Log {
    content: Arc<dyn ContentStore>,
    /// None once it could not be written.
    writer: Option<Box<dyn BlobWriter>>,
    pending: BytesMut,
    written: u64,
    failed: bool,
}

/// Bytes that are written at once.
const WRITE: usize = 256 << 10;

impl Log {
    fn new(content: Arc<dyn ContentStore>) -> Self {
        Self { content, writer: None, pending: BytesMut::new(), written: 0, failed: false }
    }

    async fn append(&mut self, response: &kiln_api::control::StatusResponse) {
        let length = response.encoded_len();
        let total = self.written.saturating_add(length as u64 + 4);
        let (Ok(prefix), false) = (u32::try_from(length), self.failed || total > MAX_LOG) else { return };
        self.written = total;
        self.pending.reserve(length + 4);
        self.pending.put_u32_le(prefix);
        // There is room for it.
        response.encode(&mut self.pending).ok();
        if self.pending.len() >= WRITE {
            self.flush().await;
        }
    }

    async fn flush(&mut self) {
        let pending = self.pending.split().freeze();
        let written = async {
            let writer = match &mut self.writer {
                Some(writer) => writer,
                none => none.insert(self.content.writer(None).await?),
            };
            writer.write(pending).await
        };
        if let Err(error) = written.await {
            tracing::warn!(%error, "the log of a build cannot be kept");
            self.failed = true;
        }
    }

    async fn close(mut self) -> Option<Descriptor> {
        self.flush().await;
        let writer = self.writer.take().filter(|_| !self.failed)?;
        match writer.commit(None).await {
            Ok(digest) => Some(descriptor(LOG_TYPE, &digest, self.written)),
            Err(error) => {
                tracing::warn!(%error, "the log of a build cannot be kept");
                None
            }
        }
    }
}

fn descriptor(media_type: &str, digest: &Digest, size: u64) -> Descriptor {
    Descriptor {
        media_type: media_type.to_owned(),
        digest: digest.to_string(),
        size: i64::try_from(size).unwrap_or(i64::MAX),
        ..Descriptor::default()
    }
}

/// Notes an error: in short in the record, with all details beside it.
async fn failure(
    record: &mut BuildHistoryRecord,
    failed: &tonic::Status,
    content: &dyn ContentStore,
) -> Option<Digest> {
    let code = failed.code() as i32;
    let message = failed.message().to_owned();
    record.error = Some(kiln_api::rpc::Status { code, message: message.clone(), details: Vec::new() });
    let whole = kiln_api::rpc::Status::decode(failed.details()).ok().filter(|whole| whole.code == code);
    let whole = whole.unwrap_or(kiln_api::rpc::Status { code, message, details: Vec::new() });
    let bytes = Bytes::from(whole.encode_to_vec());
    let size = bytes.len() as u64;
    let digest = content.put(bytes).await.ok()?;
    record.external_error = Some(descriptor(ERROR_TYPE, &digest, size));
    Some(digest)
}

/// What the frontend said beside its result, as far as it is text.
fn texts(
    metadata: &std::collections::BTreeMap<String, Vec<u8>>,
) -> std::collections::BTreeMap<String, String> {
    let text =
        |(key, value): (&String, &Vec<u8>)| Some((key.clone(), std::str::from_utf8(value).ok()?.to_owned()));
    metadata.iter().filter_map(text).collect()
}

/// What the exporters made, by their places in the request.
fn result(response: &BuildResponse) -> Option<BuildResultInfo> {
    let wire = |found: &kiln_content::Descriptor| Descriptor {
        annotations: found.annotations.clone(),
        ..descriptor(&found.media_type, &found.digest, found.size)
    };
    let results = response.results.iter();
    let results = results.map(|(place, found)| (i64::try_from(*place).unwrap_or(i64::MAX), wire(found)));
    let info = BuildResultInfo {
        result_deprecated: response.results.values().next().map(wire),
        attestations: Vec::new(),
        results: results.collect(),
    };
    info.result_deprecated.is_some().then_some(info)
}
