//! The scenarios.

use anyhow::Result;

use super::graphs::Graph;
use super::lab::Lab;
use super::stage::Stage;

/// Scenarios that follow each other on one fresh daemon.
pub(super) struct Group {
    /// How a peer is treated.
    pub(super) peer: Peer,
    /// Makes what the group needs in the lab, before anything is measured.
    pub(super) prepare: fn(&mut Lab) -> Result<()>,
    /// Brings a fresh daemon to the state in which the first scenario begins.
    pub(super) setup: fn(&Stage<'_>) -> Result<()>,
    /// In the order in which they run.
    pub(super) steps: &'static [Step],
}

/// What is expected of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    /// It can do it.
    Able,
    /// It is tried; that it fails is a result too.
    MayFail,
    /// It is left out, for this reason.
    LeftOut(&'static str),
}

/// One scenario.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) name: &'static str,
    pub(super) unit: Unit,
    pub(super) measure: fn(&Stage<'_>) -> Result<f64>,
}

/// What a scenario's number counts.
#[derive(Clone, Copy, Debug)]
pub(super) enum Unit {
    Seconds,
    Mebibytes,
    /// Seconds for each of the so many vertices of a graph.
    SecondsPerVertex,
    Inodes,
}

impl Unit {
    /// With the digits that matter.
    pub(super) fn show(self, value: f64) -> String {
        match self {
            Self::Seconds if value < 1e-3 => format!("{:.1} µs", value * 1e6),
            Self::Seconds if value < 1.0 => format!("{:.1} ms", value * 1e3),
            Self::Seconds => format!("{value:.2} s"),
            Self::Mebibytes => format!("{value:.1} MiB"),
            Self::SecondsPerVertex => format!("{:.1} us", value * 1e6),
            Self::Inodes => format!("{value:.0}"),
        }
    }
}

/// How often what takes milliseconds is repeated within a run.
const REPEATS: usize = 15;
/// How often what is to be slow once in a hundred times is.
const MANY: usize = 400;
const OTHER_CATALOGUE: &str = "its catalogue has another form";
const TOO_LARGE: &str = "a graph of this size takes it minutes to hours";

/// A graph solved from nothing, and again.
macro_rules! graph_group {
    ($peer:expr, $cold:literal, $graph:expr, $cached:literal) => {
        Group {
            peer: $peer,
            prepare: |lab| lab.write_graph($cold, $graph),
            setup: |_| Ok(()),
            steps: &[
                Step { name: $cold, unit: Unit::Seconds, measure: |stage| stage.median_solve($cold, 1) },
                Step {
                    name: $cached,
                    unit: Unit::Seconds,
                    measure: |stage| stage.median_solve($cold, REPEATS),
                },
            ],
        }
    };
}

/// A graph taken in as far as its first step, and the most memory that the daemon had by then.
macro_rules! plan_group {
    ($plan:literal, $graph:expr, $memory:literal) => {
        Group {
            peer: Peer::LeftOut(TOO_LARGE),
            prepare: |lab| lab.write_graph($plan, $graph),
            setup: |_| Ok(()),
            steps: &[
                Step { name: $plan, unit: Unit::Seconds, measure: |stage| stage.plan($plan) },
                Step { name: $memory, unit: Unit::Mebibytes, measure: |stage| stage.peak_memory() },
            ],
        }
    };
}

/// What one thing costs in a catalogue of so many records.
macro_rules! cost_group {
    ($records:literal, $lookup:literal, $insert:literal, $collect:literal) => {
        Group {
            peer: Peer::LeftOut(OTHER_CATALOGUE),
            prepare: |lab| lab.fill($records),
            setup: |_| Ok(()),
            steps: &[
                Step {
                    name: $lookup,
                    unit: Unit::Seconds,
                    measure: |stage| stage.catalogue_costs($records).map(|costs| costs[0]),
                },
                Step {
                    name: $insert,
                    unit: Unit::Seconds,
                    measure: |stage| stage.catalogue_costs($records).map(|costs| costs[1]),
                },
                Step {
                    name: $collect,
                    unit: Unit::Seconds,
                    measure: |stage| stage.catalogue_costs($records).map(|costs| costs[2]),
                },
            ],
        }
    };
}

/// A graph solved from nothing, and again: what each of its vertices costs.
macro_rules! linear_group {
    ($cold:literal, $graph:expr, $vertices:literal, $cached:literal) => {
        Group {
            peer: Peer::LeftOut("what it takes for whole graphs is measured already"),
            prepare: |lab| lab.write_graph($cold, $graph),
            setup: |_| Ok(()),
            steps: &[
                Step {
                    name: $cold,
                    unit: Unit::SecondsPerVertex,
                    measure: |stage| Ok(stage.median_solve($cold, 1)? / $vertices),
                },
                Step {
                    name: $cached,
                    unit: Unit::SecondsPerVertex,
                    measure: |stage| Ok(stage.median_solve($cold, REPEATS)? / $vertices),
                },
            ],
        }
    };
}

/// All of them.
pub(super) const GROUPS: &[Group] = &[
    Group {
        peer: Peer::Able,
        prepare: |_| Ok(()),
        setup: |_| Ok(()),
        steps: &[
            Step { name: "startup", unit: Unit::Seconds, measure: |stage| Ok(stage.startup) },
            Step { name: "idle-memory", unit: Unit::Mebibytes, measure: |stage| stage.idle_memory() },
        ],
    },
    Group {
        peer: Peer::Able,
        prepare: Lab::make_chain,
        setup: pull_base,
        steps: &[
            Step { name: "chain40", unit: Unit::Seconds, measure: |stage| stage.build("chain", &[]) },
            Step { name: "chain40-cached", unit: Unit::Seconds, measure: |stage| stage.build("chain", &[]) },
            Step { name: "idle-memory-used", unit: Unit::Mebibytes, measure: |stage| stage.idle_memory() },
        ],
    },
    Group {
        peer: Peer::Able,
        prepare: Lab::make_chain,
        setup: pull_base,
        steps: &[
            Step { name: "step", unit: Unit::Seconds, measure: |stage| stage.median_step("chain") },
            Step {
                name: "step-after2000",
                unit: Unit::Seconds,
                measure: |stage| {
                    for _ in 0..50 {
                        stage.build("chain", &["--no-cache"])?;
                    }
                    stage.median_step("chain")
                },
            },
        ],
    },
    Group {
        peer: Peer::LeftOut("it has no such helper"),
        prepare: Lab::make_chain,
        setup: |stage| stage.build("chain", &[]).map(drop),
        steps: &[Step {
            name: "helper-memory",
            unit: Unit::Mebibytes,
            measure: |stage| stage.helper_memory(),
        }],
    },
    Group {
        peer: Peer::LeftOut("its executor is not to be had without its daemon"),
        prepare: |_| Ok(()),
        setup: |_| Ok(()),
        steps: &[Step { name: "bare-step", unit: Unit::Seconds, measure: |stage| stage.bare_step() }],
    },
    Group {
        peer: Peer::Able,
        prepare: Lab::make_fanout,
        setup: pull_base,
        steps: &[Step { name: "fanout30", unit: Unit::Seconds, measure: |stage| stage.build("fanout", &[]) }],
    },
    Group {
        peer: Peer::Able,
        prepare: Lab::make_small_files,
        setup: |_| Ok(()),
        steps: &[
            Step {
                name: "context20k-cold",
                unit: Unit::Seconds,
                measure: |stage| stage.build("context20k", &[]),
            },
            Step {
                name: "context20k-touch",
                unit: Unit::Seconds,
                measure: |stage| {
                    stage.lab.touch_small_file(&Stage::unique())?;
                    stage.build("context20k", &[])
                },
            },
        ],
    },
    Group {
        peer: Peer::Able,
        prepare: Lab::make_large_file,
        setup: |_| Ok(()),
        steps: &[
            Step { name: "copy512", unit: Unit::Seconds, measure: |stage| stage.build("copy512", &[]) },
            Step {
                name: "export-gzip",
                unit: Unit::Seconds,
                measure: |stage| stage.export("copy512", "gzip"),
            },
        ],
    },
    Group {
        peer: Peer::Able,
        prepare: Lab::make_large_file,
        setup: copy_large_file,
        steps: &[
            Step {
                name: "export-zstd",
                unit: Unit::Seconds,
                measure: |stage| stage.export("copy512", "zstd"),
            },
            // The layer is compressed already: this is the upload alone.
            Step {
                name: "push",
                unit: Unit::Seconds,
                measure: |stage| {
                    let name = stage.lab.image(&format!("push-{}", Stage::unique().trim().replace(' ', "-")));
                    let output = format!("--output=type=image,name={name},push=true,compression=zstd");
                    stage.build("copy512", &[&output])
                },
            },
        ],
    },
    Group {
        peer: Peer::Able,
        prepare: Lab::make_large_file,
        setup: copy_large_file,
        steps: &[Step {
            name: "export-uncompressed",
            unit: Unit::Seconds,
            measure: |stage| stage.export("copy512", "uncompressed"),
        }],
    },
    Group {
        peer: Peer::Able,
        prepare: Lab::make_large_image,
        setup: |_| Ok(()),
        steps: &[Step {
            name: "pull-cold",
            unit: Unit::Seconds,
            measure: |stage| stage.build("pull-large", &[]),
        }],
    },
    Group {
        peer: Peer::Able,
        prepare: Lab::make_chain,
        setup: |stage| stage.build("chain", &[]).map(drop),
        steps: &[Step {
            name: "dockerfile40-cached",
            unit: Unit::Seconds,
            measure: |stage| stage.median_dockerfile("chain", REPEATS),
        }],
    },
    graph_group!(Peer::Able, "chain200", Graph::Chain(200), "chain200-cached"),
    graph_group!(Peer::Able, "chain250", Graph::Chain(250), "chain250-cached"),
    graph_group!(Peer::MayFail, "chain1200", Graph::Chain(1200), "chain1200-cached"),
    graph_group!(Peer::Able, "tree100", Graph::Tree(100), "tree100-cached"),
    graph_group!(Peer::Able, "diamond10", Graph::Diamond(10), "diamond10-cached"),
    graph_group!(
        Peer::LeftOut("over 100 s at depth 18 already, with a daemon that cannot be stopped"),
        "diamond24",
        Graph::Diamond(24),
        "diamond24-cached"
    ),
    graph_group!(Peer::Able, "graph100", Graph::Forest(1), "graph100-cached"),
    graph_group!(Peer::MayFail, "graph1k", Graph::Forest(10), "graph1k-cached"),
    graph_group!(Peer::LeftOut(TOO_LARGE), "graph10k", Graph::Forest(101), "graph10k-cached"),
    linear_group!("linear-chain10", Graph::Chain(10), 10.0, "linear-chain10-cached"),
    linear_group!("linear-chain100", Graph::Chain(100), 100.0, "linear-chain100-cached"),
    linear_group!("linear-chain1000", Graph::Chain(1000), 1000.0, "linear-chain1000-cached"),
    linear_group!("linear-fan100", Graph::Fan(99), 100.0, "linear-fan100-cached"),
    linear_group!("linear-fan1000", Graph::Fan(999), 1000.0, "linear-fan1000-cached"),
    linear_group!("linear-fan10000", Graph::Fan(9_999), 10_000.0, "linear-fan10000-cached"),
    Group {
        peer: Peer::Able,
        prepare: Lab::make_layers,
        setup: |stage| stage.solve("merge30-layers", 1).map(drop),
        steps: &[
            Step {
                name: "merge30",
                unit: Unit::Seconds,
                measure: |stage| {
                    stage.note_disk()?;
                    stage.median_solve("merge30", 1)
                },
            },
            Step {
                name: "merge30-written",
                unit: Unit::Mebibytes,
                measure: |stage| Ok(stage.written()?.mebibytes()),
            },
            Step {
                name: "merge30-inodes",
                unit: Unit::Inodes,
                measure: |stage| Ok(stage.written()?.inodes as f64),
            },
            Step {
                name: "merge30-read",
                unit: Unit::Seconds,
                measure: |stage| stage.median_solve("merge30-read", 1),
            },
        ],
    },
    plan_group!("plan10k-wide", Graph::Fan(9_999), "plan10k-wide-memory"),
    plan_group!("plan10k-deep", Graph::Chain(9_999), "plan10k-deep-memory"),
    Group {
        peer: Peer::Able,
        prepare: |lab| lab.write_graph("pruned", Graph::Forest(10)),
        setup: |stage| stage.solve("pruned", 1).map(drop),
        steps: &[Step { name: "prune1k", unit: Unit::Seconds, measure: |stage| stage.prune() }],
    },
    Group {
        peer: Peer::LeftOut("what counts is the ratio of the two"),
        prepare: |lab| {
            lab.write_graph("pruned5k", Graph::Forest(50))?;
            lab.write_graph("beside", Graph::Chain(100))
        },
        setup: |stage| {
            stage.solve("pruned5k", 1)?;
            stage.solve("beside", 10).map(drop)
        },
        steps: &[
            Step { name: "p99", unit: Unit::Seconds, measure: |stage| stage.p99_solve("beside", MANY) },
            Step {
                name: "p99-pruning",
                unit: Unit::Seconds,
                measure: |stage| stage.p99_solve_while_pruning("beside", "description~=/t[0-9]"),
            },
        ],
    },
    Group {
        peer: Peer::LeftOut(OTHER_CATALOGUE),
        prepare: |lab| lab.fill(1_000_000),
        setup: |_| Ok(()),
        steps: &[
            Step {
                name: "startup1m",
                unit: Unit::Seconds,
                measure: |stage| stage.start_filled(1_000_000).map(|(took, _)| took),
            },
            Step {
                name: "startup1m-memory",
                unit: Unit::Mebibytes,
                measure: |stage| stage.start_filled(1_000_000).map(|(_, memory)| memory),
            },
        ],
    },
    cost_group!(1_000, "lookup1k", "insert1k", "collect1k"),
    cost_group!(10_000, "lookup10k", "insert10k", "collect10k"),
    cost_group!(100_000, "lookup100k", "insert100k", "collect100k"),
    cost_group!(1_000_000, "lookup1m", "insert1m", "collect1m"),
    Group {
        peer: Peer::Able,
        prepare: |lab| lab.write_graph("growth", Graph::Forest(1)),
        setup: |_| Ok(()),
        steps: &[Step {
            name: "growth1000",
            unit: Unit::Mebibytes,
            measure: |stage| {
                stage.solve("growth", 10)?;
                let before = stage.idle_memory()?;
                stage.solve("growth", 990)?;
                Ok(stage.idle_memory()? - before)
            },
        }],
    },
];

fn pull_base(stage: &Stage<'_>) -> Result<()> {
    stage.build("pull", &[]).map(drop)
}

fn copy_large_file(stage: &Stage<'_>) -> Result<()> {
    stage.build("copy512", &[]).map(drop)
}
