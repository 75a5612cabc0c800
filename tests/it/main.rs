//! Integration tests through the real binaries, against a real registry, judged by skopeo and umoci.

mod cache;
mod cancel;
mod daemon;
mod dockerfiles;
mod errors;
mod exporters;
mod git_sources;
mod hostile;
mod http_sources;
mod images;
mod kiln;
mod lending;
mod limits;
mod llb;
mod reasons;
mod registries;
mod remote_cache;
mod runs;
mod sharing;
mod support;
