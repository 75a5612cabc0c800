//! Caches exported to directories and registries, and imported by other daemons.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use kiln_tests::vectors::cache_keys;
use kiln_tests::{Binaries, Finished};
use serde_json::{Value, json};

use crate::support::{Image, Site, check_contains, check_outcomes, hub, outcome, run, unique};

/// Three steps, the last of which copies out of the second; each has an answer that differs each time it runs.
const STEPS: &str = "ARG BASE\nFROM $BASE AS build\nRUN cat /proc/sys/kernel/random/uuid > /first\nCOPY used /used\n\
     RUN cat /used /proc/sys/kernel/random/uuid > /second\nFROM scratch\nCOPY --from=build /first /second /\n";
const ALL: [&str; 4] = ["RUN cat /proc", "COPY used", "RUN cat /used", "COPY --from"];

/// A directory for a cache.
struct Cache(tempfile::TempDir);

impl Cache {
    fn new() -> Result<Self> {
        Ok(Self(tempfile::tempdir()?))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn export(&self, more: &str) -> String {
        format!("--export-cache=type=local,dest={}{more}", self.path().display())
    }

    fn import(&self) -> String {
        format!("--import-cache=type=local,src={}", self.path().display())
    }

    fn blob(&self, digest: &Value) -> Result<PathBuf> {
        let digest = digest.as_str().context("no digest")?;
        Ok(self.path().join("blobs").join(digest.replace(':', "/")))
    }

    fn json(&self, digest: &Value) -> Result<Value> {
        Ok(serde_json::from_slice(&std::fs::read(self.blob(digest)?)?)?)
    }

    fn index(&self) -> Result<Value> {
        Ok(serde_json::from_slice(&std::fs::read(self.path().join("index.json"))?)?)
    }

    fn manifest(&self) -> Result<Value> {
        self.json(&self.index()?["manifests"][0]["digest"])
    }

    fn config(&self) -> Result<Value> {
        self.json(&self.manifest()?["config"]["digest"])
    }

    /// Replaces the config, and the manifest so that it fits.
    fn replace_config(&self, config: &[u8]) -> Result<()> {
        let mut manifest = self.manifest()?;
        manifest["config"]["digest"] = json!(self.put(config)?);
        manifest["config"]["size"] = json!(config.len());
        self.replace_manifest(&serde_json::to_vec(&manifest)?)
    }

    fn replace_manifest(&self, manifest: &[u8]) -> Result<()> {
        let mut index = self.index()?;
        index["manifests"][0]["digest"] = json!(self.put(manifest)?);
        index["manifests"][0]["size"] = json!(manifest.len());
        Ok(std::fs::write(self.path().join("index.json"), serde_json::to_vec(&index)?)?)
    }

    fn put(&self, bytes: &[u8]) -> Result<String> {
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), bytes)?;
        let sum = Finished::run(std::process::Command::new("sha256sum").arg(file.path()))?.success()?.stdout;
        let hex = sum.split(' ').next().context("no sum")?;
        std::fs::write(self.path().join("blobs/sha256").join(hex), bytes)?;
        Ok(format!("sha256:{hex}"))
    }
}

fn all(outcome: &'static str) -> Vec<(&'static str, &'static str)> {
    ALL.iter().map(|step| (*step, outcome)).collect()
}

#[test]
fn what_was_recorded_is_exported() -> Result<()> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/cache-keys");
    let tally = cache_keys::run(&Binaries::from_env()?, &dir)?;
    ensure!(tally.failed.is_empty(), "{tally}");
    assert_eq!((tally.passed, tally.skipped.len()), (86, 0), "{tally}");
    Ok(())
}

