use std::collections::BTreeMap;
use std::path::Path;
use std::sync::OnceLock;

use kiln_frontend::testing::{FakeBridge, FakeImage, Tree};
use kiln_frontend::{FrontendRequest, GitMetadata, HttpMetadata, SourceMetadata, WorkerInfo, pb};
use prost::Message;
use serde_json::Value;

fn read_json(path: &Path) -> Option<Value> {
    Some(serde_json::from_str(&std::fs::read_to_string(path).ok()?).unwrap())
}

/// Builds what a case is run with.
pub(crate) fn load(case: &Path, cases: &Path) -> (FakeBridge, FrontendRequest) {
    let opts =
        read_json(&case.join("opts.json")).unwrap_or_else(|| Value::Object(serde_json::Map::default()));
    let mut bridge = FakeBridge::default();
    static IMAGES: OnceLock<BTreeMap<String, FakeImage>> = OnceLock::new();
    bridge.images = IMAGES.get_or_init(|| images(cases)).clone();
    let frontend_opts: BTreeMap<String, String> = opts
        .get("frontend_opts")
        .map(|value| serde_json::from_value(value.clone()).unwrap())
        .unwrap_or_default();

    let mut files = tree(&opts["files"]);
    if let Some(dockerfile) = dockerfile(case) {
        files.insert(opts["dockerfile_path"].as_str().unwrap_or("Dockerfile").to_owned(), dockerfile);
    }
    let key = frontend_opts.get("dockerfilekey").map(String::as_str);
    for local in ["context", "dockerfile"].into_iter().chain(key) {
        bridge.trees.insert(format!("local://{local}"), files.clone());
    }
    for (name, files) in objects(&opts["locals"]) {
        bridge.trees.insert(format!("local://{name}"), tree(files));
    }
    for (identifier, files) in objects(&opts["remotes"]) {
        bridge.trees.insert(identifier.clone(), tree(files));
    }
    for (identifier, known) in objects(&opts["source_metadata"]) {
        bridge.sources.insert(identifier.clone(), source_metadata(known));
    }
    let mut request = FrontendRequest::new(frontend_opts);
    request.session_id = "session-id".to_owned();
    let platforms: Vec<String> = match &opts["worker_platforms"] {
        Value::Null => vec!["linux/amd64".to_owned()],
        list => serde_json::from_value(list.clone()).unwrap(),
    };
    let platforms = platforms.iter().map(|text| platform(text)).collect();
    request.workers = vec![WorkerInfo { id: "w1".to_owned(), platforms, ..WorkerInfo::default() }];
    for (name, what) in objects(&opts["inputs"]) {
        request.inputs.insert(name.clone(), input(what.as_str().unwrap()));
    }
    (bridge, request)
}

fn objects(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

fn dockerfile(case: &Path) -> Option<Vec<u8>> {
    if let Some(parts) = read_json(&case.join("Dockerfile.parts.json")) {
        let part = |part: &Value| {
            let times = usize::try_from(part["times"].as_u64().unwrap()).unwrap();
            part["text"].as_str().unwrap().repeat(times)
        };
        return Some(parts.as_array().unwrap().iter().map(part).collect::<String>().into_bytes());
    }
    std::fs::read(case.join("Dockerfile")).ok()
}

fn tree(files: &Value) -> Tree {
    let content = |value: &Value| match value {
        Value::String(text) => text.clone().into_bytes(),
        other => decode(other["base64"].as_str().unwrap()),
    };
    objects(files).map(|(path, value)| (path.clone(), content(value))).collect()
}

fn decode(text: &str) -> Vec<u8> {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut out, mut bits, mut count) = (Vec::new(), 0_u32, 0);
    for b in text.bytes().filter(|&b| b != b'=') {
        bits = bits << 6 | u32::try_from(LETTERS.iter().position(|&letter| letter == b).unwrap()).unwrap();
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push(u8::try_from(bits >> count & 0xff).unwrap());
        }
    }
    out
}

fn images(cases: &Path) -> BTreeMap<String, FakeImage> {
    let file = read_json(&cases.join("images.json")).unwrap();
    let image = |image: &Value| FakeImage {
        digest: image["digest"].as_str().unwrap_or_default().to_owned(),
        configs: objects(&image["configs"])
            .map(|(platform, config)| (platform.clone(), serde_json::to_vec(config).unwrap()))
            .collect(),
    };
    objects(&file["images"]).map(|(name, value)| (name.clone(), image(value))).collect()
}

fn source_metadata(known: &Value) -> SourceMetadata {
    let mut metadata = SourceMetadata::default();
    if let Some(commit) = known["git_commit_object"].as_str() {
        metadata.git =
            Some(GitMetadata { commit_object: commit.as_bytes().to_vec(), ..GitMetadata::default() });
    }
    if let Some(time) = known.get("http_last_modified") {
        let seconds = time.as_i64().or_else(|| parse_time(time.as_str()?));
        metadata.http = Some(HttpMetadata { last_modified: seconds, ..HttpMetadata::default() });
    }
    metadata
}

/// Seconds of a date as HTTP has it, `Thu, 02 Jan 2020 03:04:05 GMT`.
fn parse_time(text: &str) -> Option<i64> {
    const MONTHS: [&str; 12] =
        ["Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec", "Jan", "Feb"];
    let parts: Vec<&str> = text.split([' ', ':']).collect();
    let &[_, day, month, year, hour, minute, second, _] = parts.as_slice() else { return None };
    let number = |text: &str| text.parse::<i64>().ok();
    let month = i64::try_from(MONTHS.iter().position(|&name| name == month)?).ok()?;
    let year = number(year)? - i64::from(month >= 10);
    let days =
        365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + number(day)? - 1 - 719_468;
    Some(((days * 24 + number(hour)?) * 60 + number(minute)?) * 60 + number(second)?)
}

pub(crate) fn platform(text: &str) -> pb::Platform {
    let mut parts = text.split('/').map(str::to_owned);
    let (os, architecture) = (parts.next().unwrap(), parts.next().unwrap_or_default());
    pb::Platform { os, architecture, variant: parts.next().unwrap_or_default(), ..pb::Platform::default() }
}

/// What the client library makes of an input.
fn input(what: &str) -> pb::Definition {
    let (source, platform, caps) = match what.strip_prefix("local:") {
        Some(name) => {
            let attrs = [("local.session".to_owned(), "session-id".to_owned())].into();
            let source = pb::SourceOp { identifier: format!("local://{name}"), attrs };
            (source, None, vec!["source.local", "source.local.sessionid"])
        }
        None => {
            let name = if what.contains('/') { what.to_owned() } else { format!("docker.io/library/{what}") };
            let source =
                pb::SourceOp { identifier: format!("docker-image://{name}"), ..pb::SourceOp::default() };
            (source, Some(platform("linux/amd64")), vec!["source.image"])
        }
    };
    let head = pb::Op { platform, constraints: Some(pb::WorkerConstraints::default()), ..pb::Op::default() };
    let body = pb::Op { op: Some(pb::op::Op::Source(source)), ..pb::Op::default() };
    let op = [head.encode_to_vec(), body.encode_to_vec()].concat();
    let digest = kiln_digest::Digest::of(&op).to_string();
    let caps = caps.into_iter().map(|cap| (cap.to_owned(), true)).collect();
    let last = pb::Op { inputs: vec![pb::Input { digest: digest.clone(), index: 0 }], ..pb::Op::default() };
    pb::Definition {
        def: vec![op, last.encode_to_vec()],
        metadata: [(digest, pb::OpMetadata { caps, ..pb::OpMetadata::default() })].into(),
        source: None,
    }
}
