//! What making a source available can run into.

use kiln_digest::Digest;

/// An error of a caller's port.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a source is not available. The texts are the reference's where clients look for them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An attribute of the source op cannot be understood.
    #[error("invalid {what} {value}")]
    Attribute {
        /// What the attribute is for.
        what: &'static str,
        /// Its value.
        value: String,
    },
    /// A list attribute is not a JSON list of strings.
    #[error("invalid {what} {value}")]
    List {
        /// What the attribute is for.
        what: &'static str,
        /// Its value.
        value: String,
        /// The parser's error.
        source: serde_json::Error,
    },
    /// An image has neither tag nor digest.
    #[error("{reference}: object required")]
    ObjectRequired {
        /// The reference.
        reference: String,
    },
    /// An OCI layout is read by digest only.
    #[error("reference {reference:?} must have digest")]
    DigestRequired {
        /// The reference.
        reference: String,
    },
    /// The image is not the one that was asked for.
    #[error("image digest {actual} for {reference} does not match expected checksum {expected}")]
    Checksum {
        /// The reference.
        reference: String,
        /// What it resolved to.
        actual: Digest,
        /// What was asked for.
        expected: Digest,
    },
    /// The image is not there for the platform.
    #[error(
        "{reference}: no match for platform in manifest {root}: not found (wanted {platform}, it has {offered})"
    )]
    NoPlatform {
        /// The reference.
        reference: String,
        /// The index.
        root: Digest,
        /// What was wanted.
        platform: String,
        /// What the index has, shortened.
        offered: String,
    },
    /// The image's documents contradict each other or the request.
    #[error("invalid image {reference}: {reason}")]
    InvalidImage {
        /// The reference.
        reference: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The image has fewer layers than the limit asks for.
    #[error("layer limit {limit} is greater than the number of layers in the image {layers}")]
    LayerLimit {
        /// The limit.
        limit: usize,
        /// How many layers there are.
        layers: usize,
    },
    /// An address that cannot be used.
    #[error("invalid source address {url:?}: {reason}")]
    Url {
        /// The address, shortened.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Something that the reference does and this version does not do yet.
    #[error("{0} is not supported yet")]
    NotSupported(&'static str),
    /// Only one of the two attributes of a signature is there.
    #[error("http signature verification requires both pubkey and signature")]
    HalfSignature,
    /// A secret that a source names is not there.
    #[error("secret {id}: not found")]
    NoSecret {
        /// Its id.
        id: String,
    },
    /// A secret cannot be what it is used as.
    #[error("the secret for {url} cannot be {what}: it has characters that do not belong there")]
    Secret {
        /// What it is used as.
        what: &'static str,
        /// What it is for.
        url: String,
    },
    /// A server answered with something else than the file.
    #[error("invalid response status {status} of {url}")]
    Status {
        /// Who answered.
        url: String,
        /// The status.
        status: u16,
    },
    /// A server says that a file has not changed which nobody has.
    #[error("invalid not-modified ETag: {etag}")]
    UnknownTag {
        /// The tag that it told.
        etag: String,
    },
    /// A file is not the one that was asked for.
    #[error("digest mismatch for {url}: {actual} (expected: {expected})")]
    DigestMismatch {
        /// Where it came from.
        url: String,
        /// What came.
        actual: Digest,
        /// What was asked for.
        expected: Digest,
    },
    /// A transfer did not come to its end.
    #[error("failed to download {url}")]
    Transfer {
        /// What was fetched.
        url: String,
        /// What happened.
        source: BoxError,
    },
    /// A server is silent.
    #[error("{url} was silent for {seconds} s: try again, or look whether the server is well")]
    Stalled {
        /// What was fetched.
        url: String,
        /// How long.
        seconds: u64,
    },
    /// There is no room for a file.
    #[error("no space left for {url} after {received} bytes: free some of the disk, or prune")]
    NoRoom {
        /// What was fetched.
        url: String,
        /// How much has come.
        received: u64,
    },
    /// A file could not be written.
    #[error("failed to write what came from {url}")]
    Write {
        /// What was fetched.
        url: String,
        /// Why not.
        source: std::io::Error,
    },
    /// There is no client for web servers.
    #[error("no client for web servers")]
    HttpClient(#[source] BoxError),
    /// An address of a repository that cannot be used.
    #[error("invalid git remote {remote:?}: {reason}")]
    Remote {
        /// The address, without its password.
        remote: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A checksum that is none.
    #[error("invalid checksum {checksum} for Git URL, expected hex commit hash")]
    GitChecksum {
        /// As given.
        checksum: String,
    },
    /// A commit is to be fetched by a part of its name.
    #[error("fetch-by-commit requires a full commit SHA checksum, got {checksum:?}")]
    FetchByPrefix {
        /// That part.
        checksum: String,
    },
    /// A commit is to be fetched, but none is named.
    #[error("fetch-by-commit requires a checksum or a commit SHA ref")]
    FetchByNothing,
    /// A reference names something else than what was asked for.
    #[error("expected checksum to match {expected}, got {actual}")]
    GitMismatch {
        /// What was asked for.
        expected: String,
        /// What it names.
        actual: String,
    },
    /// A repository does not have the reference.
    #[error("repository does not contain ref {reference}, output: {output:?}")]
    NoReference {
        /// The reference.
        reference: String,
        /// What it has of that name.
        output: String,
    },
    /// A repository does not say what its default branch is.
    #[error("could not find default branch for repository: {remote}")]
    NoDefaultBranch {
        /// The repository.
        remote: String,
    },
    /// A commit is not in its repository.
    #[error(
        "fetched ref {reference} does not match expected commit {object} and commit can not be found in the repository{}",
        if reason.is_empty() { String::new() } else { format!(": {reason}") }
    )]
    NoCommit {
        /// What it is called.
        reference: String,
        /// Its name.
        object: String,
        /// What the server said, if anything.
        reason: String,
    },
    /// A repository does not have the directory.
    #[error("directory {subdir:?} of the repository does not exist, or is a link or a file")]
    NoSubdir {
        /// The directory.
        subdir: String,
    },
    /// `git` failed.
    #[error("{what} failed ({status}): {errors}")]
    Git {
        /// What was run.
        what: String,
        /// How it ended.
        status: String,
        /// What it said.
        errors: String,
    },
    /// `git` says too much.
    #[error("{what} wrote more than {limit} bytes")]
    GitOutput {
        /// What was run.
        what: String,
        /// How much is accepted.
        limit: usize,
    },
    /// There is no `git`.
    #[error("git sources need the program `git` in the PATH of the daemon: install it there")]
    NoGit,
    /// Something could not be started.
    #[error("failed to start {what}")]
    Start {
        /// What.
        what: String,
        /// Why not.
        source: std::io::Error,
    },
    /// Files that `git` needs could not be made ready.
    #[error("failed to make {what} ready")]
    Files {
        /// What they are.
        what: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// No client that waits forwards the agent.
    #[error("no SSH key {id:?} forwarded from the client")]
    NoAgent {
        /// The agent's id.
        id: String,
    },
    /// Nobody waits any more.
    #[error("context canceled")]
    Cancelled,
    /// A build without a session has no local files.
    #[error("could not access local files without session")]
    NoSession,
    /// The text does not name an origin of blobs.
    #[error("`{0}` names no place to fetch from")]
    InvalidOrigin(String),
    /// Content of a client's OCI layout is asked for where nobody can provide it.
    #[error("no client provides the OCI layout `{0}`")]
    NoLayout(String),
    /// The registry did not provide it.
    #[error(transparent)]
    Registry(#[from] kiln_registry::Error),
    /// The client did not provide it.
    #[error(transparent)]
    Client(#[from] kiln_session::Error),
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] kiln_cache::Error),
    /// The content store failed.
    #[error(transparent)]
    Content(#[from] kiln_content::Error),
    /// The directory to receive into cannot be mounted.
    #[error(transparent)]
    Mount(#[from] kiln_snapshot::Error),
    /// The directory to receive into cannot be opened.
    #[error(transparent)]
    Directory(#[from] kiln_rootdir::Error),
}

impl Error {
    pub(crate) fn attribute(what: &'static str, value: &str) -> Self {
        Self::Attribute { what, value: value.chars().take(200).collect() }
    }

    pub(crate) fn files(what: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Files { what, source }
    }

    /// Whether it was for want of something that another client may be able to lend.
    pub fn is_of_lender(&self) -> bool {
        match self {
            Self::Registry(error) => error.is_of_holder(),
            Self::Client(_)
            | Self::NoLayout(_)
            | Self::NoSession
            | Self::NoSecret { .. }
            | Self::NoAgent { .. } => true,
            _ => false,
        }
    }
}
