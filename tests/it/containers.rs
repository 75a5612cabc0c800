//! Containers that a client asks for while it drives its own build.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};
use kiln_client::api::control::SolveRequest;
use kiln_client::api::errdetails::Detail;
use kiln_client::api::gateway::exec_message::Input;
use kiln_client::api::gateway::llb_bridge_client::LlbBridgeClient;
use kiln_client::api::gateway::{
    self as wire, ExecMessage, FdMessage, InitMessage, NewContainerRequest, ReadDirRequest, ReadFileRequest,
    ReleaseContainerRequest, ResizeMessage, ReturnRequest, SignalMessage, StatFileRequest,
};
use kiln_client::{Client, ConnectOptions};
use kiln_llb::pb;
use kiln_llb::state::{Constraints, FileActions, State};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};

use crate::frontends::dockerfile_frontend;
use crate::support::{LIMIT, Site, hub, mounts_below, processes_with, unique};

/// A build that the test drives.
struct Build {
    gateway: LlbBridgeClient<Channel>,
    id: String,
    solve: JoinSet<Result<(), Status>>,
}

impl Build {
    async fn start(site: &Site) -> Result<Self> {
        let client = Client::connect(&site.daemon.address(), ConnectOptions::default()).await?;
        let id = unique()?.replace('-', "");
        let request = SolveRequest { r#ref: id.clone(), ..Default::default() };
        let mut control = client.control();
        let mut solve = JoinSet::new();
        solve.spawn(async move { control.solve(request).await.map(drop) });
        Ok(Self { gateway: LlbBridgeClient::new(client.channel()), id, solve })
    }

    fn call<T>(&self, message: T) -> Result<Request<T>> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("buildkit-controlapi-buildid", self.id.parse()?);
        Ok(request)
    }

    /// Solves a state; the id of the result.
    async fn solve(&mut self, state: &State) -> Result<String> {
        let definition = Some(state.marshal(&Constraints::default())?);
        self.ask(wire::SolveRequest { definition, ..Default::default() }).await
    }

    /// Solves a request; the id of the result.
    async fn ask(&mut self, mut asked: wire::SolveRequest) -> Result<String> {
        (asked.allow_result_return, asked.allow_result_array_ref) = (true, true);
        let asked = self.call(asked)?;
        match self.gateway.solve(asked).await?.into_inner().result.and_then(|r| r.result) {
            Some(wire::result::Result::Ref(made)) => Ok(made.id),
            other => bail!("no single result: {other:?}"),
        }
    }

    /// A container `c` with the base image as its root, and more mounts.
    async fn container(&mut self, more: Vec<pb::Mount>) -> Result<()> {
        let root = self.solve(&State::image(&hub()?.base)).await?;
        let mut mounts = vec![mount("/", &root)];
        mounts.extend(more);
        let asked = NewContainerRequest { container_id: "c".into(), mounts, ..Default::default() };
        let asked = self.call(asked)?;
        self.gateway.new_container(asked).await?;
        Ok(())
    }

    async fn stream(&mut self) -> Result<Exec> {
        let (send, messages) = mpsc::channel(8);
        let asked = self.call(ReceiverStream::new(messages))?;
        let answers = self.gateway.exec_process(asked).await?.into_inner();
        Ok(Exec { send, answers, told: BTreeMap::new() })
    }

    async fn release(&mut self) -> Result<(), Status> {
        let asked = ReleaseContainerRequest { container_id: "c".into() };
        let asked = self.call(asked).map_err(|error| Status::unknown(error.to_string()))?;
        self.gateway.release_container(asked).await.map(drop)
    }

    async fn give(&mut self, result: wire::Result) -> Result<()> {
        let asked = self.call(ReturnRequest { result: Some(result), error: None })?;
        self.gateway.r#return(asked).await?;
        Ok(())
    }

    /// Ends the build with an empty result.
    async fn finish(mut self) -> Result<()> {
        self.give(wire::Result::default()).await?;
        self.solve.join_next().await.context("no build")??.map_err(Into::into)
    }
}

fn mount(dest: &str, result: &str) -> pb::Mount {
    pb::Mount { dest: dest.into(), result_id: result.into(), ..Default::default() }
}

/// A stream of processes, and what each has done so far.
struct Exec {
    send: mpsc::Sender<ExecMessage>,
    answers: Streaming<ExecMessage>,
    told: BTreeMap<String, Told>,
}

