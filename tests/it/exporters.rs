//! Where results go: archives, directories, registries.

use anyhow::Result;
use expect_test::expect;
use kiln_tests::{DaemonOptions, Finished};

use crate::support::{Image, Site, check_contains, hub, inspect, metadata, run, same_tree, tar_names, tree};

const FILES: &[(&str, &str)] = &[
    (
        "Dockerfile",
        "ARG BASE\nFROM $BASE AS build\nCOPY data /data/\nRUN mkdir /made && for i in $(seq 300); do echo line $i; done > /made/lines\n\
         FROM scratch AS small\nCOPY --from=build /made /made\nCOPY data/one /one\nLABEL k=v\nFROM build\n",
    ),
    ("data/one", "1\n"),
    ("data/two", "2\n"),
];

#[test]
fn a_docker_archive_loads() -> Result<()> {
    let site = Site::new(FILES)?;
    let dir = tempfile::tempdir()?;
    let archive = dir.path().join("x.tar");
    let output = format!("--output=type=docker,name=example.org/it/app:v1,dest={}", archive.display());
    site.build(&["--opt=target=small", &output])?.success()?;
    let names = tar_names(&archive)?;
    assert!(
        names.iter().any(|n| n == "manifest.json") && names.iter().any(|n| n == "oci-layout"),
        "{names:?}"
    );
    let image = Image::pull(&format!("docker-archive:{}:example.org/it/app:v1", archive.display()))?;
    assert_eq!(image.config()?["config"]["Labels"]["k"], "v");
    let root = image.unpack()?;
    assert_eq!(std::fs::read_to_string(root.join("one"))?, "1\n");
    assert_eq!(std::fs::read_to_string(root.join("made/lines"))?.lines().count(), 300);
    Ok(())
}

