//! Checkouts of git repositories: what is in them, what is fetched, and what repositories and their addresses may try.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use kiln_tests::{Finished, WebResponse, WebServer, git_answer, write_tree};

use crate::support::{Client, Site, check_contains, processes_with};

/// When everything in the test repositories was committed.
const DATE: &str = "2020-01-02T03:04:05Z";

/// Repositories that a server of the test has.
struct Repositories {
    root: tempfile::TempDir,
    server: WebServer,
}

impl Repositories {
    fn new() -> Result<Self> {
        let root = tempfile::tempdir()?;
        let server = WebServer::git(root.path().to_owned())?;
        Ok(Self { root, server })
    }

    /// The one that most tests use: two commits on `main`, a branch, tags, a link.
    fn standard() -> Result<Self> {
        let all = Self::new()?;
        let work = all.work("repo")?;
        let files = [("f.txt", "f"), ("sub/s.txt", "s"), ("Dockerfile", "FROM scratch\nCOPY . /c/\n")];
        work.commit(&files)?;
        std::os::unix::fs::symlink("sub", work.dir.join("link"))?;
        work.git(&["tag", "-a", "-m", "one", "v1"])?;
        work.git(&["tag", "light"])?;
        work.commit(&[("f.txt", "second")])?;
        work.git(&["branch", "dev"])?;
        work.push("repo")?;
        Ok(all)
    }

    fn work(&self, name: &str) -> Result<Work> {
        let dir = self.root.path().join("work").join(name);
        std::fs::create_dir_all(&dir)?;
        let work = Work { dir, bare: self.root.path().to_owned() };
        work.git(&["init", "--quiet", "--initial-branch=main", "."])?;
        Ok(work)
    }

    fn url(&self, name: &str) -> String {
        self.server.url(&format!("{name}.git"))
    }
}

/// A repository that a test writes.
struct Work {
    dir: PathBuf,
    bare: PathBuf,
}

impl Work {
    fn git(&self, args: &[&str]) -> Result<String> {
        let mut git = Command::new("git");
        git.current_dir(&self.dir).args(["-c", "user.name=it", "-c", "user.email=it@example.com"]);
        git.args(["-c", "protocol.file.allow=always", "-c", "commit.gpgsign=false"]).args(args);
        git.env("GIT_AUTHOR_DATE", DATE).env("GIT_COMMITTER_DATE", DATE);
        git.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
        Ok(Finished::run(&mut git)?.success()?.stdout.trim().to_owned())
    }

    /// Commits everything, with these files; the commit's name.
    fn commit(&self, files: &[(&str, &str)]) -> Result<String> {
        write_tree(&self.dir, files)?;
        self.git(&["add", "--all"])?;
        self.git(&["commit", "--quiet", "-m", "commit"])?;
        self.git(&["rev-parse", "HEAD"])
    }

    /// Publishes everything as a bare repository.
    fn push(&self, name: &str) -> Result<()> {
        let bare = self.bare.join(format!("{name}.git"));
        if !bare.exists() {
            let bare = bare.display().to_string();
            self.git(&["init", "--quiet", "--bare", "--initial-branch=main", &bare])?;
        }
        self.git(&["push", "--quiet", "--all", &bare.display().to_string()])?;
        self.git(&["push", "--quiet", "--tags", &bare.display().to_string()]).map(drop)
    }
}

fn fails(site: &Site, dockerfile: &str, args: &[&str]) -> Result<String> {
    site.write(&[("Dockerfile", dockerfile)])?;
    let finished = site.build(args)?;
    assert_ne!(finished.code, 0, "{}", finished.stderr);
    Ok(finished.stderr)
}

