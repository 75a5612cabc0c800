//! The history of builds: those that run, and those on record.
//!
//! 1. A build that was asked for by Solve is on record once it has ended, however it did. It is in the catalogue, its
//!    log and its error among the blobs.
//! 2. Who asks after a build has ended finds it on record: records that are being written are waited for.
//! 3. No build waits for its record, and none fails because of it.

mod filter;
mod recorder;
mod replay;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use kiln_api::control::{
    BuildHistoryEvent, BuildHistoryEventType, BuildHistoryRecord, BuildHistoryRequest, Exporter,
    UpdateBuildHistoryRequest,
};
use kiln_cache::{BuildRecord, BuildRetention, CacheManager};
use kiln_engine::{BuildRequest, Engine};
use prost::Message as _;
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;

use crate::convert::timestamp;
use crate::history::filter::Filters;
pub(crate) use crate::history::recorder::Recording;
use crate::service::internal;

const LOG_TYPE: &str = "application/vnd.buildkit.status.v0";
/// Events that a listener may be behind; one that is slower is told so, and has to listen again.
const BEHIND: usize = 1024;
/// Events on their way to a client.
const ON_THE_WAY: usize = 16;
/// How long a record may take to be written before those who ask do without it.
const WRITING: Duration = Duration::from_secs(60);

/// The history of one daemon. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct History {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    engine: Engine,
    retention: BuildRetention,
    tasks: TaskTracker,
    state: Mutex<State>,
    events: broadcast::Sender<Arc<BuildHistoryEvent>>,
    /// Nobody listens any more.
    closing: CancellationToken,
}

#[derive(Debug, Default)]
struct State {
    running: BTreeMap<String, Running>,
    /// How many listen to this one build.
    listeners: HashMap<String, usize>,
    /// To be removed when nobody listens to them any more.
    removed: HashSet<String>,
}

/// A build that runs, or whose record is being written.
#[derive(Debug)]
struct Running {
    record: BuildHistoryRecord,
    ended: bool,
    saved: CancellationToken,
}

impl Shared {
    fn cache(&self) -> &CacheManager {
        &self.engine.worker().cache
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, kind: BuildHistoryEventType, record: BuildHistoryRecord) {
        // Without listeners nobody is told.
        self.events.send(Arc::new(event(kind, record))).ok();
    }
}

