//! What earlier downloads of an address left behind: the name of their record says it, so it goes with the record.

use kiln_cache::{CacheManager, Ref};
use kiln_digest::Digest;
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::http::client::Fetched;
use crate::http::request::HttpRequest;

/// The longest tag that is kept, in bytes.
const MAX_ETAG: usize = 1024;

/// What is known of a file that was downloaded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Known {
    pub(crate) digest: String,
    pub(crate) filename: String,
    /// `Last-Modified`, in the form that HTTP prefers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) modified: Option<String>,
    /// Without the mark of a weak one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) etag: Option<String>,
}

/// An earlier download that is still there.
#[derive(Clone, Debug)]
pub(crate) struct Earlier {
    pub(crate) known: Known,
    pub(crate) state: Ref,
}

impl Earlier {
    pub(crate) fn fetched(self) -> Option<Fetched> {
        let digest: Digest = self.known.digest.parse().ok()?;
        let Known { filename, modified, .. } = self.known;
        Some(Fetched { state: self.state, digest, filename, last_modified: modified })
    }
}

fn prefix(request: &HttpRequest) -> String {
    format!("http::{}::", request.identity())
}

/// Earlier downloads for an equal request, newest first.
pub(crate) async fn earlier(cache: &CacheManager, request: &HttpRequest) -> Result<Vec<Earlier>> {
    let prefix = prefix(request);
    let named = cache.named(&prefix).await?;
    let read = |(name, state): (String, Ref)| {
        let known = serde_json::from_str(name.strip_prefix(&prefix)?).ok()?;
        Some(Earlier { known, state })
    };
    Ok(named.into_iter().filter_map(read).collect())
}

/// Lets a download be found by later ones.
pub(crate) async fn remember(request: &HttpRequest, state: &Ref, known: &Known) -> Result<()> {
    let text = serde_json::to_string(known).unwrap_or_default();
    Ok(state.add_name(&format!("{}{text}", prefix(request))).await?)
}

/// A tag as it is compared; none if it is too long to keep.
pub(crate) fn etag(header: &str) -> Option<String> {
    let tag = header.strip_prefix("W/").unwrap_or(header);
    (!tag.is_empty() && tag.len() <= MAX_ETAG).then(|| tag.to_owned())
}
