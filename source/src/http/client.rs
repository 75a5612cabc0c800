//! Downloading, and not downloading again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use kiln_cache::{CacheManager, RecordOptions, RecordType, Ref};
use kiln_digest::{Digest, Hasher};
use kiln_rootdir::{OpenOptions, Root, Time};
use kiln_session::{Lender, secrets, upload};
use kiln_solver::VertexProgress;
use reqwest::{Client, Method, StatusCode, Url};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::OnceCell;

use crate::error::{Error, Result};
use crate::http::filename::filename;
use crate::http::records::{self, Earlier, Known};
use crate::http::request::{HttpRequest, SESSION_HOST};
use crate::http::response::{self, Described};
use crate::progress::Transfer;
use crate::turns::Turns;

/// The permission bits of a file for which none are asked.
const DEFAULT_PERM: u32 = 0o600;
/// Room on the disk that no download takes.
const SPARE: u64 = 64 << 20;
/// After so many bytes the room on the disk is looked at again.
const LOOK_AFTER: u64 = 64 << 20;

/// How files are fetched.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct HttpOptions {
    /// What servers are told of who asks.
    pub user_agent: String,
    /// How long a server may be silent.
    pub stall: Duration,
}

impl Default for HttpOptions {
    fn default() -> Self {
        Self { user_agent: "kiln".to_owned(), stall: Duration::from_secs(120) }
    }
}

/// Fetches files from web servers, and from clients in their place.
#[derive(Clone, Debug)]
pub struct Http(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    cache: CacheManager,
    options: HttpOptions,
    /// For other machines, and for this one. Made when used first, because certificates take time to read.
    clients: [OnceCell<Client>; 2],
    turns: Turns,
}

/// A file that is there.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Fetched {
    /// The tree with the file.
    pub state: Ref,
    /// What is in it; also the source's pin.
    pub digest: Digest,
    /// Its name in the tree.
    pub filename: String,
    /// When the server says that it was changed, in the form that HTTP prefers.
    pub last_modified: Option<String>,
}

impl Fetched {
    /// When the server says that it was changed, in seconds since the epoch.
    #[must_use]
    pub fn modified(&self) -> Option<i64> {
        let time = httpdate::parse_http_date(self.last_modified.as_deref()?).ok()?;
        i64::try_from(time.duration_since(UNIX_EPOCH).ok()?.as_secs()).ok()
    }
}

/// What a build has fetched already, so that an address means one thing throughout.
#[derive(Debug, Default)]
pub struct Downloads(Mutex<HashMap<(Digest, Option<Digest>), Slot>>);

/// Whoever comes first fetches; when that one goes away, the next takes over.
type Slot = Arc<OnceCell<Fetched>>;

impl Downloads {
    fn slot(&self, request: &HttpRequest) -> Slot {
        let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        slots.entry((request.identity(), request.checksum)).or_default().clone()
    }
}

/// A body, and what was said of it.
struct Body {
    pieces: BoxStream<'static, Result<Bytes>>,
    length: Option<u64>,
    described: Described,
}

impl Http {
    /// Makes a fetcher over its port.
    #[must_use]
    pub fn new(cache: CacheManager, options: HttpOptions) -> Self {
        Self(Arc::new(Inner { cache, options, clients: Default::default(), turns: Turns::default() }))
    }

    /// Fetches a file, unless the build has it, or an earlier one that the server says is still the same.
    ///
    /// # Errors
    /// What the server or the network did; [`Error::DigestMismatch`] when it is not what was asked for.
    ///
    /// # Cancel safety
    /// A half-received file is thrown away.
    pub async fn fetch(
        &self,
        request: &HttpRequest,
        memory: &Downloads,
        lender: &Lender,
        progress: &VertexProgress,
    ) -> Result<Fetched> {
        let slot = memory.slot(request);
        slot.get_or_try_init(|| self.find(request, lender, progress)).await.cloned()
    }

