//! Definitions recorded from the reference: decoding, rendering, canonical bytes, digests.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::fs;
use std::path::Path;

use kiln_llb::{Message, Schema, VertexDigest, canonical_op, is_canonical_op, marshal_op, pb, render};
use kiln_vectors::Vectors;
use prost::Message as _;
use serde_json::Value;

fn each_case(mut check: impl FnMut(&str, &pb::Definition, &Value)) {
    let mut vectors = Vectors::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/llb"));
    for entry in fs::read_dir(vectors.dir()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "pb") {
            continue;
        }
        let name = path.file_stem().unwrap().to_str().unwrap();
        vectors.check(name, || {
            let definition = pb::Definition::decode(fs::read(&path).unwrap().as_slice()).unwrap();
            let json = serde_json::from_slice(&fs::read(path.with_extension("json")).unwrap()).unwrap();
            check(name, &definition, &json);
            Ok(())
        });
    }
    vectors.finish(139);
}

#[test]
fn ops_render_and_encode_as_recorded() {
    each_case(|name, definition, want| {
        let none = Vec::new();
        let ops = want["ops"].as_array().unwrap_or(&none);
        assert_eq!(definition.def.len(), ops.len(), "{name}");
        for (bytes, want) in definition.def.iter().zip(ops) {
            let digest = VertexDigest::of(bytes).to_string();
            assert_eq!(digest, want["digest"].as_str().unwrap(), "{name}");
            let Some(want_op) = want.get("op") else {
                assert!(canonical_op(bytes).is_err(), "{name}");
                continue;
            };
            let raw = Message::decode(Schema::llb(), "pb.Op", bytes).unwrap();
            assert_eq!(render::message(&raw).unwrap(), *want_op, "{name}");
            let canonical = canonical_op(bytes).unwrap();
            let is_canonical = want.get("canonical") != Some(&Value::Bool(false));
            assert_eq!(canonical == *bytes, is_canonical, "{name}");
            assert_eq!(canonical_op(&canonical).unwrap(), canonical, "{name}");
            if is_canonical && !want_op.to_string().contains("(unknown)") {
                let typed = pb::Op::decode(bytes.as_slice()).unwrap();
                assert_eq!(marshal_op(&typed).unwrap(), *bytes, "{name}");
            }
            let metadata = definition.metadata.get(&digest).map(|metadata| {
                render::message(&Message::of(Schema::llb(), "pb.OpMetadata", metadata).unwrap()).unwrap()
            });
            assert_eq!(metadata.as_ref(), want.get("metadata"), "{name}");
        }
        let source = definition.source.as_ref().map(|source| {
            render::message(&Message::of(Schema::llb(), "pb.Source", source).unwrap()).unwrap()
        });
        if want.get("source").is_some() {
            assert_eq!(source.as_ref(), want.get("source"), "{name}");
        }
    });
}

#[test]
fn canonical_bytes_are_told_from_others() {
    let check = |bytes: &[u8]| {
        // Who is taken for canonical is; that the others are not is only a matter of time.
        if is_canonical_op(bytes) {
            assert_eq!(canonical_op(bytes).ok().as_deref(), Some(bytes));
        }
    };
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/llb");
    let mut canonical = 0;
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "pb") {
            continue;
        }
        let definition = pb::Definition::decode(fs::read(&path).unwrap().as_slice()).unwrap();
        for bytes in &definition.def {
            let unknown = canonical_op(bytes).is_ok_and(|again| again == *bytes) && !is_canonical_op(bytes);
            assert!(!unknown || path.to_string_lossy().contains("unknown"), "{}", path.display());
            canonical += usize::from(is_canonical_op(bytes));
            check(bytes);
            for at in 0..bytes.len() {
                for flip in [0x01, 0x02, 0x08, 0x10, 0x80, 0xff] {
                    let mut damaged = bytes.clone();
                    damaged[at] ^= flip;
                    check(&damaged);
                }
                check(&[&bytes[..at], &bytes[at + 1..]].concat());
                check(&[&bytes[..at], &bytes[at..=at], &bytes[at..]].concat());
            }
        }
    }
    assert!(canonical > 300, "{canonical}");
}
