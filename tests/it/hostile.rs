//! Contexts and layers made to do harm.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::support::{Site, check_contains, hub, push_layers, run, tree, unique};

/// A file outside of every context, and the text that must never be seen in an image.
struct Outside {
    dir: tempfile::TempDir,
    mark: String,
}

impl Outside {
    fn new() -> Result<Self> {
        let outside = Self { dir: tempfile::tempdir()?, mark: unique()? };
        std::fs::write(outside.dir.path().join("private"), &outside.mark)?;
        Ok(outside)
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("private")
    }

    /// Nothing but the file with its text is there.
    fn untouched(&self) -> Result<bool> {
        Ok(std::fs::read_to_string(self.file())? == self.mark
            && std::fs::read_dir(self.dir.path())?.count() == 1)
    }
}

#[test]
fn links_out_of_the_context_lead_nowhere() -> Result<()> {
    let outside = Outside::new()?;
    let site = Site::new(&[("in/file", "in")])?;
    symlink(outside.file(), site.context().join("absolute"))?;
    symlink(format!("../../../../../../../..{}", outside.file().display()), site.context().join("relative"))?;
    symlink(outside.dir.path(), site.context().join("directory"))?;
    symlink("loop", site.context().join("loop"))?;
    for from in ["absolute", "relative", "directory/private", "loop", "../private", "/../../private"] {
        let copy = format!("FROM scratch\nCOPY {from} /copied\n");
        site.write(&[("Dockerfile", &copy)])?;
        let finished = site.build(&[])?.failure()?;
        assert!(finished.stderr.contains("error: failed to solve"), "{from}: {}", finished.stderr);
        assert!(!finished.stderr.contains(&outside.mark), "{from}: {}", finished.stderr);
    }
    // As parts of a directory they are copied as links.
    let built = site.dockerfile("FROM scratch\nCOPY . /all/\n", &[])?;
    assert!(!built.tree()?.contains(&outside.mark), "{}", built.tree()?);
    assert!(built.path().join("all/absolute").is_symlink() && built.path().join("all/loop").is_symlink());
    Ok(())
}

#[test]
fn links_in_an_image_are_followed_inside_it() -> Result<()> {
    let outside = Outside::new()?;
    let site = Site::new(&[("file", "new\n")])?;
    let dir = outside.dir.path().display();
    let image = {
        site.write(&[(
            "Dockerfile",
            &format!(
                "ARG BASE\nFROM $BASE\nRUN ln -s {dir} /out && ln -s ../../../../..{dir} /up && ln -s {dir}/private /leaf\n\
                 COPY file /out/one\nCOPY file /up/two\nCOPY file /leaf\nWORKDIR /out/three\nRUN --mount=type=cache,target=/out/four true\n"
            ),
        )])?;
        site.image(&[])?
    };
    assert!(outside.untouched()?);
    let inside = image.unpack()?.join(outside.dir.path().strip_prefix("/")?);
    let names: Vec<_> =
        tree(&inside)?.lines().filter_map(|l| l.split(' ').nth(2).map(str::to_owned)).collect();
    check_contains(&names.join("\n"), &["one", "two", "three/"]);
    Ok(())
}

#[test]
fn special_files_of_a_context() -> Result<()> {
    let site = Site::new(&[("file", "x")])?;
    let at = |name: &str| site.context().join(name).display().to_string();
    run("mknod", &[&at("device"), "c", "1", "3"])?;
    run("mkfifo", &[&at("pipe")])?;
    let _socket = std::os::unix::net::UnixListener::bind(at("socket"))?;
    std::fs::write(site.context().join("odd \n\t\u{7f}name"), "odd")?;
    let built = site.dockerfile("ARG BASE\nFROM $BASE AS b\nCOPY . /all/\nRUN ls /all | wc -l > /count\nFROM scratch\nCOPY --from=b /count /\n", &[])?;
    assert!(!built.read("count")?.is_empty());
    Ok(())
}

