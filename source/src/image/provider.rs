//! The one place where a lazy layer is fetched.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use kiln_cache::{BlobProvider, IMPORTED, LayerPhase, LayerProgress};
use kiln_content::{ContentStore, Descriptor};
use kiln_registry::{Access, Credentials};
use kiln_solver::VertexProgress;

use crate::error::{BoxError, Error, Result};
use crate::image::holders::OneByOne;
use crate::image::request::{Layout, Origin};
use crate::image::resolve::Images;
use crate::progress::Reporter;

/// Content stores that clients' sessions offer.
///
/// 1. `descriptor` answers media type and size of the layout's root.
/// 2. After `fetch` the blob is in `store`, verified; what is there already is not asked for.
#[async_trait]
pub trait Layouts: fmt::Debug + Send + Sync {
    /// Describes the root.
    async fn descriptor(&self, layout: &Layout) -> Result<Descriptor>;

    /// Makes a blob present in `store`.
    async fn fetch(
        &self,
        layout: &Layout,
        descriptor: &Descriptor,
        store: &dyn ContentStore,
        progress: &mut (dyn FnMut(u64, u64) + Send),
    ) -> Result<()>;
}

/// There are none.
#[async_trait]
impl Layouts for () {
    async fn descriptor(&self, layout: &Layout) -> Result<Descriptor> {
        Err(Error::NoLayout(layout.store.clone()))
    }

    async fn fetch(
        &self,
        layout: &Layout,
        _descriptor: &Descriptor,
        _store: &dyn ContentStore,
        _progress: &mut (dyn FnMut(u64, u64) + Send),
    ) -> Result<()> {
        Err(Error::NoLayout(layout.store.clone()))
    }
}

/// Fetches lazy layers from where they come from, with credentials and progress of whoever reads them.
#[derive(Debug)]
pub struct ImageProvider {
    images: Images,
    credentials: Arc<dyn Credentials>,
    layouts: Arc<dyn Layouts>,
    reporter: Reporter,
}

impl ImageProvider {
    /// Makes a provider for one call.
    #[must_use]
    pub fn new(
        images: Images,
        credentials: Arc<dyn Credentials>,
        layouts: Arc<dyn Layouts>,
        progress: VertexProgress,
    ) -> Self {
        Self { images, credentials, layouts, reporter: Reporter::new(progress) }
    }

    async fn provide(&self, source: &str, descriptor: &Descriptor) -> Result<()> {
        let content = self.images.content();
        let _turn = self.images.turn_to_fetch(&descriptor.digest).await;
        match Origin::parse(source.strip_prefix(IMPORTED).unwrap_or(source))? {
            Origin::Registry(reference) => {
                let mut holders = OneByOne::new(&*self.credentials);
                loop {
                    let access = Access::new(holders.current()).observed(&self.reporter);
                    let fetched =
                        self.images.registry().fetch_into(content, &reference, descriptor, access).await;
                    match fetched {
                        Ok(()) => break,
                        Err(error) => holders.refused(error.into())?,
                    }
                }
            }
            Origin::Layout(layout) => {
                let mut progress =
                    |current, total| self.reporter.transferred(&descriptor.digest, current, total);
                self.layouts.fetch(&layout, descriptor, content, &mut progress).await?;
            }
        }
        self.reporter.transferred(&descriptor.digest, descriptor.size, descriptor.size);
        Ok(())
    }
}

#[async_trait]
impl BlobProvider for ImageProvider {
    async fn fetch(&self, source: &str, descriptor: &Descriptor) -> Result<(), BoxError> {
        Ok(self.provide(source, descriptor).await?)
    }

    fn progress(&self, event: LayerProgress) {
        let done = event.phase == LayerPhase::Done;
        self.reporter.part(
            &format!("extracting {}", event.digest),
            "extract",
            event.current,
            event.total,
            done,
        );
    }
}