#[test]
fn references_of_all_kinds() -> Result<()> {
    let all = Repositories::standard()?;
    let site = Site::new(&[])?;
    let first = all.work("repo").and_then(|work| work.git(&["rev-parse", "light"]))?;
    let url = all.url("repo");
    let dockerfile = format!(
        "FROM scratch\nADD {url} /default/\nADD {url}#dev /dev/\nADD {url}#v1 /v1/\nADD {url}#light /light/\n\
         ADD {url}#{first} /sha/\nADD {url}?tag=v1&subdir=sub /query/\nADD --exclude=sub {url}#main:/ /some/\n\
         ADD --checksum={short} {url}#v1 /sum/\nADD --chown=3:4 --chmod=700 {url}#v1:sub /own/\n",
        short = &first[..12],
    );
    let built = site.dockerfile(&dockerfile, &[])?;
    for (path, want) in [
        ("default/f.txt", "second"),
        ("dev/f.txt", "second"),
        ("v1/f.txt", "f"),
        ("light/f.txt", "f"),
        ("sha/f.txt", "f"),
        ("query/s.txt", "s"),
        ("some/f.txt", "second"),
        ("sum/f.txt", "f"),
        ("own/s.txt", "s"),
    ] {
        assert_eq!(built.read(path)?, want, "{path}");
    }
    assert!(!built.path().join("some/sub").exists());
    assert!(!built.path().join("default/.git").exists());
    assert_eq!(built.path().join("default/link").read_link()?, Path::new("sub"));

    let du = site.daemon.run(&["du", "--verbose"])?.success()?.stdout;
    check_contains(&du, &[&format!("shared git repo for {url}"), "git snapshot for", "source.git.checkout"]);
    assert_eq!(du.matches("shared git repo").count(), 1);
    Ok(())
}

#[test]
fn nothing_is_fetched_twice() -> Result<()> {
    let all = Repositories::standard()?;
    let mut site = Site::new(&[])?;
    let dockerfile = format!("FROM scratch\nADD {}#main /g/\n", all.url("repo"));
    site.dockerfile(&dockerfile, &[])?;
    all.server.take_log();
    let again = site.local(&[])?;
    check_contains(&again.log, &["CACHED"]);
    let asked = all.server.take_log();
    // A listing takes an advertisement and a command; no pack is asked for.
    let posts = asked.iter().filter(|line| line.starts_with("POST")).count();
    assert!(posts <= 1, "{asked:?}");
    site.daemon.stop()?;
    site.daemon.restart()?;
    check_contains(&site.local(&[])?.log, &["CACHED"]);

    let work = all.work("repo")?;
    work.commit(&[("f.txt", "third")])?;
    work.push("repo")?;
    assert_eq!(site.local(&[])?.read("g/f.txt")?, "third");
    let du = site.daemon.run(&["du", "--verbose"])?.success()?.stdout;
    assert_eq!(du.matches("shared git repo").count(), 1, "{du}");

    // A commit needs nobody once it is here, not even when its repository has gone.
    let sha = work.git(&["rev-parse", "HEAD"])?;
    let by_sha = format!("FROM scratch\nADD {}#{sha}:sub /g/\n", all.url("repo"));
    all.server.take_log();
    assert_eq!(site.dockerfile(&by_sha, &[])?.read("g/s.txt")?, "s");
    assert!(all.server.take_log().is_empty());
    Ok(())
}

#[test]
fn with_the_repository_and_times_of_the_commit() -> Result<()> {
    use std::os::unix::fs::MetadataExt as _;
    let all = Repositories::standard()?;
    let site = Site::new(&[])?;
    let url = all.url("repo");
    let dockerfile = format!(
        "FROM scratch\nADD --keep-git-dir {url}#main /branch/\nADD --keep-git-dir {url}#v1 /tag/\n\
         ADD --keep-git-dir {url}#main:sub /sub/\n"
    );
    let built = site.dockerfile(&dockerfile, &[])?;
    let git = |dir: &str, args: &[&str]| -> Result<String> {
        let mut git = Command::new("git");
        git.arg("-C").arg(built.path().join(dir)).args(["-c", "safe.directory=*"]).args(args);
        Ok(Finished::run(&mut git)?.success()?.stdout.trim().to_owned())
    };
    assert_eq!(git("branch", &["status", "--porcelain"])?, "");
    assert_eq!(git("branch", &["for-each-ref", "--format=%(refname)"])?, "refs/heads/main");
    assert_eq!(git("branch", &["remote", "get-url", "origin"])?, url);
    assert_eq!(git("branch", &["rev-list", "--count", "HEAD"])?, "1");
    assert_eq!(git("tag", &["for-each-ref", "--format=%(objecttype) %(refname)"])?, "tag refs/tags/v1");
    assert!(!built.path().join("sub/.git").exists());
    let text = Finished::run(Command::new("grep").args(["-rl", "kiln-it-"]).arg(built.path()))?.stdout;
    assert_eq!(text, "", "nothing names the daemon's own directories");

    // By way of the main context, which takes its times from the commit when an epoch is asked for.
    let context = format!("--opt=context={url}#main");
    let image = site.image(&[&context, "--opt=build-arg:SOURCE_DATE_EPOCH=context"])?;
    assert_eq!(image.config()?["created"], DATE);
    let file = image.unpack()?.join("c/f.txt").metadata()?;
    assert_eq!(file.mtime(), 1_577_934_245);
    Ok(())
}

