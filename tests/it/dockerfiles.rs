//! Dockerfiles as they are in the world, built to the end. `testdata/dockerfiles/README.md` says how they are written.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail, ensure};
use kiln_tests::{Finished, write_tree};
use serde_json::Value;

use crate::support::{Site, hub, run};

/// Builds at a time. Each is short, and most of it waits for processes to start.
const AT_ONCE: usize = 4;
/// Names that the stand-in is called by.
const TOOLS: &str = "go cargo npm yarn pnpm pip python mvn gradle javac apt-get apk composer bundle dotnet mix make \
                     cmake gcc nginx corepack addgroup adduser groupadd useradd";

/// A build with what is expected of it: named parts, in order.
struct Case {
    name: String,
    parts: Vec<(String, String)>,
}

impl Case {
    fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)?;
        let mut parts: Vec<(String, String)> = Vec::new();
        for line in text.split_inclusive('\n') {
            let name = line.strip_prefix("-- ").and_then(|rest| rest.strip_suffix(" --\n"));
            match (name, parts.last_mut()) {
                (Some(name), _) => parts.push((name.to_owned(), String::new())),
                (None, Some((_, content))) => content.push_str(line),
                (None, None) => bail!("`{}` does not begin with a part", path.display()),
            }
        }
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { name, parts })
    }

    fn part(&self, name: &str) -> &str {
        self.parts.iter().find(|(known, _)| known == name).map_or("", |(_, content)| content)
    }

    fn write(&self, dir: &Path) -> Result<()> {
        for (name, content) in &self.parts {
            if matches!(name.as_str(), "args" | "contexts" | "config" | "absent" | "present")
                || name.starts_with("want/")
            {
                continue;
            }
            if let Some(archive) = name.strip_prefix("tar:") {
                let members = tempfile::tempdir()?;
                for line in content.lines() {
                    let (name, text) = line.split_once('=').context("an archive's line is NAME=CONTENT")?;
                    write_tree(members.path(), &[(name, &format!("{}\n", text.replace("\\n", "\n")))])?;
                }
                let (from, to) =
                    (members.path().display().to_string(), dir.join(archive).display().to_string());
                run("tar", &["-cf", &to, "-C", &from, "."])?;
            } else if let Some(link) = name.strip_suffix('@') {
                std::os::unix::fs::symlink(content.trim_end(), dir.join(link))?;
            } else {
                write_tree(dir, &[(name, content)])?;
            }
        }
        Ok(())
    }

    /// The base images that it names, but for its own stages.
    fn bases(&self) -> Vec<String> {
        let mut bases: Vec<String> = self.part("contexts").lines().map(str::to_owned).collect();
        let mut stages = vec!["scratch".to_owned()];
        let dockerfiles = self.parts.iter().filter(|(name, _)| name.ends_with("Dockerfile"));
        for line in dockerfiles.flat_map(|(_, content)| content.lines()) {
            let mut words = line.split_whitespace();
            if words.next() != Some("FROM") {
                continue;
            }
            let words: Vec<&str> = words.filter(|word| !word.starts_with("--")).collect();
            if let [base, rest @ ..] = words.as_slice() {
                if !base.contains('$') && !stages.iter().any(|stage| stage == base) {
                    bases.push((*base).to_owned());
                }
                stages.extend(rest.last().map(|name| (*name).to_owned()));
            }
        }
        bases
    }

    fn build(&self, site: &Site, tools: &str) -> Result<()> {
        let dir = tempfile::tempdir()?;
        let context = dir.path().join("context");
        self.write(&context)?;
        let (files, layout) = (dir.path().join("files"), dir.path().join("layout"));
        let mut outputs = vec![format!("--output=type=local,dest={}", files.display())];
        if !self.part("config").is_empty() {
            outputs.push(format!("--output=type=oci,tar=false,dest={}", layout.display()));
        }
        for output in outputs {
            let mut command = site.daemon.build_command(&context);
            for base in self.bases() {
                command.arg(format!("--opt=context:{base}=docker-image://{tools}"));
            }
            command.args(self.part("args").split_whitespace()).arg(output).current_dir(&context);
            Finished::run(&mut command)?.success()?;
        }
        for (name, want) in &self.parts {
            let Some(path) = name.strip_prefix("want/") else { continue };
            let got = std::fs::read_to_string(files.join(path)).with_context(|| format!("no `{path}`"))?;
            ensure!(got == *want, "`{path}` is {got:?}, not {want:?}");
        }
        for (part, there) in [("absent", false), ("present", true)] {
            for path in self.part(part).lines() {
                ensure!(files.join(path).exists() == there, "`{path}` is not {part}");
            }
        }
        if self.part("config").is_empty() { Ok(()) } else { self.check_config(&layout) }
    }

    fn check_config(&self, layout: &Path) -> Result<()> {
        let blob = |descriptor: &Value| -> Result<Value> {
            let digest = descriptor["digest"].as_str().context("no digest")?;
            let text = std::fs::read(layout.join("blobs").join(digest.replace(':', "/")))?;
            Ok(serde_json::from_slice(&text)?)
        };
        let index: Value = serde_json::from_slice(&std::fs::read(layout.join("index.json"))?)?;
        let config = blob(&blob(&index["manifests"][0])?["config"])?;
        for line in self.part("config").lines() {
            let (key, want) = line.split_once('=').context("config is KEY=VALUE")?;
            let value = &config["config"][key];
            ensure!(has(value, want), "{key} is {value}, not `{want}`");
        }
        Ok(())
    }
}