impl History {
    pub(crate) fn new(engine: Engine, retention: BuildRetention, tasks: TaskTracker) -> Self {
        let shared = Shared {
            engine,
            retention,
            tasks,
            state: Mutex::default(),
            events: broadcast::Sender::new(BEHIND),
            closing: CancellationToken::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Begins the record of a build that is about to run. `None`: one with its id runs already.
    pub(crate) fn begin(&self, request: &BuildRequest) -> Option<Recording> {
        let exporters = request.exporters.iter();
        let record = BuildHistoryRecord {
            r#ref: request.id.clone(),
            frontend: request.frontend.clone(),
            frontend_attrs: request.attrs.clone(),
            exporters: exporters
                .map(|e| Exporter { r#type: e.kind.clone(), attrs: e.attrs.clone() })
                .collect(),
            created_at: Some(timestamp(SystemTime::now())),
            ..BuildHistoryRecord::default()
        };
        let id = request.id.clone();
        {
            let mut state = self.shared.state();
            if state.running.contains_key(&id) {
                return None;
            }
            let saved = CancellationToken::new();
            state.running.insert(id.clone(), Running { record: record.clone(), ended: false, saved });
        }
        self.shared.tell(BuildHistoryEventType::Started, record.clone());
        let (outcome, ended) = oneshot::channel();
        self.shared.tasks.spawn(recorder::run(self.clone(), record, ended));
        Some(Recording { history: self.clone(), id, outcome: Some(outcome) })
    }

    /// Notes that a build has ended: from now on its record is waited for.
    fn has_ended(&self, id: &str) {
        if let Some(running) = self.shared.state().running.get_mut(id) {
            running.ended = true;
        }
    }

    /// Tells of a running build what has changed.
    fn went_on(&self, record: &BuildHistoryRecord) {
        if let Some(running) = self.shared.state().running.get_mut(&record.r#ref) {
            running.record = record.clone();
        }
        self.shared.tell(BuildHistoryEventType::Started, record.clone());
    }

    /// A build's record has been written.
    fn saved(&self, record: BuildHistoryRecord) {
        let running = self.shared.state().running.remove(&record.r#ref);
        self.shared.tell(BuildHistoryEventType::Complete, record);
        if let Some(running) = running {
            running.saved.cancel();
        }
    }

    /// Waits for the records of builds that have ended.
    async fn settle(&self) {
        let writing: Vec<CancellationToken> = {
            let state = self.shared.state();
            state.running.values().filter(|running| running.ended).map(|r| r.saved.clone()).collect()
        };
        let all = async {
            for saved in writing {
                saved.cancelled().await;
            }
        };
        if tokio::time::timeout(WRITING, all).await.is_err() {
            tracing::warn!("records of builds are still being written");
        }
    }

    /// Removes the records that do not stay.
    pub(crate) async fn expire(&self) -> kiln_cache::Result<()> {
        for id in self.shared.cache().expire_builds(self.shared.retention).await? {
            self.shared.tell(BuildHistoryEventType::Deleted, only(id));
        }
        Ok(())
    }

    /// Ends all listening.
    pub(crate) fn close(&self) {
        self.shared.closing.cancel();
    }

    /// Streams what a client asks for: running builds, records, then what happens.
    pub(crate) async fn listen(
        &self,
        request: BuildHistoryRequest,
    ) -> Result<mpsc::Receiver<Result<BuildHistoryEvent, Status>>, Status> {
        let limit = usize::try_from(request.limit)
            .map_err(|_| Status::invalid_argument(format!("invalid limit {}", request.limit)))?;
        let filters = Filters::parse(&request.filter, SystemTime::now()).map_err(Status::invalid_argument)?;
        let listening = self.listening(&request.r#ref)?;
        // Told twice rather than not at all.
        let live = self.shared.events.subscribe();
        self.settle().await;
        let running: Vec<BuildHistoryRecord> =
            self.shared.state().running.values().map(|running| running.record.clone()).collect();
        let (send, receive) = mpsc::channel(ON_THE_WAY);
        let history = self.clone();
        self.shared.tasks.spawn(async move {
            let told = history.tell_all(&request, limit, &filters, running, live, &send);
            tokio::select! {
                told = told => {
                    if let Err(status) = told {
                        send.send(Err(status)).await.ok();
                    }
                }
                () = send.closed() => {}
                () = history.shared.closing.cancelled() => {}
            }
            drop(listening);
        });
        Ok(receive)
    }

    async fn tell_all(
        &self,
        request: &BuildHistoryRequest,
        limit: usize,
        filters: &Filters,
        running: Vec<BuildHistoryRecord>,
        mut live: broadcast::Receiver<Arc<BuildHistoryEvent>>,
        send: &mpsc::Sender<Result<BuildHistoryEvent, Status>>,
    ) -> Result<(), Status> {
        let wanted = |id: &str| request.r#ref.is_empty() || request.r#ref == id;
        // A client that has gone is noticed outside.
        let tell = async |event| send.send(Ok(event)).await.unwrap_or_default();
        for record in running.into_iter().filter(|record| wanted(&record.r#ref)) {
            tell(event(BuildHistoryEventType::Started, record)).await;
        }
        if !request.active_only {
            let cache = self.shared.cache();
            let ids = match request.r#ref.as_str() {
                "" => cache.build_ids(limit > 0).await.map_err(internal)?,
                one => vec![one.to_owned()],
            };
            let mut left = if limit == 0 { usize::MAX } else { limit };
            for id in ids {
                let hidden = request.r#ref.is_empty() && self.shared.state().removed.contains(&id);
                let Some(build) = cache.build_record(&id).await.map_err(internal)?.filter(|_| !hidden) else {
                    continue;
                };
                let record = wire(&build)?;
                if left > 0 && filters.matches(&record) {
                    left -= 1;
                    tell(event(BuildHistoryEventType::Complete, record)).await;
                }
            }
        }
        if request.early_exit {
            return Ok(());
        }
        loop {
            match live.recv().await {
                Ok(event) if event.record.as_ref().is_some_and(|record| wanted(&record.r#ref)) => {
                    tell((*event).clone()).await;
                }
                Ok(_) => {}
                Err(broadcast::error::RecvError::Closed) => return Ok(()),
                Err(broadcast::error::RecvError::Lagged(lost)) => {
                    return Err(Status::data_loss(format!(
                        "{lost} events of builds were lost, because the client took too long: listen again"
                    )));
                }
            }
        }
    }

    /// Counts a listener to one build.
    fn listening(&self, id: &str) -> Result<Option<Listening>, Status> {
        if id.is_empty() {
            return Ok(None);
        }
        let mut state = self.shared.state();
        if state.removed.contains(id) {
            return Err(deleted(id));
        }
        *state.listeners.entry(id.to_owned()).or_default() += 1;
        Ok(Some(Listening { history: self.clone(), id: id.to_owned() }))
    }

    /// Pins or removes a record.
    pub(crate) async fn update(&self, request: UpdateBuildHistoryRequest) -> Result<(), Status> {
        self.settle().await;
        let id = request.r#ref;
        let missing = || Status::unknown(format!("failed to retrieve ref {id}: no such build on record"));
        if self.shared.state().removed.contains(&id) {
            return Err(deleted(&id));
        }
        let cache = self.shared.cache();
        if cache.build_record(&id).await.map_err(internal)?.is_none() {
            return Err(missing());
        }
        if request.delete {
            let later = {
                let mut state = self.shared.state();
                let later = state.listeners.contains_key(&id);
                if later {
                    state.removed.insert(id.clone());
                }
                later
            };
            if !later && !cache.remove_build(&id).await.map_err(internal)? {
                return Err(missing());
            }
            self.shared.tell(BuildHistoryEventType::Deleted, only(id));
        } else if !request.finalize {
            // A record is whole when it is saved: there is nothing to finalize.
            let pinned = cache.pin_build(&id, request.pinned).await.map_err(internal)?;
            let build = pinned.ok_or_else(missing)?;
            self.shared.tell(BuildHistoryEventType::Complete, wire(&build)?);
        }
        Ok(())
    }

    /// Nobody listens to this build any more.
    fn left(&self, id: &str) {
        let remove = {
            let mut state = self.shared.state();
            let last = match state.listeners.get_mut(id) {
                Some(count) if *count > 1 => {
                    *count -= 1;
                    false
                }
                _ => state.listeners.remove(id).is_some(),
            };
            last && state.removed.contains(id)
        };
        if !remove {
            return;
        }
        let (history, id) = (self.clone(), id.to_owned());
        self.shared.tasks.spawn(async move {
            if let Err(error) = history.shared.cache().remove_build(&id).await {
                tracing::warn!(build = %id, %error, "the record of a build could not be removed");
            }
            history.shared.state().removed.remove(&id);
        });
    }
}

/// A listener to one build.
struct Listening {
    history: History,
    id: String,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.history.left(&self.id);
    }
}

fn event(kind: BuildHistoryEventType, record: BuildHistoryRecord) -> BuildHistoryEvent {
    BuildHistoryEvent { r#type: kind as i32, record: Some(record) }
}

fn only(id: String) -> BuildHistoryRecord {
    BuildHistoryRecord { r#ref: id, ..BuildHistoryRecord::default() }
}

fn deleted(id: &str) -> Status {
    Status::not_found(format!("ref {id} is deleted"))
}

/// A record as clients get it.
fn wire(build: &BuildRecord) -> Result<BuildHistoryRecord, Status> {
    let decoded = BuildHistoryRecord::decode(build.body.as_slice());
    let mut record = decoded.map_err(|error| {
        Status::data_loss(format!("the record of build {} is damaged ({error}): delete it", build.id))
    })?;
    record.pinned = build.pinned;
    record.generation = i32::try_from(build.generation).unwrap_or(i32::MAX);
    Ok(record)
}
