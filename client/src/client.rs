use std::time::Duration;

use futures::{Stream, StreamExt as _};
use kiln_api::control::control_client::ControlClient;
use kiln_api::control::{
    BuildHistoryEvent, BuildHistoryRequest, DiskUsageRequest, InfoRequest, InfoResponse, ListWorkersRequest,
    PruneRequest, StatusRequest, StatusResponse, UpdateBuildHistoryRequest, UsageRecord,
};
use kiln_api::kiln::catalogue_client::CatalogueClient;
use kiln_api::kiln::{CheckRequest, CheckResponse};
use kiln_api::types::{BuildkitVersion, WorkerRecord};
use tonic::transport::Channel;

use crate::connect::{ConnectOptions, connect};
use crate::error::{Error, Result};

/// Longest answer, in bytes; the daemon's limit too.
pub(crate) const MAX_ANSWER: usize = 16 << 20;
/// Longest request, in bytes. More than our daemon takes, so that the daemon is who says what is too large for it.
pub(crate) const MAX_REQUEST: usize = 80 << 20;

/// A connection to a daemon. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Client {
    channel: Channel,
}

/// Which records of the cache to name.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct UsageFilter {
    /// Containerd's filter expressions; a record has to match one of them.
    pub filters: Vec<String>,
    /// Only records not used for so long.
    pub age: Duration,
}

/// What to remove from the cache.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Prune {
    /// Containerd's filter expressions; a record has to match one of them.
    pub filters: Vec<String>,
    /// Also internal and frontend records, and shared ones.
    pub all: bool,
    /// Keep what was used in this time.
    pub keep_duration: Duration,
    /// Keep so many bytes in any case; 0 for no such promise.
    pub reserved_space: i64,
    /// Remove until no more than this is used, in bytes; 0 for no limit.
    pub max_used_space: i64,
    /// Remove until this is free, in bytes; 0 for no demand.
    pub min_free_space: i64,
}

impl Client {
    /// Connects to the daemon at this address; see [`Address::parse`](crate::Address::parse).
    ///
    /// # Errors
    /// [`Error::Address`], [`Error::Tls`] or [`Error::Connect`].
    pub async fn connect(address: &str, options: ConnectOptions) -> Result<Self> {
        connect(address, &options).await.map(Self::from_channel)
    }

    /// Uses a connection that is there.
    pub fn from_channel(channel: Channel) -> Self {
        Self { channel }
    }

    /// The transport, for services that have no method here.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// The control service as it is on the wire.
    pub fn control(&self) -> ControlClient<Channel> {
        ControlClient::new(self.channel())
            .max_decoding_message_size(MAX_ANSWER)
            .max_encoding_message_size(MAX_REQUEST)
    }

    /// The daemon's version; old ones answer `Unimplemented`.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn info(&self) -> Result<BuildkitVersion> {
        Ok(self.all_info().await?.buildkit_version.unwrap_or_default())
    }

    /// The daemon's version, and what our own daemon says besides.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn all_info(&self) -> Result<InfoResponse> {
        Ok(self.control().info(InfoRequest::default()).await?.into_inner())
    }

    /// Compares the daemon's catalogue with its stores; the stream names each thing found, and ends with a summary.
    /// Other daemons answer `Unimplemented`.
    ///
    /// # Errors
    /// [`Error::Call`]; the stream's items may fail too.
    pub async fn check(
        &self,
        request: CheckRequest,
    ) -> Result<impl Stream<Item = Result<CheckResponse>> + Send + Unpin + use<>> {
        let answer = CatalogueClient::new(self.channel()).check(request).await?;
        Ok(answer.into_inner().map(|found| found.map_err(Error::from)))
    }

    /// The daemon's workers, the default one first.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn list_workers(&self, filter: Vec<String>) -> Result<Vec<WorkerRecord>> {
        Ok(self.control().list_workers(ListWorkersRequest { filter }).await?.into_inner().record)
    }

    /// The records of the cache.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn disk_usage(&self, filter: UsageFilter) -> Result<Vec<UsageRecord>> {
        let request = DiskUsageRequest { filter: filter.filters, age_limit: nanoseconds(filter.age) };
        Ok(self.control().disk_usage(request).await?.into_inner().record)
    }

    /// Removes records of the cache; the stream names each one removed, and ends when all are.
    ///
    /// # Errors
    /// [`Error::Call`]; the stream's items may fail too.
    pub async fn prune(
        &self,
        prune: Prune,
    ) -> Result<impl Stream<Item = Result<UsageRecord>> + Send + Unpin + use<>> {
        let request = PruneRequest {
            filter: prune.filters,
            all: prune.all,
            keep_duration: nanoseconds(prune.keep_duration),
            reserved_space: prune.reserved_space,
            max_used_space: prune.max_used_space,
            min_free_space: prune.min_free_space,
        };
        Ok(self.control().prune(request).await?.into_inner().map(|record| record.map_err(Error::from)))
    }

    /// The progress of a build, from its start, running or stored.
    ///
    /// # Errors
    /// [`Error::Call`]; the stream's items may fail too.
    pub async fn status(
        &self,
        reference: &str,
    ) -> Result<impl Stream<Item = Result<StatusResponse>> + Send + Unpin + use<>> {
        let request = StatusRequest { r#ref: reference.to_owned() };
        Ok(self.control().status(request).await?.into_inner().map(|update| update.map_err(Error::from)))
    }

    /// Builds, running and stored, as the request selects; without `early_exit` it goes on with those to come.
    ///
    /// # Errors
    /// [`Error::Call`]; the stream's items may fail too.
    pub async fn build_history(
        &self,
        request: BuildHistoryRequest,
    ) -> Result<impl Stream<Item = Result<BuildHistoryEvent>> + Send + Unpin + use<>> {
        let events = self.control().listen_build_history(request).await?.into_inner();
        Ok(events.map(|event| event.map_err(Error::from)))
    }

    /// Pins, finalises or deletes a stored build.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn update_build_history(&self, request: UpdateBuildHistoryRequest) -> Result<()> {
        self.control().update_build_history(request).await?;
        Ok(())
    }
}

fn nanoseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}