    async fn find(
        &self,
        request: &HttpRequest,
        lender: &Lender,
        progress: &VertexProgress,
    ) -> Result<Fetched> {
        // Builds that want the same file at the same time look for it one after another, and the second finds it.
        let _turn = self.0.turns.take(&request.identity().to_string()).await;
        let mut earlier = records::earlier(&self.0.cache, request).await?;
        if let Some(wanted) = &request.checksum {
            let wanted = wanted.to_string();
            if let Some(at) = earlier.iter().position(|one| one.known.digest == wanted)
                && let Some(found) = earlier.swap_remove(at).fetched()
            {
                return Ok(found);
            }
        }
        if let Some(path) = request.of_session() {
            let pieces = lender.any(async |session| upload::pull(&session, SESSION_HOST, path).await).await?;
            let pieces = pieces.map(|piece| piece.map_err(Error::from)).boxed();
            return self
                .keep(
                    request,
                    Body { pieces, length: None, described: Described::default() },
                    earlier,
                    progress,
                )
                .await;
        }
        let authorization = authorization(request, lender).await?;
        let client = self.client(&request.url).await?;
        match self.ask(&client, request, authorization.as_deref(), &earlier).await? {
            Answer::Unchanged(at) => {
                earlier.swap_remove(at).fetched().ok_or_else(|| Error::UnknownTag { etag: String::new() })
            }
            Answer::New(body) => self.keep(request, *body, earlier, progress).await,
        }
    }

    async fn client(&self, url: &Url) -> Result<Client> {
        let is_loopback = |host: &str| {
            let host = host.trim_matches(['[', ']']);
            host == "localhost" || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
        };
        let local = url.host_str().is_some_and(is_loopback);
        let made = self.0.clients[usize::from(local)].get_or_try_init(|| async {
            let user_agent = self.0.options.user_agent.clone();
            match tokio::task::spawn_blocking(move || response::client(&user_agent, local)).await {
                Ok(client) => client.map_err(|error| Error::HttpClient(error.into())),
                Err(error) => Err(Error::HttpClient(error.into())),
            }
        });
        made.await.cloned()
    }

    /// Asks whether one of the earlier files is still the same, and else for the file.
    async fn ask(
        &self,
        client: &Client,
        request: &HttpRequest,
        authorization: Option<&str>,
        earlier: &[Earlier],
    ) -> Result<Answer> {
        // Of one that must be something else it does not matter whether it is the same.
        let known = if request.checksum.is_none() { earlier } else { &[] };
        let etags: Vec<String> = known.iter().filter_map(|one| one.known.etag.clone()).collect();
        let stall = self.0.options.stall;
        let with = |tag: Option<String>| known.iter().position(|one| tag.is_some() && one.known.etag == tag);
        let tag = |response: &reqwest::Response| Described::read(response.headers()).etag;
        if !etags.is_empty() {
            // Some servers do not answer 304 but do say the tag.
            let head = response::build(client, Method::HEAD, request, authorization, &etags)?;
            if let Ok(answer) = response::send(head, request, stall).await
                && matches!(answer.status(), StatusCode::OK | StatusCode::NOT_MODIFIED)
                && let Some(at) = with(tag(&answer))
            {
                return Ok(Answer::Unchanged(at));
            }
        }
        let get = response::build(client, Method::GET, request, authorization, &etags)?;
        let answer = response::send(get, request, stall).await?;
        if answer.status() == StatusCode::NOT_MODIFIED && !etags.is_empty() {
            let told = tag(&answer);
            let only = || match etags.as_slice() {
                [only] if told.is_none() => with(Some(only.clone())),
                _ => None,
            };
            let at = with(told.clone()).or_else(only);
            return at.map(Answer::Unchanged).ok_or(Error::UnknownTag { etag: told.unwrap_or_default() });
        }
        if !response::is_good(answer.status()) {
            return Err(response::status_error(&answer));
        }
        Ok(Answer::New(Box::new(Body {
            described: Described::read(answer.headers()),
            length: answer.content_length(),
            pieces: response::body(answer, request, stall),
        })))
    }

    /// Receives a body into a record; one that is there already is not kept twice.
    async fn keep(
        &self,
        request: &HttpRequest,
        body: Body,
        earlier: Vec<Earlier>,
        progress: &VertexProgress,
    ) -> Result<Fetched> {
        let name = filename(&request.filename, body.described.disposition.as_deref(), &request.url);
        let options = RecordOptions {
            retain: true,
            ..RecordOptions::new(format!("http url {}", request.shown()), RecordType::Regular)
        };
        let directory = self.0.cache.new_mutable(None, options).await?;
        let mount = directory.mount().await?;
        let Body { pieces, length, described } = body;
        let digest = {
            // Alive until everything is written.
            let mounted = mount.with_temp()?;
            let place = Place { root: Root::open(mounted.path())?, name: name.clone() };
            self.receive(request, place, pieces, length, described.modified.as_deref(), progress).await?
        };
        if let Some(wanted) = request.checksum.filter(|wanted| *wanted != digest) {
            return Err(Error::DigestMismatch { url: request.shown(), actual: digest, expected: wanted });
        }
        let Described { modified, etag, .. } = described;
        let known = Known { digest: digest.to_string(), filename: name, modified, etag };
        let same = |one: &Known| {
            (&one.digest, &one.filename, &one.modified) == (&known.digest, &known.filename, &known.modified)
        };
        let state = match earlier.into_iter().find(|one| same(&one.known)) {
            Some(found) => found.state,
            None => directory.commit().await?,
        };
        state.finalize().await?;
        records::remember(request, &state, &known).await?;
        Earlier { known, state }.fetched().ok_or_else(|| Error::UnknownTag { etag: String::new() })
    }

