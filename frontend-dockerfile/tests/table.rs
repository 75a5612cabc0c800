//! Small cases of the reference that are not among the recorded ones, and cases of our own.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use kiln_frontend_dockerfile::testing::lower;
use serde_json::{Value, json};

/// The error of a build, or nothing.
fn error(dockerfile: impl AsRef<[u8]>, opts: &[(&str, &str)]) -> String {
    lower(dockerfile.as_ref(), opts).err().map(|error| error.chain()).unwrap_or_default()
}

#[track_caller]
fn check_error(dockerfile: impl AsRef<[u8]>, opts: &[(&str, &str)], want: &str) {
    let got = error(dockerfile, opts);
    assert!(got.contains(want) && got.is_empty() == want.is_empty(), "{got:?}");
}

/// A part of the metadata of a build or an answer.
fn metadata(dockerfile: &str, opts: &[(&str, &str)], key: &str) -> Value {
    let result = lower(dockerfile.as_bytes(), opts).unwrap();
    serde_json::from_slice(&result.metadata[key]).unwrap()
}

/// The ops of one kind, in no order.
fn ops(dockerfile: &str, opts: &[(&str, &str)], kind: &str) -> Vec<Value> {
    let opts = [opts, &[("requestid", "frontend.convertllb")]].concat();
    let answer = metadata(dockerfile, &opts, "result.json");
    answer["def"]
        .as_object()
        .unwrap()
        .values()
        .filter_map(|op| op["Op"].get(kind).or(op.get(kind)))
        .cloned()
        .collect()
}

#[track_caller]
fn check_exec(dockerfile: &str, opts: &[(&str, &str)], part: &str, want: &Value) {
    let execs = ops(dockerfile, opts, "exec");
    assert_eq!(execs.len(), 1, "{execs:?}");
    let exec = &execs[0];
    assert_eq!(exec.pointer(part).unwrap_or(&Value::Null), want, "{exec}");
}

#[test]
fn files_and_lines() {
    check_error("ARG A=1\n", &[], "dockerfile contains no stages to build");
    let script = json!(["/bin/sh", "-c", "echo  a"]);
    check_exec("# escape=`\nFROM busybox\nRUN echo `\n a\n", &[], "/meta/args", &script);
    check_exec("  # escape=`\nFROM busybox\nRUN echo `\n a\n", &[], "/meta/args", &script);
    check_error(format!("FROM scratch\nENV A={}\n", "a".repeat(65_529)), &[], "");
    check_error(
        format!("FROM scratch\nENV A={}\n", "a".repeat(65_530)),
        &[],
        "dockerfile line greater than max allowed size of 65535",
    );
    check_error(format!("FROM {}\n", "a".repeat(65_600)), &[], "file with no instructions");
    check_error(b"FROM busybox\nRUN echo \xff\n", &[], "string field contains invalid UTF-8");
    check_error("#!/usr/bin/x\n# syntax=nope/img:4\n", &[], "no frontend gateway.v0");
}

#[test]
fn configs() {
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let config = metadata("FROM scratch\nENV A=1\n", &[("platform", "linux/amd64")], "containerimage.config");
    let want = json!({
        "architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": null},
        "history": [{"created_by": "ENV A=1", "comment": "buildkit.dockerfile.v0", "empty_layer": true}],
        "config": {"Env": [path, "A=1"], "WorkingDir": "/"},
    });
    assert_eq!(config, want);
    let config = metadata("FROM scratch\nENV A=1\u{a0}B=2\n", &[], "containerimage.config");
    assert_eq!(config["config"]["Env"], json!([path, "A=1", "B=2"]));
    check_error(
        "FROM busybox\nENV A=1\n",
        &[("build-arg:SOURCE_DATE_EPOCH", "abc")],
        "invalid SOURCE_DATE_EPOCH: abc",
    );
    check_error(
        "# escape=`\nFROM scratch\nWORKDIR D:\\a\n",
        &[("platform", "windows/amd64")],
        "The specified path is not on the system drive (C:)",
    );
}

#[test]
fn steps() {
    check_exec(
        "ARG BUILDKIT_SBOM_SCAN_STAGE=true\nFROM busybox\nARG BUILDKIT_SBOM_SCAN_STAGE\nARG BUILDKIT_SBOM_SCAN_CONTEXT=true\nRUN c\n",
        &[],
        "/meta/env",
        &json!(["PATH=/bin", "A=b"]),
    );
    check_error(
        "FROM busybox\nRUN --mount=size=1m,type=tmpfs,target=/c x\n",
        &[],
        "unexpected key 'size' for mount type 'bind'",
    );
    let tmpfs = "FROM busybox\nRUN --mount=type=tmpfs,target=/c,size=1m x\n";
    let mounts = ops(tmpfs, &[], "exec")[0]["mounts"].clone();
    let mount = mounts.as_array().unwrap().iter().find(|mount| mount["dest"] == "/c").unwrap().to_string();
    for part in ["TMPFS", "1048576"] {
        assert!(mount.contains(part), "{mount}");
    }
    for (flags, want) in [
        ("target=/c", ["//c", "/c"]),
        ("target=d/", ["/d", "/d"]),
        ("id=q,target=/e,sharing=locked", ["/q", "LOCKED"]),
        ("target=/e,sharing=private,ro", ["//e", "PRIVATE"]),
    ] {
        let file = format!("FROM busybox\nRUN --mount=type=cache,{flags} a\n");
        let exec = ops(&file, &[], "exec")[0].to_string();
        assert!(want.iter().all(|part| exec.contains(&format!("\"{part}\""))), "{exec}");
    }
}

