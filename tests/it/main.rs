//! Integration tests through the real binaries, against a real registry, judged by skopeo and umoci.

mod cache;
mod daemon;
mod errors;
mod exporters;
mod hostile;
mod images;
mod kiln;
mod llb;
mod reasons;
mod registries;
mod remote_cache;
mod runs;
mod support;