/// Whether a value of the config is, or has, what is wanted.
fn has(value: &Value, want: &str) -> bool {
    match value {
        Value::String(text) => text == want,
        Value::Array(list) => {
            let list: Vec<&str> = list.iter().filter_map(Value::as_str).collect();
            list.contains(&want) || list.join(" ") == want
        }
        Value::Object(map) => map.iter().any(|(key, value)| {
            key == want || value.as_str().is_some_and(|value| format!("{key}={value}") == want)
        }),
        _ => false,
    }
}

/// Makes the image that stands in for all base images, and pushes it.
fn push_tools(data: &Path) -> Result<String> {
    let hub = hub()?;
    let tools = format!("{}/tools:latest", hub.registry.address());
    let script = std::fs::read_to_string(data.join("tools.sh"))?;
    let site = Site::new(&[
        (
            "Dockerfile",
            "ARG BASE\nFROM $BASE\nCOPY --chmod=755 tools.sh /usr/local/bin/tool\nARG TOOLS\n\
             RUN for name in $TOOLS; do ln -s tool /usr/local/bin/$name; done && mkdir -p /etc/nginx/conf.d /usr/share/nginx/html\n\
             ENV PATH=/usr/local/bin:/usr/bin:/bin\n",
        ),
        ("tools.sh", &script),
    ])?;
    let output = format!("--output=type=image,name={tools},push=true");
    site.build(&[&format!("--opt=build-arg:TOOLS={TOOLS}"), &output])?.success()?;
    Ok(tools)
}

#[test]
fn real_world_dockerfiles_build() -> Result<()> {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/dockerfiles");
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(&data)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    paths.sort();
    let cases: VecDeque<Case> = paths.iter().map(|path| Case::read(path)).collect::<Result<_>>()?;
    ensure!(cases.len() >= 40, "{} Dockerfiles", cases.len());
    let tools = push_tools(&data)?;
    let site = Site::new(&[])?;
    let (cases, failed) = (Mutex::new(cases), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let next = cases.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                    let Some(case) = next else { return };
                    if let Err(error) = case.build(&site, &tools) {
                        let text = format!("{}: {error:#}", case.name);
                        failed.lock().unwrap_or_else(PoisonError::into_inner).push(text);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    ensure!(failed.is_empty(), "{} failed:\n{}", failed.len(), failed.join("\n"));
    Ok(())
}