#[test]
fn tar_and_local_hold_the_same_files() -> Result<()> {
    let site = Site::new(FILES)?;
    let dir = tempfile::tempdir()?;
    let archive = dir.path().join("x.tar");
    site.build(&["--opt=target=small", &format!("--output=type=tar,dest={}", archive.display())])?
        .success()?;
    expect![[r#"
        made/
        made/lines
        one
    "#]]
    .assert_eq(&(tar_names(&archive)?.join("\n") + "\n"));
    let unpacked = dir.path().join("unpacked");
    std::fs::create_dir(&unpacked)?;
    run("tar", &["-C", &unpacked.display().to_string(), "-xf", &archive.display().to_string()])?;
    let local = site.local(&["--opt=target=small"])?;
    same_tree(&unpacked, local.path())
}

#[test]
fn an_oci_layout_can_be_a_directory() -> Result<()> {
    let site = Site::new(FILES)?;
    let dir = tempfile::tempdir()?;
    let dest = dir.path().join("layout");
    site.build(&["--opt=target=small", &format!("--output=type=oci,tar=false,dest={}", dest.display())])?
        .success()?;
    let image = Image::pull(&format!("oci:{}", dest.display()))?;
    expect![[r#"
        d0755 0:0 made/
    "#]]
    .assert_eq(&tree(&image.unpack()?)?.lines().take(1).map(|l| format!("{l}\n")).collect::<String>());
    Ok(())
}

#[test]
fn layers_are_compressed_as_asked() -> Result<()> {
    let site = Site::new(FILES)?;
    let mut diff_ids = Vec::new();
    for (compression, media_type, magic) in [
        ("gzip", "application/vnd.oci.image.layer.v1.tar+gzip", &[0x1f, 0x8b][..]),
        ("zstd", "application/vnd.oci.image.layer.v1.tar+zstd", &[0x28, 0xb5, 0x2f, 0xfd]),
        ("uncompressed", "application/vnd.oci.image.layer.v1.tar", b"made/"),
    ] {
        let dir = tempfile::tempdir()?;
        let output = format!(
            "--output=type=oci,tar=false,compression={compression},force-compression=true,oci-mediatypes=true,dest={}",
            dir.path().display()
        );
        site.build(&["--opt=target=small", &output])?.success()?;
        let manifest = inspect(&["--raw", &format!("oci:{}", dir.path().display())])?;
        for layer in manifest["layers"].as_array().into_iter().flatten() {
            assert_eq!(layer["mediaType"], media_type, "{manifest}");
        }
        let digest = manifest["layers"][0]["digest"].as_str().unwrap_or_default().replace(':', "/");
        let blob = std::fs::read(dir.path().join("blobs").join(digest))?;
        assert!(blob.starts_with(magic), "{compression}: {:02x?}", blob.get(..8));
        diff_ids.push(Image::pull(&format!("oci:{}", dir.path().display()))?.config()?["rootfs"].clone());
    }
    assert!(diff_ids.windows(2).all(|pair| pair[0] == pair[1]), "{diff_ids:?}");
    Ok(())
}

#[test]
fn a_pushed_image_is_what_the_registry_serves() -> Result<()> {
    let site = Site::new(FILES)?;
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("metadata.json");
    let address = hub()?.registry.address();
    let name = format!("{address}/it/pushed");
    let output = format!("--output=type=image,\"name={name}:v1,{name}:v2\",push=true");
    let log = site.build(&[&output, &format!("--metadata-file={}", file.display())])?.success()?.stderr;
    check_contains(&log, &["pushing manifest for"]);
    let metadata = metadata(&file)?;
    let digest = metadata["containerimage.digest"].as_str().unwrap_or_default();
    for tag in ["v1", "v2"] {
        let seen = inspect(&[&format!("docker://{name}:{tag}")])?;
        assert_eq!(seen["Digest"], digest, "{seen}");
    }
    assert_eq!(metadata["image.name"], format!("{name}:v1,{name}:v2"));
    assert!(metadata["containerimage.config.digest"].as_str().is_some_and(|d| d.starts_with("sha256:")));
    assert_eq!(metadata["containerimage.descriptor"]["digest"], digest);
    let image = Image::pull(&format!("docker://{name}:v2"))?;
    expect![[r#"
        -0644 0:0 one "1\n"
        -0644 0:0 two "2\n"
    "#]]
    .assert_eq(&tree(&image.unpack()?.join("data"))?);
    Ok(())
}

#[test]
fn the_same_input_gives_the_same_bytes() -> Result<()> {
    let dockerfile = "ARG BASE\nFROM $BASE\nCOPY data /data/\nRUN echo made > /data/three && rm /data/one\nWORKDIR /w\nCMD [\"x\"]\n";
    let mut digests = Vec::new();
    for _ in 0..2 {
        let site = Site::new(FILES)?;
        site.write(&[("Dockerfile", dockerfile)])?;
        let dir = tempfile::tempdir()?;
        let archive = dir.path().join("x.tar");
        let output = format!("--output=type=oci,rewrite-timestamp=true,dest={}", archive.display());
        site.build(&["--opt=build-arg:SOURCE_DATE_EPOCH=1600000000", &output])?.success()?;
        digests.push(run("sha256sum", &[&archive.display().to_string()])?[..64].to_owned());
        // Again on the same daemon, from its cache.
        let again = dir.path().join("y.tar");
        let output = format!("--output=type=oci,rewrite-timestamp=true,dest={}", again.display());
        site.build(&["--opt=build-arg:SOURCE_DATE_EPOCH=1600000000", &output])?.success()?;
        digests.push(run("sha256sum", &[&again.display().to_string()])?[..64].to_owned());
    }
    assert!(digests.windows(2).all(|pair| pair[0] == pair[1]), "{digests:?}");
    Ok(())
}

#[test]
fn an_epoch_sets_the_dates_of_an_image() -> Result<()> {
    let site = Site::new(FILES)?;
    let image = site.image(&["--opt=target=small", "--opt=build-arg:SOURCE_DATE_EPOCH=1600000000"])?;
    assert_eq!(image.config()?["created"], "2020-09-13T12:26:40Z");
    Ok(())
}

#[test]
fn an_archive_goes_to_standard_output() -> Result<()> {
    let site = Site::new(FILES)?;
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("x.tar");
    let mut command = site.command(&["--opt=target=small", "--output=type=tar"])?;
    let status =
        command.stdout(std::fs::File::create(&file)?).stderr(std::process::Stdio::piped()).output()?;
    assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stderr));
    assert_eq!(tar_names(&file)?, ["made/", "made/lines", "one"]);
    Ok(())
}

#[test]
fn bad_outputs_are_refused() -> Result<()> {
    let site = Site::new(FILES)?;
    for (output, message) in [
        ("type=nonsense", "nonsense"),
        ("type=image,name=UPPER/case:bad tag,push=true", ""),
        ("type=oci,dest=/dev/null,compression=lzma", "lzma"),
        ("dest=never", "type"),
    ] {
        let failed = site.build(&["--opt=target=small", &format!("--output={output}")])?.failure()?;
        check_contains(&failed.stderr, &[message]);
        assert!(!failed.stderr.contains("panic"), "{}", failed.stderr);
    }
    site.local(&["--opt=target=small"])?;
    Ok(())
}

#[test]
fn several_outputs_at_once() -> Result<()> {
    let site = Site::new(FILES)?;
    let dir = tempfile::tempdir()?;
    let [a, b] = ["a.tar", "b"].map(|n| dir.path().join(n));
    site.build(&[
        "--opt=target=small",
        &format!("--output=type=tar,dest={}", a.display()),
        &format!("--output=type=local,dest={}", b.display()),
    ])?
    .success()?;
    assert_eq!(tar_names(&a)?, ["made/", "made/lines", "one"]);
    assert!(b.join("made/lines").is_file());
    Ok(())
}

#[test]
fn a_build_without_output_leaves_its_cache() -> Result<()> {
    let site = Site::with_options(FILES, DaemonOptions::default())?;
    site.build(&[])?.success()?;
    let used: Finished = site.daemon.run(&["du", "--format={{json .}}"])?.success()?;
    check_contains(&used.stdout, &["mkdir /made"]);
    Ok(())
}
