//! Bringing a blob into a content store, through every broken transfer.

use kiln_content::{BlobWriter, ContentStore, ContentStoreExt as _, Descriptor};

use crate::access::Access;
use crate::client::Registry;
use crate::error::{Error, Kind, Result};
use crate::fetch::{Place, keep_telling, not_found};
use crate::reference::Reference;
use crate::retry::with_retries;

/// How often a transfer is taken up again at once, at one place, while each time brings bytes.
const MAX_RESUMES: usize = 16;

impl Registry {
    /// Makes a blob present in `store`, unless it is there. A transfer that breaks or stalls goes on where
    /// it stopped; a place with wrong bytes is left for the next.
    ///
    /// # Errors
    /// As [`Registry::fetch`]; [`Error::DigestMismatch`] when every place has wrong bytes.
    ///
    /// # Cancel safety
    /// The store has the blob or not; the next call goes on with what was received of it so far.
    pub async fn fetch_into(
        &self,
        store: &dyn ContentStore,
        reference: &Reference,
        descriptor: &Descriptor,
        access: Access<'_>,
    ) -> Result<()> {
        if store.has_whole(descriptor).await.map_err(Error::content)? {
            return Ok(());
        }
        // Bytes of an attempt that broke off, for the next one.
        let partial = tokio::sync::Mutex::new(None);
        with_retries(self.config(), access.observer, || async {
            let mut partial = partial.lock().await;
            let places = self.places(reference, descriptor);
            let mut first = None;
            for (at, place) in places.iter().enumerate() {
                let last = at + 1 == places.len();
                let source = Source { place, reference, descriptor, last };
                match self.transfer(store, source, &mut partial, access).await {
                    Ok(()) => return Ok(()),
                    Err(error) => keep_telling(&mut first, error),
                }
            }
            Err(first.unwrap_or_else(|| not_found(descriptor)))
        })
        .await
    }

    async fn transfer(
        &self,
        store: &dyn ContentStore,
        source: Source<'_>,
        partial: &mut Option<Box<dyn BlobWriter>>,
        access: Access<'_>,
    ) -> Result<()> {
        let Source { place, reference, descriptor, last } = source;
        // Bytes from another place may be the wrong ones, so a mismatch is not yet this place's fault.
        let mut mixed = partial.as_ref().is_some_and(|writer| writer.written() > 0);
        let mut anew = false;
        for resume in 0.. {
            let mut writer = match partial.take() {
                Some(writer) => writer,
                None if anew => store.writer(Some(descriptor)).await.map_err(Error::content)?,
                None => {
                    let writer = store.resume(descriptor).await.map_err(Error::content)?;
                    mixed |= writer.written() > 0;
                    writer
                }
            };
            let offset = writer.written();
            if offset > 0 && offset == descriptor.size {
                // All was received, and then nobody was there to say so.
                match commit(writer, "what an earlier call has received", descriptor).await {
                    Err(Error::DigestMismatch { .. }) => (mixed, anew) = (false, true),
                    result => return result,
                }
                continue;
            }
            let opened = match self.open_at(place, reference, descriptor, offset, last, access).await {
                Ok(stream) => stream,
                Err(error) => {
                    *partial = Some(writer);
                    return Err(error);
                }
            };
            let mut stream = opened;
            let failed = loop {
                match stream.next().await {
                    Ok(Some(chunk)) => writer.write(chunk).await.map_err(Error::content)?,
                    Ok(None) => break None,
                    Err(error) => break Some(error),
                }
                access.observer.received(&descriptor.digest, writer.written(), descriptor.size);
            };
            match failed {
                None => match commit(writer, &stream.address(), descriptor).await {
                    Err(Error::DigestMismatch { .. }) if mixed => (mixed, anew) = (false, true),
                    result => return result,
                },
                // More bytes than announced: they are not the blob's, so none of them is kept.
                Some(error) if error.kind() != Kind::Temporary => return Err(error),
                Some(error) => {
                    let moved = writer.written() > offset;
                    tracing::debug!(digest = %descriptor.digest, at = writer.written(), %error, "transfer broke off");
                    *partial = Some(writer);
                    if !moved || resume >= MAX_RESUMES {
                        return Err(error);
                    }
                }
            }
        }
        Err(not_found(descriptor))
    }
}

#[derive(Clone, Copy)]
struct Source<'a> {
    place: &'a Place,
    reference: &'a Reference,
    descriptor: &'a Descriptor,
    last: bool,
}

async fn commit(writer: Box<dyn BlobWriter>, address: &str, descriptor: &Descriptor) -> Result<()> {
    match writer.commit(Some((descriptor.digest, descriptor.size))).await {
        Ok(_) => Ok(()),
        Err(kiln_content::Error::DigestMismatch { actual, .. }) => Err(Error::DigestMismatch {
            url: address.to_owned(),
            expected: descriptor.digest,
            actual: actual.to_string(),
        }),
        Err(error) => Err(Error::content(error)),
    }
}