/// What one process did.
#[derive(Clone, Debug, Default)]
struct Told {
    started: bool,
    stdout: String,
    stderr: String,
    /// Outputs that have ended.
    ends: usize,
    code: Option<u32>,
    error: String,
    /// The code in the error's details.
    detail: Option<u32>,
    done: bool,
}

impl Exec {
    async fn say(&self, process: &str, input: Input) -> Result<()> {
        Ok(self.send.send(ExecMessage { process_id: process.into(), input: Some(input) }).await?)
    }

    async fn init(&self, process: &str, script: &str, tty: bool) -> Result<()> {
        let args = ["/bin/sh", "-c", script].map(str::to_owned).into();
        let meta = Some(pb::Meta { args, ..Default::default() });
        let init =
            InitMessage { container_id: "c".into(), meta, fds: vec![0, 1, 2], tty, ..Default::default() };
        self.say(process, Input::Init(init)).await
    }

    async fn write(&self, process: &str, text: &str, eof: bool) -> Result<()> {
        self.say(process, Input::File(FdMessage { fd: 0, eof, data: text.as_bytes().to_vec().into() })).await
    }

    async fn next(&mut self) -> Result<ExecMessage, Status> {
        let next = tokio::time::timeout(LIMIT, self.answers.message()).await;
        let next = next.map_err(|_| Status::deadline_exceeded("no message"))?;
        next?.ok_or_else(|| Status::aborted("no more messages"))
    }

    /// Takes messages until this holds of `process`, and checks their order.
    async fn until(&mut self, process: &str, holds: impl Fn(&Told) -> bool) -> Result<Told> {
        loop {
            if let Some(told) = self.told.get(process).filter(|told| holds(told)) {
                return Ok(told.clone());
            }
            let message = self.next().await.with_context(|| format!("so far: {:?}", self.told))?;
            let told = self.told.entry(message.process_id).or_default();
            let input = message.input.context("no input")?;
            ensure!(told.started || matches!(input, Input::Started(_)), "{input:?} before the start");
            ensure!(!told.done, "{input:?} after the end");
            match input {
                Input::Started(_) => told.started = true,
                Input::File(file) => {
                    let text = String::from_utf8_lossy(&file.data);
                    if file.fd == 1 {
                        told.stdout.push_str(&text)
                    } else {
                        told.stderr.push_str(&text)
                    }
                    told.ends += usize::from(file.eof);
                }
                Input::Exit(exit) => {
                    told.code = Some(exit.code);
                    let error = exit.error.unwrap_or_default();
                    told.error = error.message;
                    told.detail = error.details.into_iter().map(Detail::from_any).find_map(|d| match d {
                        Detail::Exit { code } => Some(code),
                        _ => None,
                    });
                }
                Input::Done(_) => {
                    ensure!(told.code.is_some(), "done before it ended");
                    told.done = true;
                }
                other => bail!("an answer that is none: {other:?}"),
            }
        }
    }

    /// Waits until `process` is done.
    async fn done(&mut self, process: &str) -> Result<Told> {
        self.until(process, |told| told.done).await
    }

    /// Waits until `process` has written `text`.
    async fn wait_for(&mut self, process: &str, text: &str) -> Result<()> {
        self.until(process, |told| told.stdout.contains(text)).await.map(drop)
    }
}

fn run(test: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(test)
}

