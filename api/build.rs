//! Compiles the messages and services.

use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

const FILES: &[&str] = &[
    "auth.proto",
    "caps.proto",
    "content.proto",
    "control.proto",
    "errdefs.proto",
    "exporter.proto",
    "filesync.proto",
    "fsutil.proto",
    "gateway.proto",
    "google/rpc/status.proto",
    "kiln.proto",
    "policy.proto",
    "policysession.proto",
    "secrets.proto",
    "sshforward.proto",
    "stack.proto",
    "trace.proto",
    "upload.proto",
    "worker.proto",
];

/// Messages that carry file contents keep them in the buffer they arrived in.
const SHARED_BYTES: &[&str] = &[
    ".fsutil.types.Packet.data",
    ".moby.buildkit.v1.BytesMessage.data",
    ".moby.buildkit.v1.VertexLog.msg",
    ".moby.buildkit.v1.frontend.FdMessage.Data",
    ".moby.filesync.v1.BytesMessage.data",
    ".moby.sshforward.v1.BytesMessage.data",
    ".moby.upload.v1.BytesMessage.data",
    ".containerd.services.content.v1.ReadContentResponse.data",
    ".containerd.services.content.v1.WriteContentRequest.data",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    println!("cargo::rerun-if-changed=../llb/proto");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let mut compiler = protox::Compiler::new(["proto", "../llb/proto"])?;
    compiler.include_imports(true);
    compiler.open_files(FILES)?;
    fs::write(out.join("descriptors.bin"), compiler.encode_file_descriptor_set())?;
    let mut builder = tonic_prost_build::configure()
        .btree_map(".")
        .extern_path(".pb", "::kiln_llb::pb")
        .include_file("packages.rs");
    for field in SHARED_BYTES {
        builder = builder.bytes(*field);
    }
    builder.compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
