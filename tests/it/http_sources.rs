//! Files from web servers: what is fetched, when it is fetched again, and what servers may try.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::sync::{Arc, Mutex};

use anyhow::{Context as _, Result};
use kiln_llb::state::State;
use kiln_tests::{DaemonOptions, End, Finished, WebResponse, WebServer};

use crate::support::{Client, Site, check_contains, run};

const DATE: &str = "Thu, 02 Jan 2020 03:04:05 GMT";
const SECONDS: i64 = 1_577_934_245;

/// A server whose files the test may change; each has a tag made of its content.
fn tagged(files: &[(&str, &str)]) -> Result<(WebServer, Arc<Mutex<BTreeMap<String, String>>>)> {
    let files: BTreeMap<_, _> = files.iter().map(|(k, v)| (format!("/{k}"), (*v).to_owned())).collect();
    let files = Arc::new(Mutex::new(files));
    let shared = files.clone();
    let server = WebServer::start(move |request| {
        let files = shared.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let Some(content) = files.get(&request.target) else { return WebResponse::status(404) };
        let etag = format!("\"{}\"", content.trim());
        let known = request.headers.get("if-none-match").is_some_and(|tags| tags.contains(&etag));
        let response = if known { WebResponse::status(304) } else { WebResponse::ok(content.as_str()) };
        response.header("ETag", format!("W/{etag}")).header("Last-Modified", DATE)
    })?;
    Ok((server, files))
}

fn set(files: &Mutex<BTreeMap<String, String>>, name: &str, content: &str) {
    let mut files = files.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    files.insert(format!("/{name}"), content.to_owned());
}

fn fails(site: &Site, dockerfile: &str, args: &[&str]) -> Result<String> {
    site.write(&[("Dockerfile", dockerfile)])?;
    let finished = site.build(args)?;
    assert_ne!(finished.code, 0, "{}", finished.stderr);
    Ok(finished.stderr)
}

#[test]
fn a_file_is_added_as_the_server_gives_it() -> Result<()> {
    let (server, _files) = tagged(&[("dir/a.txt", "alpha"), ("b", "beta")])?;
    let site = Site::new(&[])?;
    let dockerfile = format!(
        "FROM scratch\nADD {a} /x\nADD --chmod=755 --chown=5:6 {a} {b} /d/\nADD --link {b} /l/name\n",
        a = server.url("dir/a.txt"),
        b = server.url("b"),
    );
    site.write(&[("Dockerfile", &dockerfile)])?;
    let built = site.image(&[])?;
    let image = built.unpack()?;
    let stat = |path: &str| -> Result<(u32, u32, u32, i64)> {
        let found = image.join(path).metadata().with_context(|| path.to_owned())?;
        Ok((found.mode() & 0o7777, found.uid(), found.gid(), found.mtime()))
    };
    assert_eq!(stat("x")?, (0o600, 0, 0, SECONDS));
    assert_eq!(stat("d/a.txt")?, (0o755, 5, 6, SECONDS));
    assert_eq!(stat("d/b")?, (0o755, 5, 6, SECONDS));
    assert_eq!(std::fs::read_to_string(image.join("x"))?, "alpha");
    assert_eq!(std::fs::read_to_string(image.join("l/name"))?, "beta");
    let gets = server.take_log().into_iter().filter(|line| line.starts_with("GET")).count();
    assert_eq!(gets, 2, "each file once");
    Ok(())
}

