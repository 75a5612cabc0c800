//! States out of states: merge, diff, passthrough.

use anyhow::Result;
use expect_test::expect;
use kiln_llb::pb;
use kiln_llb::pb::op::Op as Kind;
use kiln_llb::state::{FileActions, State, VertexMeta};

use super::{Raw, base, file, output, shell};
use crate::support::{Site, check_contains, same_tree};

fn merge(states: &[&State]) -> State {
    State::merge(states.iter().map(|state| (*state).clone()), VertexMeta::default())
}

fn diff(lower: &State, upper: &State) -> State {
    State::diff(lower, upper, VertexMeta::default())
}

fn with(state: &State, name: &str, text: &str) -> State {
    state.file(FileActions::new().mkfile(name, 0o644, text))
}

#[test]
fn later_states_win_and_deletions_delete() -> Result<()> {
    let site = Site::new(&[])?;
    let a = with(&file("same", "a").file(FileActions::new().mkdir("/dir", 0o755, true)), "/dir/a", "a");
    let b = with(&file("same", "b").file(FileActions::new().mkdir("/dir", 0o700, true)), "/dir/b", "b");
    let without = a.file(FileActions::new().remove("/dir", false, false));
    let merged = merge(&[&a, &b, &diff(&a, &without), &file("dir2", "now a file")]);
    expect![[r#"
        -0644 0:0 dir2 "now a file"
        -0644 0:0 same "b"
    "#]]
    .assert_eq(&site.llb(&merged, &[])?.tree()?);
    expect![[r#"
        d0700 0:0 dir/
        -0644 0:0 dir/a "a"
        -0644 0:0 dir/b "b"
        -0644 0:0 same "b"
    "#]]
    .assert_eq(&site.llb(&merge(&[&a, &b]), &[])?.tree()?);
    Ok(())
}

#[test]
fn a_difference_put_on_its_lower_state_is_its_upper_state() -> Result<()> {
    let site = Site::new(&[])?;
    let base = base()?;
    let left = base.run(shell("echo left > /left; rm /etc/group; mkdir -p /d/e; echo 1 > /d/e/f")).root();
    let child = left.run(shell("rm -r /d; echo file > /d; chmod 700 /etc; ln -s x /l")).root();
    let right = base.run(shell("echo right > /right; mkdir /d; touch /d/g; chown 5 /etc/passwd")).root();
    let stranger = with(&file("own", "own"), "right", "another");
    // Built on it, beside it, below it, and on nothing in common.
    for (lower, upper) in
        [(&left, &child), (&left, &right), (&child, &left), (&right, &stranger), (&stranger, &right)]
    {
        let again = merge(&[lower, &diff(lower, upper)]);
        let (got, want) = (site.llb(&again, &[])?, site.llb(upper, &[])?);
        same_tree(got.path(), want.path())?;
    }
    // What both have is not in it.
    expect![[r#"
        d0755 0:0 d/
        -0644 0:0 d/g ""
        d0755 0:0 etc/
        -0644 0:0 etc/group "root:x:0:\nnogroup:x:65534:\napp:x:1000:\nextra:x:2000:app\n"
        -0644 5:0 etc/passwd "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\napp:x:1000:1000::/home/app:/bin/sh\n"
        -0644 0:0 right "right\n"
    "#]]
    .assert_eq(&site.llb(&diff(&left, &right), &[])?.tree()?);
    Ok(())
}

#[test]
fn empty_sides_of_a_difference() -> Result<()> {
    let site = Site::new(&[])?;
    let some = with(&file("a", "a"), "b", "b");
    let solve = |op: pb::DiffOp, wraps: bool| -> Result<String> {
        let (mut raw, inputs) = Raw::new(&[&some])?;
        let sides = [op.lower.map(|l| l.input), op.upper.map(|u| u.input)].into_iter().flatten();
        let sides = sides.filter(|side| *side >= 0).map(|_| inputs[0].clone());
        let made = raw.add(&sides.collect::<Vec<_>>(), Kind::Diff(op))?;
        if !wraps {
            return site.definition(&raw.finish(&made)?, &[])?.tree();
        }
        let merged = pb::MergeOp { inputs: vec![pb::MergeInput { input: 0 }, pb::MergeInput { input: 1 }] };
        let top = raw.add(&[inputs[0].clone(), made], Kind::Merge(merged))?;
        site.definition(&raw.finish(&top)?, &[])?.tree()
    };
    let sides = |lower, upper| pb::DiffOp {
        lower: Some(pb::LowerDiffInput { input: lower }),
        upper: Some(pb::UpperDiffInput { input: upper }),
    };
    // From nothing it is the whole of the upper state; to nothing it deletes all of the lower one.
    assert_eq!(solve(sides(-1, 0), false)?, "-0644 0:0 a \"a\"\n-0644 0:0 b \"b\"\n");
    assert_eq!(solve(sides(0, -1), true)?, "");
    // Of one and the same there is no difference, which a merge passes over.
    assert_eq!(solve(sides(0, 1), true)?, "-0644 0:0 a \"a\"\n-0644 0:0 b \"b\"\n");
    Ok(())
}

#[test]
fn passthrough_hands_on_inputs_by_output() -> Result<()> {
    let site = Site::new(&[])?;
    let (mut raw, inputs) = Raw::new(&[&file("a", "a"), &file("b", "b")])?;
    let op = pb::PassthroughOp { id: "x".into(), outputs: vec![1, 0, 1] };
    let passed = raw.add(&inputs, Kind::Passthrough(op))?;
    for (index, want) in [(0, "b"), (1, "a"), (2, "b")] {
        let definition = Raw { definition: raw.definition.clone() }.finish(&output(&passed, index))?;
        assert_eq!(site.definition(&definition, &[])?.read(want)?, want);
    }
    for (op, want) in [
        (pb::PassthroughOp { id: String::new(), outputs: vec![0] }, "invalid passthrough op with no id"),
        (pb::PassthroughOp { id: "x".into(), outputs: vec![] }, "invalid passthrough op with no outputs"),
        (pb::PassthroughOp { id: "x".into(), outputs: vec![2] }, "invalid passthrough output input index 2"),
    ] {
        let (mut raw, inputs) = Raw::new(&[&file("a", "a"), &file("b", "b")])?;
        let passed = raw.add(&inputs, Kind::Passthrough(op))?;
        let failed = site.solve(&raw.finish(&passed)?, &[])?.failure()?;
        check_contains(&failed.stderr, &[want]);
    }
    Ok(())
}

#[test]
fn a_merge_of_nothing_has_no_result() -> Result<()> {
    let site = Site::new(&[])?;
    let (mut raw, inputs) = Raw::new(&[&file("a", "a")])?;
    let same = pb::DiffOp {
        lower: Some(pb::LowerDiffInput { input: 0 }),
        upper: Some(pb::UpperDiffInput { input: 1 }),
    };
    let nothing = raw.add(&[inputs[0].clone(), inputs[0].clone()], Kind::Diff(same))?;
    let merged = pb::MergeOp { inputs: vec![pb::MergeInput { input: 0 }] };
    let merged = raw.add(&[nothing], Kind::Merge(merged))?;
    let failed = site.solve(&raw.finish(&merged)?, &[])?.failure()?;
    check_contains(&failed.stderr, &["0 results received"]);
    Ok(())
}
