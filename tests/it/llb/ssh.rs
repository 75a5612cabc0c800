//! Agents of clients, forwarded into steps.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use kiln_llb::state::{SshSocket, State};

use super::{base, shell};
use crate::support::{Site, check_contains, run};

/// Copies a program and what it is linked with to the same places below `dir`.
fn copy_program(program: &Path, dir: &Path) -> Result<()> {
    let listed = run("ldd", &[&program.display().to_string()])?;
    let libraries = listed.split_whitespace().filter(|word| word.starts_with('/')).map(Path::new);
    for library in libraries {
        let to = dir.join(library.strip_prefix("/")?);
        std::fs::create_dir_all(to.parent().context("no parent")?)?;
        std::fs::copy(library, to)?;
    }
    std::fs::copy(program, dir.join("client"))?;
    Ok(())
}

/// A client of the API in a state with what it needs.
fn client(site: &Site) -> Result<State> {
    copy_program(Path::new(site.daemon.buildctl().get_program()), site.context())?;
    let libraries = State::local("context");
    let options = kiln_llb::state::Copy { contents_only: true, ..Default::default() };
    Ok(base()?.file(kiln_llb::state::FileActions::new().copy(&libraries, "/", "/", options)))
}

#[test]
fn a_socket_in_the_step_leads_to_the_client() -> Result<()> {
    let site = Site::new(&[])?;
    // The socket of another daemon stands for an agent: whoever speaks to it gets an answer that only it gives.
    let other = Site::new(&[])?;
    let agent = format!("--ssh=api={},raw=true", other.daemon.dir().join("buildkitd.sock").display());
    let local = format!("--local=context={}", site.context().display());
    let socket = SshSocket {
        id: "api".into(),
        target: Some("/run/api.sock".into()),
        uid: 7,
        gid: 8,
        mode: Some(0o640),
        ..SshSocket::default()
    };
    let script = "stat -c '%F %a %u:%g' /run/api.sock; for n in 1 2 3 4 5 6 7 8; do \
                  /client --addr unix:///run/api.sock debug workers | tail -n 1 | cut -f1 > /w$n & done; wait; \
                  cat /w* | sort -u";
    let ran = client(&site)?.run(shell(&format!("({script}) > /out")).ssh(socket)).root();
    let listed = State::scratch().file(kiln_llb::state::FileActions::new().copy(
        &ran,
        "/out",
        "/out",
        Default::default(),
    ));
    let got = site.llb(&listed, &[&agent, &local])?.read("out")?;
    let worker = other.daemon.run(&["debug", "workers"])?.success()?.stdout;
    let worker = worker.lines().last().and_then(|line| line.split('\t').next()).unwrap_or_default().trim();
    assert_eq!(got.trim(), format!("socket 640 7:8\n{worker}"));
    let left = Command::new("find").arg(site.daemon.root()).args(["-name", "agents-*"]).output()?;
    assert!(left.stdout.is_empty(), "{}", String::from_utf8_lossy(&left.stdout));
    Ok(())
}

#[test]
fn an_agent_that_nobody_has() -> Result<()> {
    let site = Site::new(&[])?;
    let socket = |id: &str, optional| SshSocket { id: id.into(), optional, ..SshSocket::default() };
    let step = |socket| -> Result<State> {
        let exec =
            shell("[ -e /run/buildkit/ssh_agent.0 ] && echo the''re || echo $SSH_AUTH_SOCK").ssh(socket);
        Ok(base()?.run(exec.meta(super::uncached())).root())
    };
    let without = site.fails(&step(socket("", false))?, &[])?;
    check_contains(&without, &["no SSH key \"default\" forwarded from the client"]);
    let listener = tempfile::tempdir()?;
    let path = listener.path().join("agent");
    let _listening = std::os::unix::net::UnixListener::bind(&path)?;
    let agent = format!("--ssh=other={}", path.display());
    check_contains(&site.fails(&step(socket("mine", false))?, &[&agent])?, &["unset ssh forward key mine"]);
    let optional = site.solve(&super::marshal(&step(socket("mine", true))?)?, &[])?.success()?;
    check_contains(&optional.stderr, &["/run/buildkit/ssh_agent.0"]);
    assert!(!optional.stderr.contains(" there"));
    let there = site.solve(&super::marshal(&step(socket("other", true))?)?, &[&agent])?.success()?;
    check_contains(&there.stderr, &[" there"]);
    Ok(())
}