#[test]
fn a_file_is_fetched_again_only_when_it_has_changed() -> Result<()> {
    let (server, files) = tagged(&[("f", "one")])?;
    let mut site = Site::new(&[])?;
    let dockerfile = format!("FROM scratch\nADD {} /f\n", server.url("f"));
    let built = site.dockerfile(&dockerfile, &[])?;
    assert_eq!(built.read("f")?, "one");
    assert_eq!(server.take_log(), ["GET /f"]);

    let again = site.local(&[])?;
    check_contains(&again.log, &["CACHED"]);
    assert_eq!(server.take_log(), ["HEAD /f"], "only asked whether it has changed");
    site.daemon.stop()?;
    site.daemon.restart()?;
    check_contains(&site.local(&[])?.log, &["CACHED"]);
    assert_eq!(server.take_log(), ["HEAD /f"]);

    set(&files, "f", "two");
    assert_eq!(site.local(&[])?.read("f")?, "two");
    assert_eq!(server.take_log(), ["HEAD /f", "GET /f"]);
    set(&files, "f", "one");
    assert_eq!(site.local(&[])?.read("f")?, "one");
    assert_eq!(server.take_log(), ["HEAD /f"], "an older one is still known");

    // What is pruned is fetched again.
    site.daemon.run(&["prune", "--all"])?.success()?;
    assert_eq!(site.local(&[])?.read("f")?, "one");
    assert_eq!(server.take_log(), ["GET /f"]);
    Ok(())
}

#[test]
fn a_checksum_needs_no_server_twice() -> Result<()> {
    let (server, files) = tagged(&[("f", "alpha\n")])?;
    let site = Site::new(&[])?;
    let sum = "sha256:b6a98d9ce9a2d9149288fa3df42d377c3e42737afdcdaf714e33c0a100b51060";
    let dockerfile = format!("FROM scratch\nADD --checksum={sum} {} /f\n", server.url("f"));
    assert_eq!(site.dockerfile(&dockerfile, &[])?.read("f")?, "alpha\n");
    server.take_log();
    set(&files, "f", "other");
    assert_eq!(site.local(&[])?.read("f")?, "alpha\n");
    assert!(server.take_log().is_empty());

    let wrong = format!("FROM scratch\nADD --checksum=sha256:{} {} /f\n", "0".repeat(64), server.url("f"));
    let log = fails(&site, &wrong, &[])?;
    check_contains(&log, &["digest mismatch for", &format!("(expected: sha256:{}", "0".repeat(64))]);
    Ok(())
}

#[test]
fn archives_are_unpacked_where_that_is_asked_for() -> Result<()> {
    let dir = tempfile::tempdir()?;
    std::fs::write(dir.path().join("inside"), "packed")?;
    let archive = dir.path().join("a.tar.gz");
    run("tar", &["-czf", &archive.display().to_string(), "-C", &dir.path().display().to_string(), "inside"])?;
    let bytes = std::fs::read(&archive)?;
    let size = bytes.len();
    let server = WebServer::start(move |_| WebResponse::ok(bytes.clone()))?;
    let site = Site::new(&[])?;
    let url = server.url("a.tar.gz");
    let dockerfile = format!("FROM scratch\nADD --unpack {url} /u/\nADD {url} /p/\n");
    let built = site.dockerfile(&dockerfile, &[])?;
    assert_eq!(built.read("u/inside")?, "packed");
    assert_eq!(built.path().join("p/a.tar.gz").metadata()?.len(), size as u64);
    Ok(())
}

#[test]
fn secrets_are_for_their_host_alone() -> Result<()> {
    let other = WebServer::start(|_| WebResponse::ok("elsewhere"))?;
    let away = other.url("away");
    let server = WebServer::start(move |request| {
        let authorized = request.headers.get("authorization").map(String::as_str) == Some("Bearer s3cret");
        match request.target.as_str() {
            _ if !authorized => WebResponse::status(401),
            "/away" => WebResponse::status(302).header("Location", away.clone()),
            "/loop" => WebResponse::status(302).header("Location", "/loop"),
            _ => WebResponse::ok("private"),
        }
    })?;
    let site = Site::new(&[])?;
    let file = site.context().join("token");
    std::fs::write(&file, "s3cret\n")?;
    let secret = format!("--secret=id=HTTP_AUTH_TOKEN_127.0.0.1,src={}", file.display());
    let add = |path: &str| format!("FROM scratch\nADD {} /f\n", server.url(path));
    check_contains(&fails(&site, &add("f"), &[])?, &["invalid response status 401"]);
    assert_eq!(site.dockerfile(&add("f"), &[&secret])?.read("f")?, "private");
    // Nobody else gets what was fetched with it: the server is asked again, without.
    check_contains(&fails(&site, &add("f"), &[])?, &["invalid response status 401"]);

    assert_eq!(site.dockerfile(&add("away"), &[&secret])?.read("f")?, "elsewhere");
    assert!(other.requests().iter().all(|request| !request.headers.contains_key("authorization")));
    check_contains(&fails(&site, &add("loop"), &[&secret])?, &["failed to download", "too many redirects"]);
    let catalogue = std::fs::read(site.daemon.root().join("kiln/catalogue.db"))?;
    assert!(!catalogue.windows(6).any(|six| six == b"s3cret"), "no secret is kept");
    Ok(())
}