#[test]
fn contexts() -> Result<()> {
    let all = Repositories::standard()?;
    let work = all.work("repo")?;
    work.commit(&[(".dockerignore", "f.txt\n"), ("sub/Dockerfile", "FROM scratch\nCOPY . /subc/\n")])?;
    work.push("repo")?;
    let site = Site::new(&[("Dockerfile", "FROM scratch\nCOPY f.txt /q\n")])?;
    let url = all.url("repo");
    let context = format!("--opt=context={url}");
    let whole = site.local(&[&context])?;
    assert_eq!(whole.read("c/f.txt")?, "second", "the ignore file is for local contexts");
    check_contains(&whole.log, &[&format!("[internal] load git source {url}")]);
    let sub = site.local(&[&format!("{context}#main:sub")])?;
    assert_eq!(sub.read("subc/s.txt")?, "s");
    let local = site.local(&[&context, "--opt=dockerfilekey=dockerfile"])?;
    assert_eq!(local.read("q")?, "second");
    let kept = site.local(&[&context, "--opt=build-arg:BUILDKIT_CONTEXT_KEEP_GIT_DIR=1"])?;
    assert!(kept.path().join("c/.git/HEAD").exists());
    let named = format!("--opt=context:foo={url}#v1");
    let named = site.dockerfile("FROM scratch\nCOPY --from=foo sub/s.txt /x\n", &[&named])?;
    assert_eq!(named.read("x")?, "s");
    Ok(())
}

#[test]
fn submodules() -> Result<()> {
    let all = Repositories::new()?;
    let inner = all.work("inner")?;
    inner.commit(&[("in.txt", "inner")])?;
    inner.push("inner")?;
    let outer = all.work("outer")?;
    outer.commit(&[("out.txt", "outer")])?;
    let bare = all.root.path().join("inner.git").display().to_string();
    outer.git(&["submodule", "--quiet", "add", &bare, "mod"])?;
    // Relative to wherever the repository comes from.
    outer.git(&["config", "-f", ".gitmodules", "submodule.mod.url", "../inner.git"])?;
    outer.commit(&[])?;
    outer.push("outer")?;
    let site = Site::new(&[])?;
    let url = all.url("outer");
    let dockerfile = format!(
        "FROM scratch\nADD {url} /with/\nADD {url}?submodules=false /without/\nADD --keep-git-dir {url} /kept/\n"
    );
    let built = site.dockerfile(&dockerfile, &[])?;
    assert_eq!(built.read("with/mod/in.txt")?, "inner");
    assert!(!built.path().join("with/mod/.git").exists());
    assert_eq!(built.path().join("without/mod").read_dir()?.count(), 0);
    assert_eq!(built.read("kept/mod/in.txt")?, "inner");

    // What a submodule must not reach: files of the daemon's machine.
    for (name, address) in [("file", format!("file://{bare}")), ("path", bare), ("ext", "ext::true".into())] {
        outer.git(&["config", "-f", ".gitmodules", "submodule.mod.url", &address])?;
        outer.commit(&[])?;
        outer.push("outer")?;
        // Another subdirectory is another checkout.
        let log = fails(&site, &format!("FROM scratch\nADD {url}?ref=main /{name}/\n"), &[])?;
        check_contains(&log, &["git submodule failed", "not allowed"]);
    }
    Ok(())
}

#[test]
fn what_is_asked_for_wrongly() -> Result<()> {
    let all = Repositories::standard()?;
    let site = Site::new(&[])?;
    let url = all.url("repo");
    for (source, want) in [
        (format!("{url}#nope"), "repository does not contain ref nope"),
        (format!("{url}#v1:nope"), "directory \"nope\" of the repository does not exist"),
        (format!("{url}#main:link"), "directory \"link\" of the repository does not exist, or is a link"),
        (format!("{url}#{}", "0".repeat(40)), "can not be found in the repository"),
        (format!("--checksum=abcdef {url}#v1"), "expected checksum to match abcdef, got"),
        (format!("{url}#--upload-pack=x"), "invalid git ref --upload-pack=x"),
        (format!("{url}?ref=main&mtime=never"), "invalid mtime value"),
        (all.url("none"), "git ls-remote failed"),
        ("http://127.0.0.1:1/r.git".to_owned(), "git ls-remote failed"),
        ("ssh://-oProxyCommand=x/r.git".to_owned(), "invalid git remote"),
        ("git@127.0.0.1:r.git".to_owned(), "no SSH key \"default\" forwarded from the client"),
    ] {
        let log = fails(&site, &format!("FROM scratch\nADD {source} /g/\n"), &[])?;
        check_contains(&log, &[want]);
    }
    // The shared repository is as good as before.
    let good = site.dockerfile(&format!("FROM scratch\nADD {url}#main /g/\n"), &[])?;
    assert_eq!(good.read("g/f.txt")?, "second");
    Ok(())
}

