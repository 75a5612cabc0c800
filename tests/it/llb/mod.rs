//! LLB as clients without a frontend send it: every operation, and what is wrong with it.

mod combine;
mod exec;
mod file;
mod graph;
mod limits;
mod nested;
mod ssh;

use std::process::Command;

use anyhow::{Context, Result};
use kiln_llb::state::{Constraints, Exec, FileActions, State, VertexMeta};
use kiln_llb::{VertexDigest, marshal_op, pb};
use kiln_tests::Finished;
use prost::Message as _;

use crate::support::{Built, Client, Site, hub, run};

/// The base image as a state.
fn base() -> Result<State> {
    Ok(State::image(&hub()?.base))
}

/// A shell script as a process.
fn shell(script: &str) -> Exec {
    Exec::new(["/bin/sh", "-ec", script])
}

/// A file in an empty state.
fn file(name: &str, text: &str) -> State {
    State::scratch().file(FileActions::new().mkfile(name, 0o644, text))
}

fn marshal(state: &State) -> Result<pb::Definition> {
    // A local source of its own for every graph, as clients have it.
    let unique = crate::support::unique()?;
    Ok(state.marshal(&Constraints { local_unique_id: unique, ..Constraints::default() })?)
}

impl Site {
    /// The command that solves a definition.
    fn llb_command(&self, definition: &pb::Definition, args: &[&str]) -> Result<Command> {
        let file = tempfile::Builder::new().prefix("definition-").tempfile_in(self.daemon.dir())?;
        let (file, path) = file.keep()?;
        std::fs::write(&path, definition.encode_to_vec())?;
        drop(file);
        let client = self.daemon.buildctl();
        let mut command = Command::new("/bin/sh");
        command
            .arg("-c")
            .arg("exec \"$@\" < \"$0\"")
            .arg(&path)
            .arg(client.get_program())
            .args(client.get_args());
        command.args(["build", "--progress=plain"]).args(args);
        Ok(command)
    }

    /// Solves a definition, whatever comes out.
    fn solve(&self, definition: &pb::Definition, args: &[&str]) -> Result<Finished> {
        Finished::run(&mut self.llb_command(definition, args)?)
    }

    /// Starts to solve beside the test.
    fn start_llb(&self, state: &State, args: &[&str]) -> Result<Client> {
        Client::start(&mut self.llb_command(&marshal(state)?, args)?)
    }

    /// Solves a state into a directory.
    pub(crate) fn llb(&self, state: &State, args: &[&str]) -> Result<Built> {
        self.definition(&marshal(state)?, args)
    }

    /// Solves a definition into a directory.
    fn definition(&self, definition: &pb::Definition, args: &[&str]) -> Result<Built> {
        let dir = tempfile::tempdir()?;
        let archive = tempfile::NamedTempFile::new()?;
        let archive = archive.path().display().to_string();
        // An archive keeps owners, which a directory of the client does not.
        let output = format!("--output=type=tar,dest={archive}");
        let log = self.solve(definition, &[args, &[&output]].concat())?.success()?.stderr;
        run("tar", &["--numeric-owner", "-xpf", &archive, "-C", &dir.path().display().to_string()])?;
        Ok(Built { dir, log })
    }

    /// Solves a state that cannot be solved; what the client says.
    pub(crate) fn fails(&self, state: &State, args: &[&str]) -> Result<String> {
        Ok(self.solve(&marshal(state)?, args)?.failure().context("no error")?.stderr)
    }
}

/// Runs a script on the base image and gives what it wrote to `/out`.
fn out(site: &Site, exec: Exec, args: &[&str]) -> Result<String> {
    let ran = base()?.run(exec).root();
    let copied = State::scratch().file(FileActions::new().copy(
        &ran,
        "/out",
        "/out",
        kiln_llb::state::Copy::default(),
    ));
    site.llb(&copied, args)?.read("out")
}

/// Metadata of a vertex that is run whatever is cached.
fn uncached() -> VertexMeta {
    VertexMeta { ignore_cache: true, ..VertexMeta::default() }
}

/// A graph put together op by op, for what states cannot say.
struct Raw {
    definition: pb::Definition,
}

impl Raw {
    /// Begins with the vertices of these states; the edges that lead to them.
    fn new(states: &[&State]) -> Result<(Self, Vec<pb::Input>)> {
        let mut raw = Self { definition: pb::Definition::default() };
        let mut edges = Vec::new();
        for state in states {
            let mut definition = marshal(state)?;
            let last = definition.def.pop().context("an empty state")?;
            edges.extend(pb::Op::decode(last.as_slice())?.inputs);
            for op in definition.def {
                if !raw.definition.def.contains(&op) {
                    raw.definition.def.push(op);
                }
            }
            raw.definition.metadata.extend(definition.metadata);
        }
        Ok((raw, edges))
    }

    /// Adds an op; the edge to its first output.
    fn add(&mut self, inputs: &[pb::Input], op: pb::op::Op) -> Result<pb::Input> {
        self.push(pb::Op { inputs: inputs.to_vec(), op: Some(op), ..pb::Op::default() })
    }

    fn push(&mut self, op: pb::Op) -> Result<pb::Input> {
        let bytes = marshal_op(&op)?;
        let digest = VertexDigest::of(&bytes).to_string();
        self.definition.def.push(bytes);
        Ok(pb::Input { digest, index: 0 })
    }

    /// The definition that asks for an edge.
    fn finish(mut self, edge: &pb::Input) -> Result<pb::Definition> {
        self.push(pb::Op { inputs: vec![edge.clone()], ..pb::Op::default() })?;
        Ok(self.definition)
    }
}

/// Another output of the same vertex.
fn output(edge: &pb::Input, index: i64) -> pb::Input {
    pb::Input { index, ..edge.clone() }
}