#[test]
fn a_new_daemon_runs_nothing_that_was_exported() -> Result<()> {
    for (kind, more) in
        [("manifest", ",mode=max"), ("index", ",mode=max,image-manifest=false,compression=zstd")]
    {
        let cache = Cache::new()?;
        let site = Site::new(&[("Dockerfile", STEPS), ("used", "1\n")])?;
        let first = site.local(&[&cache.export(more)])?;
        check_contains(
            &first.log,
            &["exporting cache to client directory", "preparing build cache for export"],
        );
        let other = Site::new(&[("Dockerfile", STEPS), ("used", "1\n")])?;
        let import = cache.import();
        let built = other.local(&[&import])?;
        check_outcomes(&built.log, &all("CACHED"));
        check_contains(&built.log, &["importing cache manifest from local:"]);
        assert_eq!(built.tree()?, first.tree()?, "{kind}");
        // It is kept: without the import, and after a restart.
        let again = other.local(&[])?;
        check_outcomes(&again.log, &all("CACHED"));
        assert_eq!(again.tree()?, first.tree()?);
    }
    Ok(())
}

#[test]
fn a_changed_step_runs_with_what_depends_on_it() -> Result<()> {
    let cache = Cache::new()?;
    let site = Site::new(&[("Dockerfile", STEPS), ("used", "1\n")])?;
    let first = site.local(&[&cache.export(",mode=max")])?;
    let other = Site::new(&[("Dockerfile", STEPS), ("used", "2\n")])?;
    let changed = other.local(&[&cache.import()])?;
    check_outcomes(
        &changed.log,
        &[
            ("RUN cat /proc", "CACHED"),
            ("COPY used", "DONE"),
            ("RUN cat /used", "DONE"),
            ("COPY --from", "DONE"),
        ],
    );
    assert_eq!(changed.read("first")?, first.read("first")?);
    // What was made on top of the imported step is found without the import.
    let again = other.local(&[])?;
    check_outcomes(&again.log, &all("CACHED"));
    assert_eq!(again.tree()?, changed.tree()?);
    Ok(())
}

#[test]
fn min_has_the_result_and_max_all_steps() -> Result<()> {
    let site = Site::new(&[("Dockerfile", STEPS), ("used", "1\n")])?;
    let (min, max) = (Cache::new()?, Cache::new()?);
    site.local(&[&max.export(",mode=max")])?;
    // On a daemon that has made no layers for it yet.
    let site = Site::new(&[("Dockerfile", STEPS), ("used", "1\n")])?;
    site.local(&[&min.export("")])?;
    let results = |cache: &Cache| -> Result<usize> {
        let config = cache.config()?;
        let records = config["records"].as_array().context("no records")?;
        Ok(records.iter().filter(|record| record.get("layers").is_some()).count())
    };
    assert_eq!((results(&min)?, results(&max)?), (1, 4));
    // The result is there, so nothing runs; a changed last step needs all before it.
    let other = Site::new(&[("Dockerfile", STEPS), ("used", "1\n")])?;
    check_outcomes(&other.local(&[&min.import()])?.log, &all("CACHED"));
    let fresh =
        Site::new(&[("Dockerfile", &STEPS.replace("/first /second /", "/second /")), ("used", "1\n")])?;
    let built = fresh.local(&[&min.import()])?;
    check_outcomes(&built.log, &[("RUN cat /proc", "DONE"), ("RUN cat /used", "DONE")]);
    Ok(())
}

