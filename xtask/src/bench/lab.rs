//! What the scenarios share: a registry, images in it, and build contexts.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use kiln_tests::{Binaries, Daemon, DaemonOptions, Finished, Registry, push_base_image};

use super::graphs::Graph;
use super::payload::Payload;

const MIB: f64 = (1 << 20) as f64;
const LAYERS: usize = 8;
/// Layers of the merge that is measured.
const MERGED: usize = 30;

/// The registry and the directory of all contexts. Dropped, both are gone.
#[derive(Debug)]
pub(super) struct Lab {
    maker: Binaries,
    scale: f64,
    /// The programs that solve and measure, the same ones for all sides.
    programs: PathBuf,
    base: Option<String>,
    registry: Registry,
    dir: tempfile::TempDir,
}

impl Lab {
    /// An empty one; `maker` will make its images.
    pub(super) fn new(maker: &Binaries, programs: PathBuf, scale: f64) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("kiln-bench-").tempdir()?;
        Ok(Self { maker: maker.clone(), scale, programs, base: None, registry: Registry::start()?, dir })
    }

    /// One of the programs that measure.
    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.programs.join(name)
    }

    /// Root of a daemon whose catalogue has so many records.
    pub(super) fn filled(&self, records: u32) -> PathBuf {
        self.dir.path().join(format!("filled-{records}"))
    }

    /// Makes that root, once.
    pub(super) fn fill(&mut self, records: u32) -> Result<()> {
        let root = self.filled(records);
        if root.exists() {
            return Ok(());
        }
        let count = self.scaled(f64::from(records)).next_multiple_of(10).to_string();
        let kiln = root.join("kiln").display().to_string();
        let mut fill = std::process::Command::new(self.program("catalogue"));
        Finished::run(fill.args(["fill", &kiln, &count]))?.success()?;
        Ok(())
    }

    /// Directory of the context `name`.
    pub(super) fn context(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// File of the definition `name`.
    pub(super) fn definition(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.llb"))
    }

    /// Writes the definition of a graph.
    pub(super) fn write_graph(&self, name: &str, graph: Graph) -> Result<()> {
        graph.write(&self.definition(name)).with_context(|| format!("failed to make the graph `{name}`"))
    }

    /// Reference of the image `name` in the registry.
    pub(super) fn image(&self, name: &str) -> String {
        format!("{}/{name}:latest", self.registry.address())
    }

    /// Makes the small base image, once.
    fn base(&mut self) -> Result<String> {
        if let Some(base) = &self.base {
            return Ok(base.clone());
        }
        let daemon = Daemon::start(&self.maker, DaemonOptions::default())?;
        let base = push_base_image(&daemon, &self.registry, "base")?;
        self.base = Some(base.clone());
        self.write("pull", &format!("FROM {base}\nRUN true\n"))?;
        Ok(base)
    }

    /// Steps that each depend on the one before.
    pub(super) fn make_chain(&mut self) -> Result<()> {
        let mut dockerfile = format!("FROM {}\n", self.base()?);
        for step in 1..=40 {
            writeln!(dockerfile, "RUN echo {step} > /step-{step}")?;
        }
        self.write("chain", &dockerfile)
    }

    /// Stages that do not depend on each other, and one that collects them.
    pub(super) fn make_fanout(&mut self) -> Result<()> {
        let base = self.base()?;
        let mut dockerfile = String::new();
        let mut last = format!("FROM {base}\n");
        for stage in 1..=30 {
            writeln!(dockerfile, "FROM {base} AS s{stage}\nRUN echo {stage} > /out-{stage}")?;
            writeln!(last, "COPY --from=s{stage} /out-{stage} /")?;
        }
        self.write("fanout", &(dockerfile + &last))
    }

    /// 20 000 small files in directories of a hundred.
    pub(super) fn make_small_files(&mut self) -> Result<()> {
        self.write("context20k", "FROM scratch\nCOPY . /context/\n")?;
        let mut payload = Payload::new(20);
        for index in 0..self.scaled(20_000.0) {
            let parent = self.context("context20k").join(format!("d{}", index / 100));
            if index % 100 == 0 {
                fs::create_dir_all(&parent)?;
            }
            payload.write_small(&parent.join(format!("f{index}")))?;
        }
        Ok(())
    }

    /// Changes one of the small files to something that it was not before.
    pub(super) fn touch_small_file(&self, unique: &str) -> Result<()> {
        Ok(fs::write(self.context("context20k/d0/f7"), unique)?)
    }

    /// One file of 512 MiB.
    pub(super) fn make_large_file(&mut self) -> Result<()> {
        if self.context("copy512").exists() {
            return Ok(());
        }
        self.write("copy512", "FROM scratch\nCOPY file /file\n")?;
        Payload::new(512).write(&self.context("copy512/file"), self.scaled(512.0 * MIB))
    }

    /// An image of eight layers, 64 MiB each, in the registry, and a build on top of it.
    pub(super) fn make_large_image(&mut self) -> Result<()> {
        let mut dockerfile = format!("FROM {}\n", self.base()?);
        let size = self.scaled(64.0 * MIB);
        let parts = 16;
        for layer in 0..LAYERS {
            let dir = self.context("large-image").join(format!("l{layer}"));
            fs::create_dir_all(&dir)?;
            let payload = Payload::new(64 + layer as u64);
            for part in 0..parts {
                payload.write(&dir.join(format!("f{part}")), size / parts)?;
            }
            writeln!(dockerfile, "COPY l{layer} /l{layer}")?;
        }
        self.write("large-image", &dockerfile)?;
        let image = self.image("large");
        let daemon = Daemon::start(&self.maker, DaemonOptions::default())?;
        let output = format!("--output=type=image,name={image},push=true");
        daemon
            .build(&self.context("large-image"), &[&output])?
            .success()
            .context("failed to make the large image")?;
        fs::remove_dir_all(self.context("large-image"))?;
        self.write("pull-large", &format!("FROM {image}\nRUN true\n"))
    }

    /// 30 layers with 100 000 files in all: each alone, merged, and read from the merge.
    pub(super) fn make_layers(&mut self) -> Result<()> {
        let files = usize::try_from(self.scaled(100_000.0 / MERGED as f64))?;
        self.write_graph("merge30-layers", Graph::Unmerged(MERGED, files))?;
        self.write_graph("merge30", Graph::Layers(MERGED, files))?;
        self.write_graph("merge30-read", Graph::ReadMerged(MERGED, files))
    }

    fn write(&self, context: &str, dockerfile: &str) -> Result<()> {
        let dir = self.context(context);
        fs::create_dir_all(&dir)?;
        Ok(fs::write(dir.join("Dockerfile"), dockerfile)?)
    }

    fn scaled(&self, count: f64) -> u64 {
        (count * self.scale).ceil() as u64
    }
}
