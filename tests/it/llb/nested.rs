//! Builds within builds.

use std::collections::BTreeMap;

use anyhow::Result;
use kiln_llb::pb;
use kiln_llb::pb::op::Op as Kind;
use kiln_llb::state::{FileActions, State};
use prost::Message as _;

use super::{Raw, base, file, marshal, shell, uncached};
use crate::support::{Site, check_contains};

const INPUT: &str = "buildkit.llb.definition";

fn build_op(attrs: &[(&str, &str)]) -> Kind {
    Kind::Build(pb::BuildOp {
        builder: -1,
        inputs: BTreeMap::from([(INPUT.to_owned(), pb::BuildInput { input: 0 })]),
        attrs: attrs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        ..pb::BuildOp::default()
    })
}

/// A state with a definition in a file.
fn holding(name: &str, definition: &pb::Definition) -> State {
    State::scratch().file(FileActions::new().mkfile(name, 0o600, definition.encode_to_vec()))
}

/// The definition that builds what `state` holds.
fn around(state: &State, op: Kind) -> Result<pb::Definition> {
    let (mut raw, inputs) = Raw::new(&[state])?;
    let built = raw.add(&inputs, op)?;
    raw.finish(&built)
}

#[test]
fn a_definition_in_a_file_is_built() -> Result<()> {
    let site = Site::new(&[])?;
    let inner = marshal(&base()?.run(shell("echo from within > /out")).root())?;
    let built = site.definition(&around(&holding(INPUT, &inner), build_op(&[]))?, &[])?;
    assert_eq!(built.read("out")?, "from within\n");
    check_contains(&built.log, &["echo from within > /out"]);
    let named = around(&holding("other", &inner), build_op(&[("llbbuild.filename", "other")]))?;
    let again = site.definition(&named, &[])?;
    assert_eq!(again.read("out")?, "from within\n");
    // Another layer of it, and a step on top, which shares its digest with the step further in.
    let twice = around(&holding(INPUT, &named), build_op(&[]))?;
    assert_eq!(site.definition(&twice, &[])?.read("out")?, "from within\n");
    Ok(())
}

#[test]
fn what_fails_within_is_reported_as_its_own() -> Result<()> {
    let site = Site::new(&[])?;
    let inner = marshal(&base()?.run(shell("echo said; exit 7").meta(uncached())).root())?;
    let failed = site.solve(&around(&holding(INPUT, &inner), build_op(&[]))?, &[])?.failure()?;
    check_contains(&failed.stderr, &["did not complete successfully: exit code: 7", "said"]);

    let good = holding(INPUT, &marshal(&file("a", "a"))?);
    let builder = |change: fn(&mut pb::BuildOp)| {
        let Kind::Build(mut op) = build_op(&[]) else { unreachable!("it is one") };
        change(&mut op);
        Kind::Build(op)
    };
    let text = State::scratch().file(FileActions::new().mkfile(INPUT, 0o600, "no definition"));
    let directory = State::scratch().file(FileActions::new().mkdir(INPUT, 0o755, false));
    let empty = holding(INPUT, &pb::Definition::default());
    for (state, op, want) in [
        (&good, builder(|op| op.builder = 0), "only LLB builder is currently allowed"),
        (&good, builder(|op| op.inputs.clear()), "no llb definition input buildkit.llb.definition found"),
        (
            &good,
            builder(|op| op.inputs.values_mut().for_each(|i| i.input = 5)),
            "invalid build input index 5",
        ),
        (&good, build_op(&[("llbbuild.filename", "missing")]), "definition file `missing` is not there"),
        (&text, build_op(&[]), "is no LLB"),
        (&directory, build_op(&[]), "is no regular file"),
        (&empty, build_op(&[]), "invalid empty definition"),
    ] {
        let failed = site.solve(&around(state, op)?, &[])?.failure()?;
        check_contains(&failed.stderr, &["error: failed to solve", want]);
    }
    Ok(())
}

#[test]
fn a_build_that_holds_itself_ends_with_an_error() -> Result<()> {
    let site = Site::new(&[])?;
    let definition = around(&State::local("context"), build_op(&[]))?;
    std::fs::write(site.context().join(INPUT), definition.encode_to_vec())?;
    let local = format!("--local=context={}", site.context().display());
    let failed = site.solve(&definition, &[&local])?.failure()?;
    check_contains(&failed.stderr, &["builds are nested deeper than 16"]);
    // And the daemon goes on.
    site.llb(&file("a", "a"), &[])?;
    Ok(())
}

#[test]
fn a_build_within_ends_with_its_client() -> Result<()> {
    let site = Site::new(&[])?;
    let mark = crate::support::unique()?;
    let inner =
        marshal(&base()?.run(shell(&format!("echo be''gun; while :; do sleep 1; : {mark}; done"))).root())?;
    let definition = around(&holding(INPUT, &inner), build_op(&[]))?;
    let client = crate::support::Client::start(&mut site.llb_command(&definition, &[])?)?;
    client.wait_for("begun")?;
    client.kill()?;
    let gone = || crate::support::processes_with(&mark).is_ok_and(|found| found.is_empty());
    kiln_tests::wait_for("the step to end", crate::support::LIMIT, None, gone)
}