#[test]
fn broken_caches_are_seen_and_do_no_harm() -> Result<()> {
    let site = Site::new(&[("Dockerfile", STEPS), ("used", "1\n")])?;
    let digest = json!("sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa");
    type Harm = Box<dyn Fn(&Cache) -> Result<()>>;
    let config = |text: String| -> Harm { Box::new(move |cache| cache.replace_config(text.as_bytes())) };
    let loop_of_two = json!({"records": [
        {"digest": digest, "inputs": [[{"link": 1}]]}, {"digest": digest, "inputs": [[{"link": 0}]]},
    ]});
    let cases: Vec<(&str, Harm, &str)> = vec![
        ("no JSON", config("{".to_owned()), "invalid cache config: "),
        ("a circle", config(loop_of_two.to_string()), "invalid looping record"),
        (
            "a bad link",
            config(json!({"records": [{"digest": digest, "inputs": [[{"link": 7}]]}]}).to_string()),
            "invalid record ID: 7",
        ),
        (
            "a layer on itself",
            config(json!({"layers": [{"blob": digest}]}).to_string()),
            "invalid looping layer",
        ),
        ("a huge config", config(" ".repeat(1_100_000) + "{}"), "is too large (1100002 > 1048576)"),
        (
            "a truncated manifest",
            Box::new(|cache| {
                let manifest = serde_json::to_vec(&cache.manifest()?)?;
                cache.replace_manifest(&manifest[..manifest.len() / 2])
            }),
            "invalid cache manifest: ",
        ),
        (
            "bytes that are not what they are called",
            Box::new(|cache| Ok(std::fs::write(cache.blob(&cache.manifest()?["config"]["digest"])?, "{}")?)),
            "has digest sha256:",
        ),
        (
            "a missing config",
            Box::new(|cache| Ok(std::fs::remove_file(cache.blob(&cache.manifest()?["config"]["digest"])?)?)),
            ": not found",
        ),
    ];
    for (name, harm, want) in cases {
        let cache = Cache::new()?;
        site.local(&[&cache.export(",mode=max")])?;
        harm(&cache)?;
        let other = Site::new(&[("Dockerfile", STEPS), ("used", "1\n")])?;
        let built = other.local(&[&cache.import()]).with_context(|| name.to_owned())?;
        check_outcomes(&built.log, &[("importing cache manifest", "ERROR"), ("RUN cat /proc", "DONE")]);
        check_contains(&built.log, &["failed to configure local cache importer: ", want]);
    }
    Ok(())
}

/// Puts other bytes in place of each layer that is not of the base image.
fn spoil(cache: &Cache, with: impl Fn(&Path) -> Result<()>) -> Result<()> {
    let config = cache.config()?;
    for layer in config["layers"].as_array().context("no layers")? {
        if layer.get("parent") != Some(&json!(-1)) {
            with(&cache.blob(&layer["blob"])?)?;
        }
    }
    Ok(())
}

#[test]
fn layers_that_are_gone_or_spoilt_are_misses() -> Result<()> {
    let run =
        "ARG BASE\nFROM $BASE\nRUN cat /proc/sys/kernel/random/uuid > /first\nRUN cat /first > /second\n";
    let site = Site::new(&[("Dockerfile", run)])?;
    let gone = |path: &Path| -> Result<()> { Ok(std::fs::remove_file(path)?) };
    let spoilt = |path: &Path| -> Result<()> {
        let size = usize::try_from(path.metadata()?.len())?;
        std::fs::remove_file(path)?;
        Ok(std::fs::write(path, vec![b'x'; size])?)
    };
    for (name, harm) in [("gone", &gone as &dyn Fn(&Path) -> Result<()>), ("spoilt", &spoilt)] {
        let cache = Cache::new()?;
        let first = site.local(&[&cache.export(",mode=max")])?;
        spoil(&cache, harm)?;
        let other = Site::new(&[("Dockerfile", &format!("{run}RUN cat /second > /third\n"))])?;
        let built = other.local(&[&cache.import()]).with_context(|| name.to_owned())?;
        assert_eq!(outcome(&built.log, "RUN cat /second"), "DONE", "{name}\n{}", built.log);
        assert_eq!(built.read("first")?, built.read("third")?, "{name}");
        assert_ne!(built.read("first")?, first.read("first")?, "{name}: made again");
    }
    Ok(())
}

