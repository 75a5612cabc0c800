//! Graphs of file operations, as marshalled definitions: what the engine itself costs, with next to no work to do.

use std::fs;
use std::path::Path;

use anyhow::Result;
use kiln_llb::state::{Constraints, Copy, FileActions, State, VertexMeta};
use prost::Message as _;

/// Steps of each chain in a [`Graph::Forest`].
const CHAIN: usize = 99;

/// The shape of a graph.
#[derive(Clone, Copy, Debug)]
pub(super) enum Graph {
    /// So many steps, each on the one before.
    Chain(usize),
    /// So many steps on nothing, all merged by one.
    Fan(usize),
    /// So many steps on nothing, merged in pairs, these merged in pairs, and so on.
    Tree(usize),
    /// A step merged with itself, that merge merged with itself, and so on, so many times.
    Diamond(usize),
    /// So many chains of 99 steps, merged by one.
    Forest(usize),
    /// So many layers of so many files each, merged.
    Layers(usize, usize),
    /// A file of each of these layers: all are made, and nothing is merged.
    Unmerged(usize, usize),
    /// A file of each of these layers, read from their merge.
    ReadMerged(usize, usize),
}

impl Graph {
    /// Writes the definition to a file.
    pub(super) fn write(self, path: &Path) -> Result<()> {
        let definition = self.state().marshal(&Constraints::default())?;
        Ok(fs::write(path, definition.encode_to_vec())?)
    }

    fn state(self) -> State {
        match self {
            Self::Chain(length) => chain("c", length),
            Self::Fan(leaves) => merge((0..leaves).map(|leaf| chain(&format!("l{leaf}"), 1)).collect()),
            Self::Tree(leaves) => {
                let mut row: Vec<State> = (0..leaves).map(|leaf| chain(&format!("l{leaf}"), 1)).collect();
                while row.len() > 1 {
                    row = row.chunks(2).map(|pair| merge(pair.to_vec())).collect();
                }
                row.pop().unwrap_or_default()
            }
            Self::Diamond(depth) => {
                (0..depth).fold(chain("d", 1), |state, _| merge(vec![state.clone(), state]))
            }
            Self::Forest(chains) => {
                merge((0..chains).map(|tree| chain(&format!("t{tree}"), CHAIN)).collect())
            }
            Self::Layers(count, files) => merge(layers(count, files)),
            Self::Unmerged(count, files) => sample(layers(count, files).iter()),
            Self::ReadMerged(count, files) => {
                let merged = merge(layers(count, files));
                sample(std::iter::repeat_n(&merged, count))
            }
        }
    }
}

fn chain(name: &str, length: usize) -> State {
    (0..length).fold(State::scratch(), |state, step| {
        let file = FileActions::new().mkfile(&format!("/{name}-{step}"), 0o644, format!("{name} {step}\n"));
        state.file(file)
    })
}

/// Layers with so many files each, in a directory of its own each. A definition that named all files would itself be what
/// takes the time, so they are copies of the files of one state; of another mode, so that they are no links to them.
fn layers(count: usize, files: usize) -> Vec<State> {
    let named = |actions: FileActions, file| actions.mkfile(&format!("/f{file}"), 0o644, format!("{file}\n"));
    let source = State::scratch().file((0..files).fold(FileActions::new(), named));
    let options = Copy { mode: Some(0o600), contents_only: true, create_dest_path: true, ..Copy::default() };
    let layer = |index| FileActions::new().copy(&source, "/", &format!("/l{index}"), options.clone());
    (0..count).map(|index| State::scratch().file(layer(index))).collect()
}

/// A file of the layer with each number, from the state of that number.
fn sample<'a>(states: impl Iterator<Item = &'a State>) -> State {
    let taken = |actions: FileActions, (index, state): (usize, &State)| {
        actions.copy(state, &format!("/l{index}/f0"), &format!("/f{index}"), Copy::default())
    };
    State::scratch().file(states.enumerate().fold(FileActions::new(), taken))
}

fn merge(states: Vec<State>) -> State {
    State::merge(states, VertexMeta::default())
}
