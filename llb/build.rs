//! Compiles the messages and keeps their descriptors for the wire-level code.

use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.open_file("ops.proto")?;
    fs::write(out.join("descriptors.bin"), compiler.encode_file_descriptor_set())?;
    let mut config = prost_build::Config::new();
    config.btree_map(["."]);
    // By far the largest of the ops; the others would take as much.
    config.boxed(".pb.Op.op.exec");
    config.compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
