//! Graphs of file operations, as marshalled definitions: what the engine itself costs, with next to no work to do.

use std::fs;
use std::path::Path;

use anyhow::Result;
use kiln_llb::state::{Constraints, FileActions, State, VertexMeta};
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
        }
    }
}

fn chain(name: &str, length: usize) -> State {
    (0..length).fold(State::scratch(), |state, step| {
        let file = FileActions::new().mkfile(&format!("/{name}-{step}"), 0o644, format!("{name} {step}\n"));
        state.file(file)
    })
}

fn merge(states: Vec<State>) -> State {
    State::merge(states, VertexMeta::default())
}
