//! The scenarios.

use anyhow::Result;

use super::lab::Lab;
use super::stage::Stage;

/// Scenarios that follow each other on one fresh daemon.
pub(super) struct Group {
    /// Makes what the group needs in the lab, before anything is measured.
    pub(super) prepare: fn(&mut Lab) -> Result<()>,
    /// Brings a fresh daemon to the state in which the first scenario begins.
    pub(super) setup: fn(&Stage<'_>) -> Result<()>,
    /// In the order in which they run.
    pub(super) steps: &'static [Step],
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
}

impl Unit {
    /// With the digits that matter.
    pub(super) fn show(self, value: f64) -> String {
        match self {
            Self::Seconds if value < 1.0 => format!("{:.1} ms", value * 1e3),
            Self::Seconds => format!("{value:.2} s"),
            Self::Mebibytes => format!("{value:.1} MiB"),
        }
    }
}

/// All of them.
pub(super) const GROUPS: &[Group] = &[
    Group {
        prepare: |_| Ok(()),
        setup: |_| Ok(()),
        steps: &[
            Step { name: "startup", unit: Unit::Seconds, measure: |stage| Ok(stage.startup) },
            Step { name: "idle-memory", unit: Unit::Mebibytes, measure: |stage| stage.idle_memory() },
        ],
    },
    Group {
        prepare: Lab::make_chain,
        setup: pull_base,
        steps: &[
            Step { name: "chain40", unit: Unit::Seconds, measure: |stage| stage.build("chain", &[]) },
            Step { name: "chain40-cached", unit: Unit::Seconds, measure: |stage| stage.build("chain", &[]) },
            Step { name: "idle-memory-used", unit: Unit::Mebibytes, measure: |stage| stage.idle_memory() },
        ],
    },
    Group {
        prepare: Lab::make_fanout,
        setup: pull_base,
        steps: &[Step { name: "fanout30", unit: Unit::Seconds, measure: |stage| stage.build("fanout", &[]) }],
    },
    Group {
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
        prepare: Lab::make_large_file,
        setup: copy_large_file,
        steps: &[Step {
            name: "export-uncompressed",
            unit: Unit::Seconds,
            measure: |stage| stage.export("copy512", "uncompressed"),
        }],
    },
    Group {
        prepare: Lab::make_large_image,
        setup: |_| Ok(()),
        steps: &[Step {
            name: "pull-cold",
            unit: Unit::Seconds,
            measure: |stage| stage.build("pull-large", &[]),
        }],
    },
];

fn pull_base(stage: &Stage<'_>) -> Result<()> {
    stage.build("pull", &[]).map(drop)
}

fn copy_large_file(stage: &Stage<'_>) -> Result<()> {
    stage.build("copy512", &[]).map(drop)
}