#[test]
fn copies() {
    let file = "FROM busybox\nWORKDIR /w\nCOPY a b/ ../c /x/\nCOPY a .\nCOPY a sub/.\nADD a x\n";
    let mut copies: Vec<String> = ops(file, &[], "file")
        .iter()
        .flat_map(|op| op["actions"].as_array().unwrap().clone())
        .filter_map(|action| {
            let copy = action.get("copy").or_else(|| action["Action"].get("copy"))?;
            let unpack = copy["attemptUnpackDockerCompatibility"] == json!(true);
            Some(format!("{} {} {unpack}", copy["src"].as_str().unwrap(), copy["dest"].as_str().unwrap()))
        })
        .collect();
    copies.sort();
    let want =
        ["/a /w/ false", "/a /w/sub/. false", "/a /w/x true", "/a /x/ false", "/b /x/ false", "/c /x/ false"];
    assert_eq!(copies, want);
    let digest = "a".repeat(64);
    check_error(
        format!("FROM busybox\nADD --checksum=sha256:{digest} local c\n"),
        &[],
        "checksum requires HTTP(S) or Git sources",
    );
}

#[test]
fn answers() {
    let file = "# x\n# foo is foo\n# bar\nFROM scratch AS FOO\n\n  # ind desc\nFROM --platform=$X foo AS ind\nFROM ind\n";
    let answer = metadata(file, &[("requestid", "frontend.targets")], "result.json");
    let line = |line: u32| json!({"ranges": [{"start": {"line": line}, "end": {"line": line}}]});
    let want = json!([
        {"name": "foo", "description": "is foo", "base": "scratch", "location": line(4)},
        {"name": "ind", "base": "foo", "platform": "$X", "location": line(7)},
        {"default": true, "base": "ind", "location": line(8)},
    ]);
    assert_eq!(answer["targets"], want);
    let lint = metadata(
        "FROM --platform=linux/arm64 busybox AS x_arm64\n",
        &[("requestid", "frontend.lint")],
        "result.json",
    );
    assert_eq!(
        lint["warnings"][0]["detail"],
        "Base image busybox was pulled with platform \"linux/amd64\", expected \"linux/arm64\" for current build"
    );
}

/// Places are lists of lines, one for each.
#[track_caller]
fn check_place(dockerfile: &str, opts: &[(&str, &str)], want: &str, lines: &[&[i32]]) {
    let error = lower(dockerfile.as_bytes(), opts).unwrap_err();
    assert!(error.chain().contains(want), "{}", error.chain());
    let line = |range: &kiln_frontend::pb::Range| range.start.as_ref().map_or(0, |start| start.line);
    let places: Vec<Vec<i32>> =
        error.sources().iter().map(|source| source.ranges.iter().map(line).collect()).collect();
    assert_eq!(places, lines, "{}", error.chain());
}

#[test]
fn mistakes_are_placed_and_corrected() {
    let one: &[&[i32]] = &[&[2]];
    check_place("FROM scratch\nCOYP a b\n", &[], "unknown instruction: COYP (did you mean COPY?)", one);
    check_place("FROM scratch\nCOPY --form=x a b\n", &[], "unknown flag: --form (did you mean from?)", one);
    check_place(
        "FROM scratch\nRUN --mount=type=bind,scource=a,target=/b x\n",
        &[],
        "unexpected key 'scource' in 'scource=a' (did you mean source?)",
        one,
    );
    check_place(
        "FROM scratch\nRUN --mount=type=cahe,target=/b x\n",
        &[],
        "unsupported mount type \"cahe\" (did you mean cache?)",
        one,
    );
    check_place(
        "FROM scratch\nRUN --mount=type=cache,target=/b,sharing=lock x\n",
        &[],
        "unsupported sharing value \"lock\" (did you mean locked?)",
        one,
    );
    check_place(
        "FROM scratch\nRUN --netwrok=none x\n",
        &[],
        "unknown flag: --netwrok (did you mean network?)",
        one,
    );
    check_place("FROM scratch\nENV A=1 \\\n  B=${\n", &[], "syntax error", &[&[2, 3]]);
    check_place("FROM scratch\nCOPY <<E /a\nx\n", &[], "unterminated heredoc", &[&[2, 3]]);
    check_place(
        "FROM scratch AS a\nCOPY --from=b / /\nFROM scratch AS b\nCOPY --from=a / /\n",
        &[],
        "circular dependency detected on stage: a",
        &[&[2], &[4]],
    );
    check_place("FROM scratch AS release\n", &[("target", "relaese")], "(did you mean release?)", &[]);
}
