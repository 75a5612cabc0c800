//! Graphs that are deep or wide.

use anyhow::Result;
use kiln_llb::state::{FileActions, State, VertexMeta};
use prost::Message as _;

use super::{file, marshal, shell};
use crate::support::{Image, Site, check_contains, check_outcomes, run};

fn merge(states: impl IntoIterator<Item = State>) -> State {
    State::merge(states, VertexMeta::default())
}

fn with(state: &State, name: String) -> State {
    state.file(FileActions::new().mkfile(&name, 0o644, name.as_str()))
}

fn count(dir: &std::path::Path) -> Result<usize> {
    Ok(std::fs::read_dir(dir)?.count())
}

#[test]
fn chains_go_on_past_the_layers_that_a_kernel_stacks() -> Result<()> {
    let site = Site::new(&[])?;
    let chain = (0..1200).fold(State::scratch(), |state, n| with(&state, format!("f{n}")));
    let built = site.llb(&chain, &[])?;
    assert_eq!(count(built.path())?, 1200);
    // A process over it, and a merge of it with itself and another.
    let ran = super::base()?.file(FileActions::new().mkdir("/all", 0o755, true));
    let ran = merge([ran, chain.clone(), chain.clone(), file("last", "last")]);
    let ran = ran.run(shell("ls / | grep -c '^f[0-9]' > /out; rm /f7; cat /last >> /out")).root();
    let built = site.llb(&ran, &[])?;
    assert_eq!(built.read("out")?, "1200\nlast");
    assert!(!built.path().join("f7").exists());
    Ok(())
}

#[test]
fn images_of_many_layers_can_be_exported() -> Result<()> {
    let site = Site::new(&[])?;
    let chain = (0..600).fold(State::scratch(), |state, n| with(&state, format!("f{n}")));
    let dir = tempfile::tempdir()?;
    let archive = dir.path().join("image.tar");
    let output = format!("--output=type=oci,dest={}", archive.display());
    site.solve(&marshal(&chain)?, &[&output])?.success()?;
    let image = Image::copy(tempfile::tempdir()?, &format!("oci-archive:{}", archive.display()))?;
    let layers = image.manifest()?["layers"].as_array().map_or(0, Vec::len);
    assert_eq!(layers, 600);
    Ok(())
}

#[test]
fn diamonds_of_merges_cost_what_they_have_vertices() -> Result<()> {
    let site = Site::new(&[])?;
    let mut top = file("bottom", "");
    for level in 0..24 {
        let (x, y) = (with(&top, format!("x{level}")), with(&top, format!("y{level}")));
        top = merge([x, y]);
        top = merge([top.clone(), top]);
    }
    assert_eq!(count(site.llb(&top, &[])?.path())?, 49);
    let snapshots = site.daemon.root().join("kiln/snapshots/committed");
    assert_eq!(run("ls", &[&snapshots.display().to_string()])?.lines().count(), 49);
    Ok(())
}

/// Files of so many bytes each, one made on top of the other.
fn files(sizes: impl IntoIterator<Item = usize>) -> State {
    sizes.into_iter().enumerate().fold(State::scratch(), |state, (n, size)| {
        let mut text = format!("{n:015}\n").repeat(size / 16 + 1);
        text.truncate(size);
        state.file(FileActions::new().mkfile(&format!("/f{n}"), 0o644, text))
    })
}

#[test]
fn definitions_are_as_large_as_the_daemon_takes_them() -> Result<()> {
    const MIB: usize = 1 << 20;
    let site = Site::new(&[])?;
    // The reference takes 16 MiB.
    let definition = marshal(&files([MIB; 20]))?;
    assert!(definition.encoded_len() > 20 * MIB);
    let built = site.definition(&definition, &[])?;
    for n in 0..20 {
        let text = built.read(&format!("f{n}"))?;
        assert!(text.len() == MIB && text.ends_with(&format!("{n:015}\n")), "file {n}");
    }
    check_outcomes(&site.solve(&definition, &[])?.success()?.stderr, &[("mkfile /f19", "CACHED")]);
    let failed = site.solve(&marshal(&files([MIB; 65]))?, &[])?.failure()?;
    check_contains(&failed.stderr, &["the definition is larger than 64 MiB, the most that a daemon takes"]);
    // With what else is in a request this one is a little more than the daemon takes, and the daemon says so.
    let sizes = |last| std::iter::repeat_n(MIB, 63).chain([last]);
    let rest = marshal(&files(sizes(MIB / 2)))?.encoded_len();
    let nearly = marshal(&files(sizes(64 * MIB - 20 - rest + MIB / 2)))?;
    assert!((64 * MIB - 40..64 * MIB).contains(&nearly.encoded_len()), "{}", nearly.encoded_len());
    let failed = site.solve(&nearly, &[])?.failure()?;
    check_contains(&failed.stderr, &["message length too large", "the limit is: 67108864 bytes"]);
    site.llb(&files([MIB]), &[])?;
    Ok(())
}
