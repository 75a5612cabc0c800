//! Integration tests through the real binaries, against a real registry, judged by skopeo and umoci.

mod cache;
mod cancel;
mod containers;
mod crash;
mod daemon;
mod dockerfiles;
mod errors;
mod exporters;
mod frontends;
mod history;
mod hostile;
mod images;
mod kiln;
mod lending;
mod limits;
mod llb;
mod networks;
mod platforms;
mod reasons;
mod registries;
mod remote_cache;
mod rootless;
mod runs;
mod sharing;
mod store;
mod support;
