//! `local`: files in a directory of the client.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::try_join_all;
use kiln_session::Session;
use kiln_session::filesend;
use kiln_session::fsutil::{MergedTree, Tree};
use kiln_solver::VertexProgress;

use crate::attrs::{Epoch, go_bool, parse_epoch};
use crate::error::{Error, Result};
use crate::exporter::{ExportRequest, Exported, Exporter, Kind};
use crate::platforms::{epoch_of, platforms_of, state_of};
use crate::progress::begin_action;
use crate::trees::{CountedTree, check_overwrites, in_platform_dir, tree_of};

/// How often progress is shown.
const SHOWN_EVERY: Duration = Duration::from_millis(100);

/// Attributes of `local` and `tar`.
#[derive(Clone, Debug, Default)]
pub(crate) struct FilesAttrs {
    pub(crate) epoch: Epoch,
    pub(crate) platform_split: Option<bool>,
    /// Files that the result lacks are removed at the client.
    pub(crate) delete: bool,
}

impl FilesAttrs {
    pub(crate) fn load(attrs: &BTreeMap<String, String>) -> Result<Self> {
        let mut out = Self::default();
        for (key, value) in attrs {
            match key.as_str() {
                "source-date-epoch" => out.epoch = Some(parse_epoch(key, value)?),
                "platform-split" => {
                    let split = go_bool(value).ok_or_else(|| {
                        let reason = format!("strconv.ParseBool: parsing {value:?}: invalid syntax");
                        Error::invalid(format!("non-bool value for platform-split: {value}: {reason}"))
                    })?;
                    out.platform_split = Some(split);
                }
                "mode" => {
                    out.delete = match value.as_str() {
                        "" | "copy" => false,
                        "delete" => true,
                        other => {
                            return Err(Error::invalid(format!("invalid local exporter mode {other:?}")));
                        }
                    };
                }
                _ => {}
            }
        }
        Ok(out)
    }
}

#[derive(Debug)]
pub(crate) struct LocalExporter {
    id: usize,
    attrs: FilesAttrs,
}

impl LocalExporter {
    pub(crate) fn new(id: usize, attrs: &BTreeMap<String, String>) -> Result<Self> {
        Ok(Self { id, attrs: FilesAttrs::load(attrs)? })
    }

    async fn send(
        &self,
        client: &Session,
        tree: Arc<dyn Tree>,
        label: String,
        whole: bool,
        progress: &VertexProgress,
    ) -> Result<()> {
        let mut part = begin_action(progress, label, "transferring");
        let (tree, bytes) = CountedTree::new(tree);
        let mut sending = std::pin::pin!(filesend::send_dir(client, self.id, Arc::new(tree), whole));
        let mut shown = 0;
        let outcome = loop {
            match tokio::time::timeout(SHOWN_EVERY, &mut sending).await {
                Ok(outcome) => break outcome,
                Err(_) => {
                    let now = bytes.load(Ordering::Relaxed);
                    if now != shown {
                        shown = now;
                        part.current(now);
                    }
                }
            }
        };
        part.current(bytes.load(Ordering::Relaxed));
        outcome?;
        Ok(())
    }
}

#[async_trait]
impl Exporter for LocalExporter {
    fn kind(&self) -> Kind {
        Kind::Local
    }

    fn id(&self) -> usize {
        self.id
    }

    async fn export(&self, request: ExportRequest) -> Result<Exported> {
        request.source.refuse_attestations(false)?;
        let source = &request.source;
        let client = request.client().await?;
        let platforms = platforms_of(source, "unable to export multiple platforms without map")?;
        let split = self.attrs.platform_split.unwrap_or(source.is_map());
        let visited = Arc::new(Mutex::new(BTreeMap::new()));
        let mut trees = Vec::new();
        for platform in &platforms {
            let id = platform.id.as_str();
            let epoch = epoch_of(source, self.attrs.epoch, Some(id))?;
            let state = state_of(source, id)?;
            let tree = tree_of(state.as_ref(), epoch, &*request.provider).await?;
            if split {
                trees.push((in_platform_dir(tree, id, epoch), format!("copying files {id}")));
            } else {
                if platforms.len() > 1 {
                    check_overwrites(&tree, id, &visited).await?;
                }
                trees.push((tree, "copying files".to_owned()));
            }
        }
        if self.attrs.delete {
            let trees = trees.into_iter().map(|(tree, _)| tree).collect();
            let tree = one_of(trees);
            self.send(&client, tree, "copying files".to_owned(), true, &request.progress).await?;
        } else {
            try_join_all(
                trees
                    .into_iter()
                    .map(|(tree, label)| self.send(&client, tree, label, false, &request.progress)),
            )
            .await?;
        }
        Ok(Exported::default())
    }
}

/// Lays trees over each other, unless there is only one.
pub(crate) fn one_of(mut trees: Vec<Arc<dyn Tree>>) -> Arc<dyn Tree> {
    match (trees.pop(), trees.is_empty()) {
        (Some(only), true) => only,
        (last, _) => {
            trees.extend(last);
            Arc::new(MergedTree::new(trees))
        }
    }
}