#[test]
fn layers_come_when_they_are_read() -> Result<()> {
    let cache = Cache::new()?;
    let site = Site::new(&[("Dockerfile", STEPS), ("used", "1\n")])?;
    let first = site.local(&[&cache.export(",mode=max")])?;
    let other = Site::new(&[("Dockerfile", STEPS), ("used", "1\n")])?;
    // Nobody reads anything, so nothing comes.
    other.build(&[&cache.import()])?.success()?;
    let blobs = other.daemon.root().join("kiln/content/blobs/sha256");
    let here = |cache: &Cache| -> Result<usize> {
        let config = cache.config()?;
        let layers = config["layers"].as_array().context("no layers")?.iter();
        let hex = layers.filter_map(|layer| layer["blob"].as_str()?.strip_prefix("sha256:"));
        Ok(hex.filter(|hex| blobs.join(hex).exists()).count())
    };
    assert_eq!(here(&cache)?, 0);
    // The client that could lend them is gone, so they are made, or had from a client that names the cache again.
    let built = other.local(&[&cache.import()])?;
    assert_eq!(built.tree()?, first.tree()?);
    assert_eq!(here(&cache)?, 1, "the last layer alone");
    let fresh = Site::new(&[("Dockerfile", STEPS), ("used", "1\n")])?;
    fresh.build(&[&cache.import()])?.success()?;
    let made = fresh.local(&[])?;
    check_outcomes(&made.log, &all("DONE"));
    assert_ne!(made.tree()?, first.tree()?);
    Ok(())
}

#[test]
fn two_imports_at_once_and_a_build_beside_them() -> Result<()> {
    let (one, two) = (Cache::new()?, Cache::new()?);
    let other_steps = STEPS.replace("cat /proc", "cat  /proc");
    let site = Site::new(&[("Dockerfile", STEPS), ("used", "1\n")])?;
    let first = site.local(&[&one.export(",mode=max")])?;
    let second = site.dockerfile(&other_steps, &[&two.export(",mode=max")])?;
    let target = Site::new(&[("Dockerfile", STEPS), ("used", "1\n")])?;
    let unrelated = target.command(&["--opt=build-arg:X=1"])?;
    let beside = std::thread::scope(|scope| -> Result<()> {
        let run = scope.spawn(move || -> Result<Finished> {
            let mut unrelated = unrelated;
            Finished::run(&mut unrelated)
        });
        let imports = [one.import(), two.import()];
        let imports: Vec<&str> = imports.iter().map(String::as_str).collect();
        let built = target.local(&imports)?;
        assert_eq!(built.log.matches("importing cache manifest from").count(), 2, "{}", built.log);
        run.join().map_err(|_| anyhow::anyhow!("the build beside panicked"))??.success()?;
        Ok(())
    });
    beside?;
    for (dockerfile, want) in [(STEPS, &first), (other_steps.as_str(), &second)] {
        let target = Site::new(&[("Dockerfile", dockerfile), ("used", "1\n")])?;
        let built = target.local(&[&one.import(), &two.import()])?;
        assert_eq!(outcome(&built.log, "COPY --from"), "CACHED", "{}", built.log);
        assert_eq!(built.tree()?, want.tree()?);
    }
    Ok(())
}

#[test]
fn several_directories_each_get_their_own_cache() -> Result<()> {
    let (min, max) = (Cache::new()?, Cache::new()?);
    let site = Site::new(&[("Dockerfile", STEPS), ("used", "1\n")])?;
    site.local(&[&max.export(",mode=max,compression=zstd"), &min.export("")])?;
    assert_ne!(min.index()?["manifests"][0]["digest"], max.index()?["manifests"][0]["digest"]);
    for cache in [&min, &max] {
        let other = Site::new(&[("Dockerfile", STEPS), ("used", "1\n")])?;
        check_outcomes(&other.local(&[&cache.import()])?.log, &[("COPY --from", "CACHED")]);
    }
    Ok(())
}

