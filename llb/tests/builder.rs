//! Graphs built here have the digests that the reference's client gave them.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use kiln_llb::pb;
use kiln_llb::state::{
    ChownTo, Constraints, Copy, Exec, FileActions, MountOptions, Owner, SecretFile, Source, SshSocket, State,
    VertexMeta,
};
use prost::Message as _;

const TIME: i64 = 1_577_934_245_000_000_000;

fn constraints() -> Constraints {
    let platform = pb::Platform { architecture: "amd64".into(), os: "linux".into(), ..Default::default() };
    Constraints { platform, ..Constraints::default() }
}

#[track_caller]
fn check(name: &str, state: &State) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/llb").join(name).with_extension("pb");
    let want = pb::Definition::decode(fs::read(path).unwrap().as_slice()).unwrap();
    let got = state.marshal(&constraints()).unwrap();
    let text = |d: &pb::Definition| kiln_llb::render::json_lines(d).unwrap();
    let sorted = |d: &pb::Definition| {
        let mut ops = d.def.clone();
        ops.sort();
        ops
    };
    assert_eq!(sorted(&got), sorted(&want), "{name}\n{}\n{}", text(&got), text(&want));
    assert_eq!(got.def.last(), want.def.last(), "{name}");
    assert_eq!(got.metadata, want.metadata, "{name}");
}

fn base() -> State {
    State::image("registry.test/base")
}

fn src() -> State {
    State::source(Source::local("src").attr_with_cap("local.session", "sess", "source.local.sessionid"))
}

fn named(user: Option<&str>, group: Option<&str>) -> ChownTo {
    let owner = |name: &str| Owner::Name(name.to_owned());
    ChownTo { user: user.map(owner), group: group.map(owner) }
}

