//! What vertices say of themselves besides their op: names, rights, capabilities, places in the input.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result};
use kiln_llb::pb;
use kiln_llb::state::{Constraints, Copy, FileActions, SourceLocation, State, VertexMeta};

use super::{Raw, base, file, marshal, shell};
use crate::support::{Site, check_contains, check_outcomes};

/// Metadata of a vertex that was made from one line of a file.
fn line(line: i32) -> VertexMeta {
    let data = b"first line\nsecond line\nthird line\n".to_vec();
    let info = pb::SourceInfo { filename: "recipe".into(), data, ..pb::SourceInfo::default() };
    let position = pb::Position { line, character: 0 };
    let range = pb::Range { start: Some(position), end: Some(position) };
    VertexMeta {
        locations: vec![SourceLocation { file: Arc::new(info), ranges: vec![range] }],
        ..VertexMeta::default()
    }
}

#[test]
fn errors_say_where_in_the_input_it_happened() -> Result<()> {
    let site = Site::new(&[])?;
    let base = base()?;
    let copy = FileActions::new().copy(&file("a", "a"), "/not-there", "/", Copy::default());
    let states = [
        (base.run(shell("exit 5").meta(line(2))).root(), "exit code: 5"),
        (base.file(copy.meta(line(2))), "/not-there"),
        (base.run(shell("true").process(|m| m.args = vec!["/none".into()]).meta(line(2))).root(), "/none"),
        (State::source(kiln_llb::state::Source::http("https://example.com/x").meta(line(2))), "http"),
        (
            base.run(shell("true").confine(pb::NetMode::Host, pb::SecurityMode::Sandbox).meta(line(2)))
                .root(),
            "network.host is not allowed",
        ),
    ];
    for (state, want) in states {
        let failed = site.fails(&state, &[])?;
        check_contains(&failed, &[want, "recipe:2", "   2 | >>> second line"]);
    }
    // The same for ops that do not load, and for combinations that have no result.
    for (op, want) in [
        (pb::op::Op::File(pb::FileOp::default()), "invalid file op with no actions"),
        (pb::op::Op::Merge(pb::MergeOp { inputs: Vec::new() }), "0 results received"),
    ] {
        let (mut raw, inputs) = Raw::new(&[&file("a", "a")])?;
        let is_merge = matches!(op, pb::op::Op::Merge(_));
        let bad = raw.add(if is_merge { &[] } else { &inputs }, op)?;
        let mut definition = raw.finish(&bad)?;
        let at = line(3).locations.remove(0);
        let place = pb::Location { source_index: 0, ranges: at.ranges };
        definition.source = Some(pb::Source {
            locations: BTreeMap::from([(bad.digest.clone(), pb::Locations { locations: vec![place] })]),
            infos: vec![(*at.file).clone()],
        });
        let failed = site.solve(&definition, &[])?.failure()?;
        check_contains(&failed.stderr, &[want, "recipe:3", "   3 | >>> third line"]);
    }
    Ok(())
}

#[test]
fn capabilities_that_are_not_there_are_named() -> Result<()> {
    let site = Site::new(&[])?;
    for (cap, want) in [
        ("no.such.cap", "unknown API capability no.such.cap"),
        ("file.copy.modestring", "unknown API capability file.copy.modestring"),
        ("exec.meta.network.proxy", "the proxy network is not supported yet"),
        ("source.git.bundle", "git bundles are not supported yet"),
    ] {
        let mut definition = marshal(&file("a", "a"))?;
        let digest = kiln_llb::VertexDigest::of(definition.def.first().context("no op")?).to_string();
        // Asked for is what is named, whatever its value.
        definition.metadata.entry(digest).or_default().caps.insert(cap.to_owned(), false);
        let failed = site.solve(&definition, &[])?.failure()?;
        check_contains(&failed.stderr, &["failed to load LLB", want]);
    }
    let every = kiln_llb::caps::LLB.all().iter().map(|cap| cap.id);
    let known = [
        "source.git.bundle",
        "source.git.checkoutbundle",
        "source.git.signatureverify",
        "source.http.signatureverify",
        "cache.",
        "exec.meta.network.proxy",
        "exporter.image.attestations",
        "source.imageblob",
        "source.policy",
    ];
    let mut definition = marshal(&file("a", "a"))?;
    let digest = kiln_llb::VertexDigest::of(definition.def.first().context("no op")?).to_string();
    let caps = &mut definition.metadata.entry(digest).or_default().caps;
    caps.extend(every.filter(|id| !known.iter().any(|k| id.starts_with(k))).map(|id| (id.to_owned(), true)));
    site.definition(&definition, &[])?;
    Ok(())
}

#[test]
fn sources_that_are_not_there_yet_are_named() -> Result<()> {
    let site = Site::new(&[])?;
    for (identifier, want) in [
        (
            "docker-image+blob://example.com/x@sha256:0",
            "source scheme `docker-image+blob` is not supported yet",
        ),
        ("nonsense://x", "unknown scheme nonsense"),
        ("nonsense", "failed to parse nonsense"),
    ] {
        let (mut raw, _) = Raw::new(&[])?;
        let op = pb::SourceOp { identifier: identifier.into(), attrs: BTreeMap::new() };
        let edge = raw.add(&[], pb::op::Op::Source(op))?;
        check_contains(&site.solve(&raw.finish(&edge)?, &[])?.failure()?.stderr, &[want]);
    }
    Ok(())
}

#[test]
fn names_groups_and_constraints_change_no_result() -> Result<()> {
    let site = Site::new(&[])?;
    let group = pb::ProgressGroup { id: "g".into(), name: "the group".into(), weak: false };
    let meta = |n: &str| VertexMeta {
        progress_group: Some(group.clone()),
        export_cache: Some(false),
        filter: vec!["platform==linux/other".into()],
        ..VertexMeta::named(format!("step {n}"))
    };
    let state = base()?.run(shell("echo 1 > /out").meta(meta("one"))).root();
    let first = site.llb(&state, &[])?;
    check_contains(&first.log, &["the group"]);
    let again = site.solve(&marshal(&state)?, &[])?.success()?;
    check_outcomes(&again.stderr, &[("the group", "CACHED")]);
    // The whole graph again, and then nothing is looked up.
    let uncached = site.solve(&marshal(&state)?, &["--no-cache"])?.success()?;
    check_outcomes(&uncached.stderr, &[("the group", "DONE")]);
    let constraints = Constraints { filter: vec!["id==x".into()], ..Constraints::default() };
    site.definition(&state.marshal(&constraints)?, &[])?;
    Ok(())
}

#[test]
fn no_more_processes_run_at_once_than_the_daemon_allows() -> Result<()> {
    let config = "[worker.oci]\n  max-parallelism = 1\n".to_owned();
    let site = Site::with_options(&[], kiln_tests::DaemonOptions { config, ..Default::default() })?;
    let id = crate::support::unique()?;
    let options = kiln_llb::state::MountOptions {
        cache: Some((id, pb::CacheSharingOpt::Shared)),
        ..Default::default()
    };
    let script =
        |n: usize| format!("mkdir /c/busy || exit 9; : {n}; for i in $(seq 2000); do :; done; rmdir /c/busy");
    let base = base()?;
    let step = |n| base.run(shell(&script(n)).mount("/c", &State::scratch(), options.clone())).root();
    let all = State::merge((0..6).map(step), VertexMeta::default());
    site.solve(&marshal(&all)?, &[])?.success()?;
    Ok(())
}