/// Makes a layer of the files in a directory with GNU tar and more arguments.
fn layer(dir: &Path, name: &str, args: &[&str]) -> Result<PathBuf> {
    let archive = dir.join(name);
    let (dir, to) = (dir.display().to_string(), archive.display().to_string());
    let mut all = vec!["--absolute-names", "-C", &dir, "-cf", &to];
    all.extend(args);
    run("tar", &all)?;
    Ok(archive)
}

#[test]
fn layers_cannot_leave_their_root() -> Result<()> {
    let outside = Outside::new()?;
    let files = tempfile::tempdir()?;
    let dir = files.path();
    let target = outside.dir.path().display().to_string();
    std::fs::write(dir.join("evil"), "evil")?;
    std::fs::write(dir.join("evil2"), "evil")?;
    std::fs::create_dir(dir.join("link-dir"))?;
    std::fs::write(dir.join("link-dir/evil"), "evil")?;
    symlink(&target, dir.join("link"))?;
    symlink(outside.file(), dir.join("leaf"))?;
    let up = "../".repeat(12);
    let layers = [
        ("dots", layer(dir, "dots.tar", &[&format!("--transform=s,^evil,{up}{target}/evil,"), "evil"])?),
        (
            "inner-dots",
            layer(dir, "inner.tar", &[&format!("--transform=s,^evil,a/b/{up}{target}/evil,"), "evil"])?,
        ),
        ("absolute", layer(dir, "absolute.tar", &[&format!("--transform=s,^evil,{target}/evil,"), "evil"])?),
        (
            "through-link",
            layer(dir, "through.tar", &["--transform=s,^link-dir,link,", "link", "link-dir/evil"])?,
        ),
        ("over-leaf", layer(dir, "leaf.tar", &["--transform=s,^evil,leaf,", "leaf", "evil"])?),
        (
            "whiteout",
            layer(dir, "whiteout.tar", &[&format!("--transform=s,^evil,{up}{target}/.wh.private,"), "evil"])?,
        ),
        (
            "opaque",
            layer(dir, "opaque.tar", &[&format!("--transform=s,^evil,{up}{target}/.wh..wh..opq,"), "evil"])?,
        ),
        ("whiteout-dots", layer(dir, "whdots.tar", &["--transform=s,^evil,d/.wh...,", "evil"])?),
        (
            "through-link-whiteout",
            layer(dir, "lw.tar", &["--transform=s,^evil,link/.wh.private,", "link", "evil"])?,
        ),
    ];
    let site = Site::new(&[])?;
    for (name, layer) in layers {
        let image = push_layers(&hub()?.registry, &format!("hostile/{name}"), &[layer])?;
        site.write(&[(
            "Dockerfile",
            &format!("ARG BASE\nFROM {image} AS evil\nFROM $BASE\nCOPY --from=evil / /all/\n"),
        )])?;
        let finished = site.build(&[])?;
        // Either it is unpacked inside its root, or it is refused.
        assert!(
            finished.code == 0 || finished.stderr.contains("error: failed to solve"),
            "{}",
            finished.stderr
        );
        assert!(outside.untouched()?, "{name} reached out: {}", finished.stderr);
        assert!(!finished.stderr.contains("panicked") && !site.daemon.log().contains("panicked"), "{name}");
    }
    site.dockerfile("ARG BASE\nFROM $BASE\nRUN true\n", &[])?;
    Ok(())
}