    async fn receive(
        &self,
        request: &HttpRequest,
        place: Place,
        mut pieces: BoxStream<'static, Result<Bytes>>,
        length: Option<u64>,
        modified: Option<&str>,
        progress: &VertexProgress,
    ) -> Result<Digest> {
        let transfer = Transfer::new(format!("downloading {}", place.name), "downloading", progress.clone());
        let total = length.unwrap_or(0);
        let written = |source: std::io::Error| Error::Write { url: request.shown(), source };
        let (perm, owner) = (request.perm, (request.uid, request.gid));
        let (place, file) = crate::blocking(move || {
            let perm = if perm == 0 { DEFAULT_PERM } else { perm };
            let file = place.root.open_file(&place.name, &OpenOptions::create_new(perm))?;
            place.root.chown(&place.name, owner.0, owner.1)?;
            // Changing the owner may have taken set-id bits away.
            place.root.chmod(&place.name, perm)?;
            Ok((place, file))
        })
        .await?;
        let mut file = tokio::fs::File::from_std(file);
        let mut hasher = Hasher::new();
        let (mut received, mut allowed) = (0_u64, 0_u64);
        transfer.show(0, total, false);
        while let Some(piece) = pieces.next().await {
            let piece = piece?;
            received += piece.len() as u64;
            if received > allowed || received == piece.len() as u64 {
                let free = self.room().await?.saturating_sub(length.unwrap_or(0).saturating_sub(received));
                if free < piece.len() as u64 {
                    return Err(Error::NoRoom { url: request.shown(), received });
                }
                allowed = received + free.min(LOOK_AFTER);
            }
            hasher.update(&piece);
            file.write_all(&piece).await.map_err(written)?;
            transfer.show(received, total, false);
        }
        file.flush().await.map_err(written)?;
        drop(file.into_std().await);
        let time = modified.and_then(|text| httpdate::parse_http_date(text).ok()).unwrap_or(UNIX_EPOCH);
        let time = since_epoch(time);
        crate::blocking(move || Ok(place.root.set_times(&place.name, time, time, true)?)).await?;
        transfer.show(received, total, true);
        Ok(hasher.finish())
    }

    /// How many bytes may still be written.
    async fn room(&self) -> Result<u64> {
        let free = u64::try_from(self.0.cache.disk().await?.free).unwrap_or_default();
        Ok(free.saturating_sub(SPARE))
    }
}

enum Answer {
    /// The earlier one at this position.
    Unchanged(usize),
    New(Box<Body>),
}

/// Where a file is written.
struct Place {
    root: Root,
    name: String,
}

fn since_epoch(time: SystemTime) -> Time {
    let seconds = match time.duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_secs()).unwrap_or_default(),
        Err(before) => -i64::try_from(before.duration().as_secs()).unwrap_or_default(),
    };
    Time { seconds, nanoseconds: 0 }
}

/// Finds the `Authorization` header. Only a secret that is named has to be there.
async fn authorization(request: &HttpRequest, lender: &Lender) -> Result<Option<String>> {
    let text = |data: Vec<u8>| {
        let text = String::from_utf8(data).ok().map(|text| text.trim_end_matches(['\r', '\n']).to_owned());
        text.ok_or_else(|| Error::Secret { what: "an `Authorization` header", url: request.shown() })
    };
    if !request.auth_secret.is_empty() {
        let id = &request.auth_secret;
        let found = secrets::ask(lender, id).await?;
        return found.map(text).transpose()?.map(Some).ok_or_else(|| Error::NoSecret { id: id.clone() });
    }
    let Some(host) = request.url.host_str() else { return Ok(None) };
    // Nobody said that there are secrets for this host, so not getting any is no failure.
    for (name, scheme) in [("HTTP_AUTH_HEADER", ""), ("HTTP_AUTH_TOKEN", "Bearer ")] {
        match secrets::ask(lender, &format!("{name}_{host}")).await {
            Ok(Some(found)) => return Ok(Some(format!("{scheme}{}", text(found)?))),
            Ok(None) => {}
            Err(error) => tracing::debug!(%error, name, host, "no secret for a host"),
        }
    }
    Ok(None)
}