#[test]
fn a_directory_can_be_reset() -> Result<()> {
    let cache = Cache::new()?;
    let site = Site::new(&[("Dockerfile", STEPS), ("used", "1\n")])?;
    let blobs = || -> Result<usize> { Ok(std::fs::read_dir(cache.path().join("blobs/sha256"))?.count()) };
    site.local(&[&cache.export(",mode=max")])?;
    let first = blobs()?;
    let other_steps = STEPS.replace("cat /proc", "cat  /proc");
    site.dockerfile(&other_steps, &[&cache.export(",mode=max")])?;
    assert!(blobs()? > first);
    site.dockerfile(STEPS, &[&cache.export(",mode=max,reset=true")])?;
    assert_eq!(blobs()?, first, "what the first export needs, and nothing else");
    let other = Site::new(&[("Dockerfile", STEPS), ("used", "1\n")])?;
    check_outcomes(&other.local(&[&cache.import()])?.log, &[("COPY --from", "CACHED")]);
    let wrong = site.build(&[&cache.export(",reset=perhaps")])?.failure()?;
    check_contains(&wrong.stderr, &["failed to parse reset: invalid boolean \"perhaps\""]);
    Ok(())
}

#[test]
fn registries_keep_caches_too() -> Result<()> {
    let reference = format!("{}/cache/steps:it", hub()?.registry.address());
    let site = Site::new(&[("Dockerfile", STEPS), ("used", "1\n")])?;
    for more in ["", ",image-manifest=false", ",oci-mediatypes=false"] {
        let first = site.local(&[&format!("--export-cache=type=registry,ref={reference},mode=max{more}")])?;
        check_contains(&first.log, &["exporting cache to registry"]);
        let other = Site::new(&[("Dockerfile", STEPS), ("used", "1\n")])?;
        let built = other.local(&[&format!("--import-cache=type=registry,ref={reference}")])?;
        check_outcomes(&built.log, &all("CACHED"));
        check_contains(&built.log, &[&format!("importing cache manifest from {reference}")]);
        assert_eq!(built.tree()?, first.tree()?, "{more}");
    }
    // One that is not there shows, and that is all.
    let other = Site::new(&[("Dockerfile", STEPS), ("used", "1\n")])?;
    let built = other.local(&[&format!("--import-cache=type=registry,ref={reference}-not")])?;
    check_outcomes(&built.log, &[("importing cache manifest", "ERROR"), ("RUN cat /proc", "DONE")]);
    Ok(())
}

/// The records that an image carries in its config.
fn inline_records(image: &Image) -> Result<Vec<Value>> {
    let config = image.config()?;
    let text = config["moby.buildkit.cache.v0"].as_str().context("no cache in the config")?;
    let decode = format!("printf %s '{text}' | base64 -d");
    Ok(serde_json::from_str(&run("/bin/sh", &["-c", &decode])?)?)
}

