use kiln_llb::pb;

use crate::keys::op_key;
use crate::keys::selector::{ContentSelector, merged, without_children};

#[track_caller]
fn check(op: pb::op::Op, inputs: usize, want: &str) {
    let op = pb::Op { inputs: vec![pb::Input::default(); inputs], op: Some(op), ..Default::default() };
    assert_eq!(op_key(&op).unwrap().unwrap().digest.to_string(), want);
}

#[test]
fn ops_without_selectors() {
    let merge = pb::MergeOp { inputs: vec![pb::MergeInput { input: 0 }, pb::MergeInput { input: 1 }] };
    check(
        pb::op::Op::Merge(merge),
        2,
        "sha256:436287a2dc2ce494f564331be9ea3a9f27ebec398567877043da2f618f33d6c8",
    );
    let diff = pb::DiffOp {
        lower: Some(pb::LowerDiffInput { input: -1 }),
        upper: Some(pb::UpperDiffInput { input: 0 }),
    };
    check(
        pb::op::Op::Diff(diff),
        1,
        "sha256:f5284a0f1782a8c2cdb29841228c32706cbf04332ad37c3c7cb41659c6eeba0a",
    );
    let passthrough = pb::PassthroughOp { id: "id".to_owned(), outputs: vec![0] };
    check(
        pb::op::Op::Passthrough(passthrough),
        1,
        "sha256:a84e9ecc940f7258a8c5b1f52fad1ec28cd5d2b957b0599e15b66d62f8aed9d4",
    );
    let build = pb::BuildOp {
        builder: -1,
        inputs: [("buildkit.llb.definition".to_owned(), pb::BuildInput { input: 0 })].into(),
        ..Default::default()
    };
    check(
        pb::op::Op::Build(build),
        1,
        "sha256:00929a9b624b0e7bca3fbf329b26578f675f5628b7a65eac7a9e5ab63760603b",
    );
}

#[test]
fn children_of_other_paths_are_dropped() {
    let paths = |list: &[&str]| list.iter().map(|p| (*p).to_owned()).collect::<Vec<_>>();
    assert_eq!(without_children(paths(&["/b", "/a/c", "/a", "/ab"])), paths(&["/a", "/ab", "/b"]));
    assert_eq!(without_children(paths(&["/a", "/"])), paths(&["/"]));
    assert_eq!(without_children(paths(&["a", "a"])), paths(&["a"]));
    assert_eq!(without_children(paths(&["/x/"])), paths(&["/x/"]));
}

#[test]
fn filtered_selectors_are_kept_beside_plain_ones() {
    let plain = |path: &str| ContentSelector { path: path.to_owned(), ..Default::default() };
    let filtered = ContentSelector { include_patterns: vec!["*.c".to_owned()], ..plain("/a/b") };
    let got = merged(vec![filtered.clone(), plain("/a/b"), plain("/a")]);
    assert_eq!(got, [plain("/a"), filtered]);
}