#[test]
fn secrets_are_lent_and_kept_nowhere() -> Result<()> {
    let all = Repositories::standard()?;
    let root = all.root.path().to_owned();
    let elsewhere = all.url("repo");
    let guarded = WebServer::start(move |request| {
        // `x-access-token:s3cret`
        let want = "basic eC1hY2Nlc3MtdG9rZW46czNjcmV0";
        if request.headers.get("authorization").map(String::as_str) != Some(want) {
            return WebResponse::status(401).header("WWW-Authenticate", "Basic realm=\"it\"");
        }
        match request.target.strip_prefix("/away.git") {
            Some(rest) => WebResponse::status(302).header("Location", format!("{elsewhere}{rest}")),
            None => git_answer(&root, request),
        }
    })?;
    let site = Site::new(&[])?;
    let token = site.context().join("token");
    std::fs::write(&token, "s3cret\n")?;
    let secret = |id: &str| format!("--secret=id={id},src={}", token.display());
    let add = |path: &str| format!("FROM scratch\nADD {} /g/\n", guarded.url(path));
    check_contains(&fails(&site, &add("repo.git"), &[])?, &["git ls-remote failed"]);
    let of_host = secret(&format!("GIT_AUTH_TOKEN.{}", guarded.host()));
    for secret in [secret("GIT_AUTH_TOKEN"), of_host] {
        let built = site.dockerfile(&add("repo.git"), &[&secret])?;
        assert_eq!(built.read("g/f.txt")?, "second");
    }
    // With a secret, no redirect is followed: it would go along.
    let log = fails(&site, &add("away.git"), &[&secret("GIT_AUTH_TOKEN")])?;
    check_contains(&log, &["git ls-remote failed"]);
    assert!(all.server.requests().is_empty(), "nobody else is told");

    // In the address: not kept.
    let inline = guarded.url("repo.git#dev").replace("://", "://x-access-token:hunter2@");
    fails(&site, &format!("FROM scratch\nADD {inline} /g/\n"), &[])?;
    let good = guarded.url("repo.git#dev").replace("://", "://x-access-token:s3cret@");
    assert_eq!(site.dockerfile(&format!("FROM scratch\nADD {good} /g/\n"), &[])?.read("g/f.txt")?, "second");
    let mut grep = Command::new("grep");
    // The Dockerfile is its author's own.
    grep.args(["-rla", "--exclude=Dockerfile", "-e", "hunter2", "-e", "s3cret", "-e", "czNjcmV0"])
        .arg(site.daemon.root().join("kiln/snapshots"));
    assert_eq!(Finished::run(&mut grep)?.stdout, "");
    Ok(())
}

#[test]
fn cancelling_ends_git() -> Result<()> {
    let server = WebServer::start(|_| WebResponse::ok("").end(kiln_tests::End::Stall))?;
    let url = server.url("slow.git");
    let site = Site::new(&[("Dockerfile", &format!("FROM scratch\nADD {url} /g/\n"))])?;
    let client = Client::start(&mut site.command(&[])?)?;
    kiln_tests::wait_for("git to run", crate::support::LIMIT, None, || {
        processes_with(&url).is_ok_and(|found| !found.is_empty()) && !server.requests().is_empty()
    })?;
    client.kill()?;
    kiln_tests::wait_for("git to end", crate::support::LIMIT, None, || {
        processes_with(&url).is_ok_and(|found| found.is_empty())
    })?;
    Ok(())
}

#[test]
fn a_daemon_without_git_says_so() -> Result<()> {
    let all = Repositories::standard()?;
    let bin = tempfile::tempdir()?;
    std::os::unix::fs::symlink("/bin/sh", bin.path().join("sh"))?;
    let env = vec![("PATH".to_owned(), bin.path().display().to_string())];
    let options = kiln_tests::DaemonOptions { env, ..Default::default() };
    let site = Site::with_options(&[], options)?;
    let log = fails(&site, &format!("FROM scratch\nADD {} /g/\n", all.url("repo")), &[])?;
    check_contains(&log, &["git sources need the program `git` in the PATH of the daemon"]);
    Ok(())
}