#[test]
fn what_servers_may_try() -> Result<()> {
    let server = WebServer::start(|request| match request.target.as_str() {
        "/cut" => WebResponse::ok("half").end(End::Cut),
        "/500" => WebResponse::status(500),
        "/ftp" => WebResponse::status(302).header("Location", "ftp://127.0.0.1/x"),
        "/same" => WebResponse::status(304),
        "/huge" => WebResponse::ok("").header("Content-Length", "9223372036854775807"),
        "/name" => WebResponse::ok("named").header("Content-Disposition", "x; filename=\"../../../etc/x\""),
        _ => WebResponse::status(404),
    })?;
    let site = Site::new(&[])?;
    for (path, want) in [
        ("cut", "failed to download"),
        ("500", "invalid response status 500"),
        ("404", "invalid response status 404"),
        ("ftp", "failed to download"),
    ] {
        let log = fails(&site, &format!("FROM scratch\nADD {} /f\n", server.url(path)), &[])?;
        check_contains(&log, &[want]);
    }
    let named = site.dockerfile(&format!("FROM scratch\nADD {} /d/\n", server.url("name")), &[])?;
    assert_eq!(named.read("d/name")?, "named");
    let nobody = "FROM scratch\nADD http://127.0.0.1:1/f /f\n";
    check_contains(&fails(&site, nobody, &[])?, &["failed to download http://127.0.0.1:1/f"]);
    Ok(())
}

#[test]
fn a_file_that_fills_the_disk_fails_alone() -> Result<()> {
    let piece = vec![7_u8; 1 << 20];
    let server = WebServer::start(move |_| WebResponse::ok(piece.clone()).end(End::Endless))?;
    let site = Site::with_options(&[], DaemonOptions { disk: Some(160), ..DaemonOptions::default() })?;
    let log = fails(&site, &format!("FROM scratch\nADD {} /f\n", server.url("f")), &[])?;
    check_contains(&log, &["no space left for"]);
    // What had come is gone again.
    site.daemon.run(&["du"])?.success()?;
    site.dockerfile("FROM scratch\nCOPY Dockerfile /f\n", &[])?;
    Ok(())
}

#[test]
fn a_silent_server_is_left_when_nobody_waits() -> Result<()> {
    let server = WebServer::start(|_| WebResponse::ok("some").end(End::Stall))?;
    let site = Site::new(&[("Dockerfile", &format!("FROM scratch\nADD {} /f\n", server.url("f")))])?;
    let client = Client::start(&mut site.command(&[])?)?;
    client.wait_for("downloading")?;
    client.kill()?;
    // The daemon is free for others, and stops at once.
    site.dockerfile("FROM scratch\nCOPY Dockerfile /f\n", &[])?;
    Ok(())
}