#[test]
fn sources() {
    check("source-image", &base());
    check("source-image-short", &State::image("busybox"));
    let meta = VertexMeta::named("load");
    let local = Source::local("src")
        .attr_with_cap("local.session", "sess", "source.local.sessionid")
        .attr_with_cap("local.includepattern", r#"["a","b*"]"#, "source.local.includepatterns")
        .attr_with_cap("local.excludepatterns", r#"["c"]"#, "source.local.excludepatterns")
        .attr_with_cap("local.followpaths", r#"["d","e"]"#, "source.local.followpaths")
        .attr_with_cap("local.sharedkeyhint", "hint", "source.local.sharedkeyhint")
        .attr_with_cap("local.differ", "metadata", "source.local.differ")
        .attr_with_cap("local.metadatatransfer", "true", "source.local.metadatatransfer")
        .attr("local.metadatatransferexclude", r#"["x","y"]"#)
        .meta(meta);
    check("source-local", &State::source(local));
}

#[test]
fn exec_mounts() {
    let busybox = State::image("busybox");
    let from = |selector: &str| MountOptions { selector: selector.into(), ..MountOptions::default() };
    let readonly = |selector: &str| MountOptions { readonly: true, ..from(selector) };
    let exec = Exec::new(["x"])
        .mount("/e", &src(), readonly("x"))
        .mount("/a", &busybox, MountOptions::default())
        .mount("/b", &busybox, readonly("/sub/dir"))
        .mount("/c", &busybox, MountOptions { no_output: true, ..from("") })
        .mount("/d", &State::scratch(), MountOptions::default());
    check("exec-mounts", &base().run(exec).root());

    let exec = Exec::new(["x"]).mount("/z", &busybox, MountOptions::default());
    check("exec-mount-output-1", &base().run(exec).mount("/z").unwrap());

    let cache =
        |id: &str, sharing| MountOptions { cache: Some((id.to_owned(), sharing)), ..MountOptions::default() };
    let exec = Exec::new(["x"])
        .mount("/c1", &State::scratch(), cache("/c1", pb::CacheSharingOpt::Shared))
        .mount("/c2", &State::scratch(), cache("id", pb::CacheSharingOpt::Private))
        .mount(
            "/c3",
            &busybox,
            MountOptions { selector: "/s".into(), ..cache("ns//c3", pb::CacheSharingOpt::Locked) },
        )
        .mount(
            "/c4",
            &State::scratch(),
            MountOptions { readonly: true, ..cache("ns//c4", pb::CacheSharingOpt::Shared) },
        );
    check("exec-cache-mounts", &base().run(exec).root());
}

#[test]
fn exec_secrets_and_agents() {
    let file = |id: &str, target: &str| SecretFile {
        id: id.into(),
        target: Some(target.into()),
        ..SecretFile::default()
    };
    let exec = Exec::new(["x"])
        .secret(file("/run/secrets/a", "/run/secrets/a"))
        .secret(SecretFile { uid: 1, gid: 2, mode: Some(0o444), optional: true, ..file("bb", "/b") })
        .secret(SecretFile { id: "e".into(), env: Some("E".into()), ..SecretFile::default() })
        .secret(SecretFile { env: Some("FF".into()), optional: true, ..file("f", "/f") });
    check("exec-secrets", &base().run(exec).root());

    let socket = SshSocket {
        id: "k".into(),
        target: Some("/s".into()),
        uid: 1,
        gid: 2,
        mode: Some(0o666),
        optional: true,
    };
    check("exec-ssh", &base().run(Exec::new(["x"]).ssh(SshSocket::default()).ssh(socket)).root());
}

#[test]
fn exec_process() {
    let host = |host: &str, ip: &str| pb::HostIp { host: host.into(), ip: ip.into() };
    let exec = Exec::new(["a", "b c", ""]).process(|meta| {
        meta.extra_hosts = vec![host("x", "10.0.0.1"), host("y", "::1")];
        meta.hostname = "h".into();
        meta.cgroup_parent = "cg".into();
        meta.valid_exit_codes = vec![0, 3];
        meta.ulimit = vec![pb::Ulimit { name: "nofile".into(), soft: 10, hard: 20 }];
        meta.proxy_env = Some(pb::ProxyEnv {
            http_proxy: "h".into(),
            https_proxy: "s".into(),
            ftp_proxy: "f".into(),
            no_proxy: "n".into(),
            all_proxy: "a".into(),
        });
    });
    let state = base().env("A", "1").env("B", "").dir("/w").user("1:2");
    check("exec-meta", &state.run(exec).root());
}

#[test]
fn metadata() {
    let meta = VertexMeta {
        ignore_cache: true,
        description: BTreeMap::from([("".into(), "empty".into()), ("k".into(), "v".into())]),
        export_cache: Some(false),
        progress_group: Some(pb::ProgressGroup { id: "id".into(), name: "group".into(), weak: true }),
        ..VertexMeta::default()
    };
    let description = VertexMeta::named("name").description.into_iter().chain(meta.description).collect();
    let meta = VertexMeta { description, ..meta };
    check("metadata-all", &base().run(Exec::new(["true"]).meta(meta)).root());
}

#[test]
fn files() {
    let actions = FileActions::new()
        .mkfile("/a", 0o644, "hi")
        .mkfile_owned("/b", 0o755, "", ChownTo::ids(0, 0), Some(TIME))
        .mkfile("c", 0o600, b"\0\xff\n".to_vec());
    check("file-mkfile", &State::scratch().file(actions));

    let actions = FileActions::new()
        .copy(&src(), "/a", "/b", Copy::default())
        .copy(&State::image("busybox"), "/bin/sh", "/sh", Copy::default())
        .mkdir("/z", 0o755, false);
    check("file-copy-chain", &base().file(actions));

    let actions = FileActions::new().copy(&src(), "/", "/", Copy::default());
    check("file-copy-to-scratch", &State::scratch().file(actions));

    let owner = ChownTo { user: Some(Owner::Id(7)), ..named(None, Some("staff")) };
    let actions = FileActions::new()
        .mkdir_owned("/a", 0o755, false, named(Some("app"), None), None)
        .mkfile_owned("/b", 0o644, "", named(Some("app"), Some("staff")), None)
        .copy(&src(), "/x", "/y", Copy { owner, ..Copy::default() });
    check("file-copy-user-names", &base().file(actions));
}

#[test]
fn merge_and_diff() {
    check(
        "merge",
        &State::merge([base(), src(), State::scratch(), State::image("busybox")], VertexMeta::default()),
    );
    let upper = base().run(Exec::new(["x"])).root();
    check("diff", &State::diff(&base(), &upper, VertexMeta::default()));
    assert!(State::merge([State::scratch()], VertexMeta::default()).is_scratch());
}

#[test]
fn long_chains_need_no_stack() {
    let mut state = base();
    for _ in 0..20_000 {
        state = state.file(FileActions::new().mkdir("/a", 0o755, true));
    }
    // Every step has another input, so all of them are different vertices.
    assert_eq!(state.marshal(&constraints()).unwrap().def.len(), 20_002);
}