#[test]
fn a_branch_that_was_rewritten() -> Result<()> {
    let all = Repositories::standard()?;
    let site = Site::new(&[])?;
    let dockerfile = format!("FROM scratch\nADD {}#dev /g/\n", all.url("repo"));
    assert_eq!(site.dockerfile(&dockerfile, &[])?.read("g/f.txt")?, "second");
    let work = all.work("repo")?;
    work.git(&["checkout", "--quiet", "--orphan", "other"])?;
    work.commit(&[("f.txt", "rewritten")])?;
    work.git(&["branch", "--force", "dev", "other"])?;
    let bare = all.root.path().join("repo.git").display().to_string();
    work.git(&["push", "--quiet", "--force", &bare, "dev"])?;
    // A branch becomes a directory of branches.
    assert_eq!(site.local(&[])?.read("g/f.txt")?, "rewritten");
    work.git(&["push", "--quiet", &bare, ":dev"])?;
    work.git(&["push", "--quiet", &bare, "other:refs/heads/dev/deep"])?;
    let deep = format!("FROM scratch\nADD {}#dev/deep /g/\n", all.url("repo"));
    assert_eq!(site.dockerfile(&deep, &[])?.read("g/f.txt")?, "rewritten");
    Ok(())
}

/// An agent of OpenSSH with one key. Dropped, it ends.
struct Agent {
    child: std::process::Child,
    socket: PathBuf,
    public: String,
}

impl Agent {
    fn start(dir: &Path) -> Result<Self> {
        let (key, socket) = (dir.join("key"), dir.join("agent"));
        let mut keygen = Command::new("ssh-keygen");
        keygen.args(["-q", "-t", "ed25519", "-N", "", "-C", "it", "-f"]).arg(&key);
        Finished::run(&mut keygen)?.success()?;
        let child = Command::new("ssh-agent")
            .arg("-D")
            .arg("-a")
            .arg(&socket)
            .stdout(std::process::Stdio::null())
            .spawn()?;
        let agent = Self { child, socket, public: std::fs::read_to_string(key.with_extension("pub"))? };
        kiln_tests::wait_for("the agent", crate::support::LIMIT, None, || agent.socket.exists())?;
        Finished::run(Command::new("ssh-add").arg("-q").arg(&key).env("SSH_AUTH_SOCK", &agent.socket))?
            .success()?;
        Ok(agent)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[test]
fn keys_of_an_agent_are_lent() -> Result<()> {
    let all = Repositories::standard()?;
    let dir = tempfile::tempdir()?;
    let agent = Agent::start(dir.path())?;
    // Stands for the far side too: it notes how it was called and which keys it could use, and runs the command here.
    let notes = dir.path().join("notes");
    let bin = dir.path().join("bin");
    std::fs::create_dir(&bin)?;
    let script = format!(
        "#!/bin/sh\necho \"$@\" >> {notes}\nssh-add -L >> {notes} 2>&1\nfor last; do :; done\nexec sh -c \"$last\"\n",
        notes = notes.display()
    );
    kiln_tests::write_script(&bin.join("ssh"), &script)?;
    let path = format!("{}:{}", bin.display(), std::env::var("PATH")?);
    let options = kiln_tests::DaemonOptions { env: vec![("PATH".to_owned(), path)], ..Default::default() };
    let site = Site::with_options(&[], options)?;
    let lent = format!("--ssh=default={}", agent.socket.display());
    let bare = all.root.path().join("repo.git");
    for url in
        [format!("ssh://git@example.test{}", bare.display()), format!("git@example.test:{}", bare.display())]
    {
        let built = site.dockerfile(&format!("FROM scratch\nADD {url}#main /g/\n"), &[&lent])?;
        assert_eq!(built.read("g/f.txt")?, "second");
        let noted = std::fs::read_to_string(&notes)?;
        let agents_key = agent.public.split(' ').nth(1).unwrap_or_default();
        check_contains(&noted, &[agents_key, "git@example.test", "-F /dev/null", "git-upload-pack"]);
        std::fs::remove_file(&notes)?;
        let without = fails(&site, &format!("FROM scratch\nADD {url}#dev /g/\n"), &[])?;
        check_contains(&without, &["no SSH key \"default\" forwarded from the client"]);
    }
    let left = Finished::run(Command::new("find").arg(site.daemon.root()).args([
        "-name",
        "git-*",
        "-path",
        "*scratch*",
    ]))?;
    assert_eq!(left.stdout, "", "no socket is left");
    Ok(())
}