#[test]
fn a_hard_link_of_a_layer_stays_inside() -> Result<()> {
    let outside = Outside::new()?;
    let files = tempfile::tempdir()?;
    let dir = files.path();
    std::fs::write(dir.join("first"), "first")?;
    std::fs::hard_link(dir.join("first"), dir.join("second"))?;
    let target = outside.file().display().to_string();
    let transform = format!("--transform=flags=h;s,^first,{target},");
    let layer = layer(dir, "hard.tar", &[&transform, "first", "second"])?;
    let image = push_layers(&hub()?.registry, "hostile/hard", &[layer])?;
    let site = Site::new(&[("Dockerfile", &format!("FROM {image}\n"))])?;
    let to = tempfile::tempdir()?;
    let finished = site.build(&[&format!("--output=type=local,dest={}", to.path().display())])?;
    if finished.code == 0 {
        assert!(!tree(to.path())?.contains(&outside.mark));
    }
    assert!(outside.untouched()?);
    Ok(())
}

#[test]
fn damaged_layers_are_refused() -> Result<()> {
    let files = tempfile::tempdir()?;
    let dir = files.path();
    std::fs::write(dir.join("file"), "x".repeat(100_000))?;
    let whole = layer(dir, "whole.tar", &["file"])?;
    let bytes = std::fs::read(&whole)?;
    let truncated = dir.join("truncated.tar");
    std::fs::write(&truncated, &bytes[..50_000])?;
    let mut broken = bytes.clone();
    broken[..512].fill(0xff);
    let garbage = dir.join("garbage.tar");
    std::fs::write(&garbage, broken)?;
    let site = Site::new(&[])?;
    for (name, layer) in [("truncated", truncated), ("garbage", garbage)] {
        let image = push_layers(&hub()?.registry, &format!("hostile/{name}"), &[layer])?;
        site.write(&[("Dockerfile", &format!("FROM {image}\nRUN true\n"))])?;
        let finished = site.build(&[])?.failure()?;
        check_contains(&finished.stderr, &["error: failed to solve"]);
        // What was refused once is not taken for good the next time.
        site.build(&[])?.failure()?;
    }
    Ok(())
}

#[test]
fn a_blob_that_is_not_its_digest_is_refused() -> Result<()> {
    let files = tempfile::tempdir()?;
    std::fs::write(files.path().join("file"), unique()?)?;
    let layer = layer(files.path(), "l.tar", &["file"])?;
    let registry = kiln_tests::Registry::start()?;
    let image = push_layers(&registry, "swapped", &[layer])?;
    let mut swapped = 0;
    for entry in
        run("find", &[&registry.storage().display().to_string(), "-name", "data", "-size", "-2k"])?.lines()
    {
        let mut bytes = std::fs::read(entry)?;
        if bytes.starts_with(&[0x1f, 0x8b]) {
            let last = bytes.len() - 1;
            bytes[last] ^= 1;
            std::fs::write(entry, bytes)?;
            swapped += 1;
        }
    }
    assert_eq!(swapped, 1);
    let site = Site::new(&[("Dockerfile", &format!("FROM {image}\nCOPY Dockerfile /\n"))])?;
    let to = tempfile::tempdir()?;
    let finished = site.build(&[&format!("--output=type=local,dest={}", to.path().display())])?.failure()?;
    check_contains(&finished.stderr, &["error: failed to solve"]);
    Ok(())
}

#[test]
fn odd_dockerfiles_do_no_harm() -> Result<()> {
    let site = Site::new(&[])?;
    let long = format!("FROM scratch\nLABEL a={}\n", "x".repeat(70_000));
    let stages: String = (0..300).map(|n| format!("FROM scratch AS s{n}\n")).collect();
    let nested = format!("FROM scratch\nLABEL x={}a{}\n", "${Q:-".repeat(5000), "}".repeat(5000));
    for text in [
        long.as_str(),
        "\u{0}\u{1}\u{2}",
        "FROM scratch\nCOPY <<EOF /x\nno end",
        &nested,
        "# escape=x\nFROM scratch\n",
    ] {
        site.write(&[("Dockerfile", text)])?;
        let finished = site.build(&[])?.failure()?;
        check_contains(&finished.stderr, &["error: failed to solve"]);
    }
    site.dockerfile(&stages, &[])?;
    assert!(!site.daemon.log().contains("panicked"), "{}", site.daemon.log());
    Ok(())
}