#[test]
fn images_carry_their_own_cache() -> Result<()> {
    const IMAGE: &str = "ARG BASE\nFROM $BASE\nRUN cat /proc/sys/kernel/random/uuid > /first\nCOPY used /used\n\
         RUN cat /used /proc/sys/kernel/random/uuid > /second\n";
    const IMAGE_STEPS: [&str; 3] = ["RUN cat /proc", "COPY used", "RUN cat /used"];
    let reference = format!("{}/cache/inline:{}", hub()?.registry.address(), unique()?);
    let push = format!("--output=type=image,name={reference},push=true,compression=zstd");
    let export = "--export-cache=type=inline";
    let site = Site::new(&[("Dockerfile", IMAGE), ("used", "1\n")])?;
    let first = site.build(&[&push, export])?.success()?;
    check_contains(&first.stderr, &["preparing layers for inline cache"]);
    let image = Image::pull(&format!("docker://{reference}"))?;
    let layers = image.manifest()?["layers"].as_array().map_or(0, Vec::len);
    let records = inline_records(&image)?;
    let mut tops: Vec<_> = records.iter().filter_map(|r| r["layers"][0]["layer"].as_u64()).collect();
    tops.sort_unstable();
    tops.dedup();
    assert_eq!(tops.last(), Some(&(layers as u64 - 1)), "{records:?}");
    assert!(tops.len() > 1, "steps below have layers in the image too: {records:?}");

    // Another daemon has all steps from it, and builds a changed last step on the one before.
    let import = format!("--import-cache=type=registry,ref={reference}");
    let other = Site::new(&[("Dockerfile", IMAGE), ("used", "1\n")])?;
    let built = other.local(&[&import])?;
    check_outcomes(&built.log, &IMAGE_STEPS.map(|step| (step, "CACHED")));
    let made = site.local(&[])?;
    for file in ["first", "second"] {
        assert_eq!(built.read(file)?, made.read(file)?);
    }
    let fresh =
        Site::new(&[("Dockerfile", &IMAGE.replace("cat /used /proc", "cat  /used /proc")), ("used", "1\n")])?;
    let built = fresh.local(&[&import])?;
    check_outcomes(
        &built.log,
        &[("RUN cat /proc", "CACHED"), ("COPY used", "CACHED"), ("RUN cat  /used", "DONE")],
    );
    assert_eq!(built.read("first")?, made.read("first")?);

    // So do images in archives, and images of several platforms.
    let archive = site.image(&[export])?;
    assert!(!inline_records(&archive)?.is_empty());
    let plain = site.image(&[])?;
    assert_eq!(plain.config()?.get("moby.buildkit.cache.v0"), None);
    let several = format!("--output=type=image,name={reference}-several,push=true");
    let platforms = "--opt=platform=linux/amd64,linux/arm64";
    let copy = "FROM scratch\nARG TARGETARCH\nCOPY used /used-$TARGETARCH\n";
    let site = Site::new(&[("Dockerfile", copy), ("used", "3\n")])?;
    site.build(&[&several, export, platforms])?.success()?;
    let other = Site::new(&[("Dockerfile", copy), ("used", "3\n")])?;
    let built = other.build(&[platforms, &format!("{import}-several")])?.success()?;
    let copies = built.stderr.lines().filter(|line| line.ends_with(" CACHED")).count();
    assert_eq!(copies, 2, "{}", built.stderr);

    // An image without a cache is no cache, which is said and does no harm.
    let import = format!("--import-cache=type=registry,ref={}", hub()?.base);
    let built = other.build(&[&import])?.success()?;
    check_contains(&built.stderr, &["no cache in sha256:"]);
    Ok(())
}

#[test]
fn what_cannot_be_exported_is_said_before_anything_runs() -> Result<()> {
    let site = Site::new(&[("Dockerfile", STEPS), ("used", "1\n")])?;
    for (options, want) in [
        ("type=gha,token=x,url=y", "cache exporter `gha` is not supported yet"),
        ("type=nothing", "unknown cache exporter: \"nothing\""),
        ("type=registry", "failed to configure registry cache exporter: missing ref"),
        (
            "type=local,dest=x,oci-mediatypes=false,image-manifest=true",
            "OCI mediatypes are required for image-manifest cache format",
        ),
    ] {
        let failed = site.build(&[&format!("--export-cache={options}")])?.failure()?;
        check_contains(&failed.stderr, &[want]);
        assert_eq!(outcome(&failed.stderr, "RUN cat /proc"), "", "{}", failed.stderr);
    }
    let ignored = site.build(&["--export-cache=type=gha,token=x,url=y,ignore-error=true"])?.success()?;
    check_contains(&ignored.stderr, &["cache exporter `gha` is not supported yet: ignored"]);
    let inline = site.build(&["--import-cache=type=inline"])?.success()?;
    check_contains(&inline.stderr, &["unknown cache importer: inline"]);
    let unknown = site.build(&["--import-cache=type=s3,bucket=b,region=r"])?.success()?;
    check_contains(&unknown.stderr, &["failed to configure s3 cache importer: it is not supported yet"]);
    Ok(())
}