#[test]
fn remote_contexts() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let files = [
        ("Dockerfile", "FROM scratch\nCOPY . /c/\n"),
        ("f.txt", "f"),
        ("sub/Dockerfile", "FROM scratch\nCOPY . /subc/\n"),
        (".dockerignore", "f.txt\n"),
    ];
    kiln_tests::write_tree(dir.path(), &files)?;
    let archive = tempfile::NamedTempFile::new()?;
    let (to, from) = (archive.path().display().to_string(), dir.path().display().to_string());
    run("tar", &["-czf", &to, "-C", &from, "."])?;
    let bytes = std::fs::read(archive.path())?;
    let server = WebServer::start(move |request| match request.target.as_str() {
        "/ctx.tgz" => WebResponse::ok(bytes.clone()),
        "/onlydf" => WebResponse::ok("FROM scratch\nCOPY context /itself\n"),
        "/plain" => WebResponse::ok("plain").header("Last-Modified", DATE),
        _ => WebResponse::status(404),
    })?;
    let site = Site::new(&[])?;
    let context = |path: &str| format!("--opt=context={}", server.url(path));
    let whole = site.local(&[&context("ctx.tgz")])?;
    assert_eq!(whole.read("c/f.txt")?, "f", "the ignore file is for local contexts");
    check_contains(&whole.log, &["[internal] load remote build context"]);
    let sub = site.local(&[&context("ctx.tgz"), "--opt=contextsubdir=sub"])?;
    assert!(sub.read("c/Dockerfile")?.contains("/subc/"));
    let alone = site.local(&[&context("onlydf")])?;
    assert!(alone.read("itself")?.starts_with("FROM scratch"));
    check_contains(&site.build(&[&context("none")])?.stderr, &["invalid response status 404"]);

    let named = format!("--opt=context:foo={}", server.url("plain"));
    let named = site.dockerfile("FROM scratch\nCOPY --from=foo context /x\n", &[&named])?;
    assert_eq!(named.read("x")?, "plain");

    let epoch =
        format!("FROM scratch AS time\nADD {} /\nFROM scratch\nCOPY Dockerfile /\n", server.url("plain"));
    site.write(&[("Dockerfile", &epoch)])?;
    let image = site.image(&["--opt=build-arg:SOURCE_DATE_EPOCH=time"])?;
    assert_eq!(image.config()?["created"], "2020-01-02T03:04:05Z");
    Ok(())
}

#[test]
fn a_client_uploads_its_context() -> Result<()> {
    // Only the host is special; a client that offers no upload is told so.
    let site = Site::new(&[("Dockerfile", "FROM scratch\nADD http://buildkit-session/x /f\n")])?;
    let finished: Finished = site.build(&[])?;
    assert_ne!(finished.code, 0);
    check_contains(&finished.stderr, &["Upload/Pull"]);
    Ok(())
}

#[test]
fn attributes_that_only_other_frontends_use() -> Result<()> {
    let server = WebServer::start(|request| {
        let header = |name: &str| request.headers.get(name).cloned().unwrap_or_default();
        let seen = format!("{}|{}|{}", header("accept"), header("cookie"), header("authorization"));
        WebResponse::ok(seen)
    })?;
    let site = Site::new(&[("secret", "Basic eDp5")])?;
    let secret = format!("--secret=id=auth,src={}", site.context().join("secret").display());
    let source = |attrs: &[(&str, &str)]| {
        let source = kiln_llb::state::Source::http(&server.url("f"));
        State::source(attrs.iter().fold(source, |source, (key, value)| source.attr(key, *value)))
    };
    let attrs = [
        ("http.filename", "name"),
        ("http.perm", "0640"),
        ("http.uid", "3"),
        ("http.header.accept", "text/x"),
        ("http.header.cookie", "dropped"),
        ("http.authheadersecret", "auth"),
    ];
    let built = site.llb(&source(&attrs), &[&secret])?;
    assert_eq!(built.read("name")?, "text/x||Basic eDp5");
    assert_eq!(built.path().join("name").metadata()?.mode() & 0o7777, 0o640);
    let lacking = site.fails(&source(&attrs), &[])?;
    check_contains(&lacking, &["secret auth: not found"]);
    let signed = [("http.sig.pubkey", "k"), ("http.sig.signature", "s")];
    let signed = site.fails(&source(&signed), &[])?;
    check_contains(&signed, &["verifying the signature of an http source is not supported yet"]);
    Ok(())
}