#[test]
fn processes_run_in_a_container_and_talk() -> Result<()> {
    let site = Site::new(&[])?;
    run(async {
        let mut build = Build::start(&site).await?;
        let data =
            build.solve(&State::scratch().file(FileActions::new().mkfile("/in", 0o644, "mounted\n"))).await?;
        build.container(vec![mount("/data", &data)]).await?;
        let mut exec = build.stream().await?;
        // The first process is the container's; others join it.
        exec.init("1", "cat > /got; echo first ends >&2; exit 3", false).await?;
        exec.init("2", "cat /data/in; echo new > /data/new; echo root > /made; cd /; pwd; echo $PATH", false)
            .await?;
        let told = exec.done("2").await?;
        assert_eq!(told.stdout, "mounted\n/\n/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n");
        assert_eq!((told.code, told.error.as_str()), (Some(0), ""));
        // Files of the mounts, as they are now.
        for (index, path, want) in [(1, "/new", "new\n"), (1, "in", "mounted\n"), (0, "/made", "root\n")] {
            let asked =
                build.call(StatFileRequest { r#ref: "c".into(), path: path.into(), mount_index: index })?;
            let found =
                build.gateway.stat_file_container(asked).await?.into_inner().stat.context("no stat")?;
            assert_eq!(found.path, path.trim_start_matches('/'));
            let asked = ReadFileRequest {
                r#ref: "c".into(),
                file_path: path.into(),
                range: None,
                mount_index: index,
            };
            let asked = build.call(asked)?;
            assert_eq!(build.gateway.read_file_container(asked).await?.into_inner().data, want.as_bytes());
        }
        let asked = build.call(ReadDirRequest {
            r#ref: "c".into(),
            dir_path: "/".into(),
            mount_index: 1,
            ..Default::default()
        })?;
        let entries = build.gateway.read_dir_container(asked).await?.into_inner().entries;
        assert_eq!(entries.iter().map(|e| e.path.as_str()).collect::<Vec<_>>(), ["in", "new"]);
        exec.write("1", "a lot", false).await?;
        exec.write("1", " of input", true).await?;
        let told = exec.done("1").await?;
        assert_eq!((told.stderr.as_str(), told.ends), ("first ends\n", 2));
        assert_eq!((told.code, told.detail, told.error.as_str()), (Some(3), Some(3), "exit code: 3"));
        // The container has ended with its first process.
        exec.init("3", "true", false).await?;
        let told = exec.done("3").await?;
        assert_eq!(told.code, Some(255));
        assert!(told.error.contains("has stopped"), "{}", told.error);
        build.release().await?;
        let released = build.release().await.map_err(|status| status.message().to_owned());
        assert_eq!(released, Err("container details for c not found".to_owned()));
        build.finish().await
    })?;
    assert!(mounts_below(&site.daemon.root())?.is_empty());
    Ok(())
}

#[test]
fn terminals_have_sizes_and_signals_arrive() -> Result<()> {
    let site = Site::new(&[])?;
    run(async {
        let mut build = Build::start(&site).await?;
        build.container(Vec::new()).await?;
        let mut exec = build.stream().await?;
        exec.init("t", "trap 'stty size; exit 0' WINCH; echo term=$TERM; while :; do sleep 0.1; done", true)
            .await?;
        exec.wait_for("t", "term=xterm").await?;
        exec.say("t", Input::Resize(ResizeMessage { rows: 33, cols: 77 })).await?;
        let told = exec.done("t").await?;
        assert!(told.stdout.contains("33 77"), "{told:?}");
        build.release().await?;

        build.container(Vec::new()).await?;
        exec.init("s", "trap 'echo caught; exit 9' USR1; echo ready; while :; do sleep 0.1; done", false)
            .await?;
        exec.wait_for("s", "ready").await?;
        exec.say("s", Input::Signal(SignalMessage { name: "USR1".into() })).await?;
        let told = exec.done("s").await?;
        assert_eq!((told.stdout.as_str(), told.code), ("ready\ncaught\n", Some(9)));
        build.release().await?;
        build.finish().await
    })
}

#[test]
fn inputs_reach_a_frontend_image() -> Result<()> {
    let image = dockerfile_frontend()?;
    let site = Site::new(&[])?;
    run(async {
        let mut build = Build::start(&site).await?;
        let file = |name: &str, text: &str| -> Result<pb::Definition> {
            let state = State::scratch().file(FileActions::new().mkfile(name, 0o644, text));
            Ok(state.marshal(&Constraints::default())?)
        };
        let opts = [("source", image), ("context:other", "input:given")];
        let inputs = [
            ("dockerfile", file("/Dockerfile", "FROM scratch\nCOPY --from=other /in /out\n")?),
            ("context", file("/unused", "")?),
            ("given", file("/in", "from an input")?),
        ];
        let id = build
            .ask(wire::SolveRequest {
                frontend: "gateway.v0".into(),
                frontend_opt: opts.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
                frontend_inputs: inputs.map(|(k, v)| (k.to_owned(), v)).into(),
                ..Default::default()
            })
            .await?;
        let asked = ReadFileRequest { r#ref: id, file_path: "/out".into(), ..Default::default() };
        let asked = build.call(asked)?;
        assert_eq!(build.gateway.read_file(asked).await?.into_inner().data, b"from an input");
        // What is returned has to be the build's.
        let reference = wire::Ref { id: "nonsense".into(), def: None };
        let wrong = wire::Result { result: Some(wire::result::Result::Ref(reference)), ..Default::default() };
        let refused = build.give(wrong).await.err().context("taken all the same")?;
        assert!(refused.to_string().contains("no such ref: nonsense"), "{refused}");
        build.finish().await
    })
}

#[test]
fn a_container_ends_with_its_release_and_with_its_client() -> Result<()> {
    let site = Site::new(&[])?;
    let mark = unique()?;
    let sleeper = format!("sleep 1000; : {mark}");
    let runs = || processes_with(&mark).is_ok_and(|found| !found.is_empty());
    run(async {
        let mut build = Build::start(&site).await?;
        build.container(Vec::new()).await?;
        let mut exec = build.stream().await?;
        exec.init("1", &format!("echo up; {sleeper}"), false).await?;
        exec.wait_for("1", "up").await?;
        build.release().await?;
        assert!(!runs(), "released, and still running");
        let told = exec.done("1").await?;
        assert_eq!(told.code, Some(255));

        build.container(Vec::new()).await?;
        exec.init("2", &format!("echo up; {sleeper}"), false).await?;
        exec.wait_for("2", "up").await?;
        assert!(runs());
        Ok(())
    })?;
    // The client has gone with the runtime.
    kiln_tests::wait_for("the end of its processes", LIMIT, None, || !runs())?;
    kiln_tests::wait_for("the end of its mounts", LIMIT, None, || {
        mounts_below(&site.daemon.root()).is_ok_and(|mounts| mounts.is_empty())
    })
}

#[test]
fn what_is_wrong_with_a_container_is_said() -> Result<()> {
    let site = Site::new(&[])?;
    run(async {
        let mut build = Build::start(&site).await?;
        let root = build.solve(&State::image(&hub()?.base)).await?;
        let new = |mounts: Vec<pb::Mount>, network: pb::NetMode| NewContainerRequest {
            container_id: "x".into(),
            mounts,
            network: network.into(),
            ..Default::default()
        };
        let tmpfs = pb::Mount { mount_type: pb::MountType::Tmpfs.into(), ..mount("/", "") };
        for (asked, wanted) in [
            (new(vec![mount("/data", &root)], pb::NetMode::Unset), "no rootfs"),
            (new(vec![mount("/", "nonsense")], pb::NetMode::Unset), "no such ref: nonsense"),
            (new(vec![tmpfs], pb::NetMode::Unset), "invalid mount type TMPFS for /"),
            (new(vec![mount("/", &root)], pb::NetMode::Host), "network.host is not allowed"),
        ] {
            let asked = build.call(asked)?;
            let status = build.gateway.new_container(asked).await.err().context("made all the same")?;
            assert!(status.message().contains(wanted), "{wanted}: {status}");
        }
        build.container(Vec::new()).await?;
        let again = build.container(Vec::new()).await.err().context("made twice")?;
        assert_eq!(again.downcast_ref::<Status>().map(Status::code), Some(Code::AlreadyExists));
        // A program that is not there ends the process, not the stream.
        let mut exec = build.stream().await?;
        let meta = pb::Meta { args: vec!["/nowhere".into()], ..Default::default() };
        let init =
            InitMessage { container_id: "c".into(), meta: Some(meta), fds: vec![1, 2], ..Default::default() };
        exec.say("1", Input::Init(init.clone())).await?;
        let told = exec.done("1").await?;
        assert_eq!(told.code, Some(255));
        assert!(told.error.contains("/nowhere"), "{}", told.error);
        // What the client does wrong ends the stream.
        let unknown = InitMessage { container_id: "y".into(), ..init };
        let signal = SignalMessage { name: "NONE".into() };
        for (process, input, code) in [
            ("", Input::Signal(signal.clone()), Code::InvalidArgument),
            ("1", Input::Signal(signal), Code::NotFound),
            ("1", Input::File(FdMessage::default()), Code::NotFound),
            ("1", Input::Init(unknown), Code::NotFound),
        ] {
            let mut exec = build.stream().await?;
            exec.say(process, input).await?;
            assert_eq!(exec.next().await.map_err(|status| status.code()), Err(code));
        }
        build.finish().await
    })
}

#[test]
fn a_daemon_that_stops_ends_containers() -> Result<()> {
    let mut site = Site::new(&[])?;
    let mark = unique()?;
    run(async {
        let mut build = Build::start(&site).await?;
        build.container(Vec::new()).await?;
        let mut exec = build.stream().await?;
        exec.init("1", &format!("echo up; sleep 1000; : {mark}"), false).await?;
        exec.wait_for("1", "up").await?;
        // The client is still there, and waits.
        ensure!(site.daemon.stop()? == Some(0), "the daemon did not end well");
        Ok(())
    })?;
    assert!(processes_with(&mark)?.is_empty() && mounts_below(&site.daemon.root())?.is_empty());
    Ok(())
}
