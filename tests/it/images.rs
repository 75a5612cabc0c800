//! What a Dockerfile makes: configuration and files of the image.

use anyhow::Result;
use expect_test::{Expect, expect};

use crate::support::{Site, check_contains, hub, outcome, tree};

#[test]
fn an_image_has_the_files_and_configuration_of_its_dockerfile() -> Result<()> {
    let site = Site::new(&[
        ("file", "from the context\n"),
        (
            "Dockerfile",
            r#"ARG BASE
FROM ${BASE} AS build
ARG GREETING=hello
ENV WHO=world
WORKDIR /src
COPY file .
RUN echo "$GREETING $WHO from $(pwd): $(cat file)" > /greeting
RUN ["/bin/sh", "-c", "echo $0 $(id -u)", "exec"]
RUN id -u > /uid
FROM ${BASE} AS unused
RUN exit 1
FROM $BASE
LABEL a=b "c d"="e f"
ENV X=1 Y="two words"
WORKDIR /app
COPY --from=build /greeting /app/
COPY --from=build --chown=app:extra --chmod=0640 /uid /app/id
USER app
RUN id -u > /tmp/app && id -G >> /tmp/app
EXPOSE 80 53/udp
VOLUME /data
STOPSIGNAL SIGUSR1
SHELL ["/bin/sh", "-ec"]
ENTRYPOINT ["/bin/cat"]
CMD ["/app/greeting"]
"#,
        ),
    ])?;
    let image = site.image(&["--opt=build-arg:GREETING=good morning"])?;
    let config = image.config()?;
    expect![[r#"
        {
          "User": "app",
          "ExposedPorts": {
            "53/udp": {},
            "80/tcp": {}
          },
          "Env": [
            "PATH=/usr/bin:/bin",
            "X=1",
            "Y=two words"
          ],
          "Entrypoint": [
            "/bin/cat"
          ],
          "Cmd": [
            "/app/greeting"
          ],
          "Volumes": {
            "/data": {}
          },
          "WorkingDir": "/app",
          "Labels": {
            "a": "b",
            "c d": "e f"
          },
          "StopSignal": "SIGUSR1",
          "ArgsEscaped": true,
          "Shell": [
            "/bin/sh",
            "-ec"
          ]
        }"#]]
    .assert_eq(&serde_json::to_string_pretty(&config["config"])?);
    assert_eq!((&config["architecture"], &config["os"]), (&"amd64".into(), &"linux".into()));
    let layers = image.manifest()?["layers"].as_array().map_or(0, Vec::len);
    let diff_ids = config["rootfs"]["diff_ids"].as_array().map_or(0, Vec::len);
    let with_layer =
        config["history"].as_array().into_iter().flatten().filter(|h| h["empty_layer"] != true).count();
    assert_eq!((layers, diff_ids), (with_layer, with_layer));

    let root = image.unpack()?;
    expect![[r#"
        -0644 0:0 greeting "good morning world from /src: from the context\n"
        -0640 1000:2000 id "0\n"
    "#]]
    .assert_eq(&tree(&root.join("app"))?);
    assert_eq!(std::fs::read_to_string(root.join("tmp/app"))?, "1000\n1000 2000\n");
    assert!(root.join("bin/busybox").is_file() && !root.join("src").exists());
    Ok(())
}

/// Files of a context, and what a Dockerfile makes of them.
#[track_caller]
fn check_files(files: &[(&str, &str)], dockerfile: &str, args: &[&str], want: Expect) -> Result<()> {
    let site = Site::new(files)?;
    let built = site.dockerfile(dockerfile, args)?;
    want.assert_eq(&built.tree()?);
    Ok(())
}

const TREE: &[(&str, &str)] = &[
    ("a.txt", "a"),
    ("b.txt", "b"),
    ("c.md", "c"),
    ("dir/d.txt", "d"),
    ("dir/deep/e.txt", "e"),
    ("dir/deep/f.md", "f"),
];

#[test]
fn copy_takes_wildcards_and_directories() -> Result<()> {
    check_files(
        TREE,
        "FROM scratch\nCOPY *.txt /w/\nCOPY dir /dir\nCOPY dir/d?ep/e.txt /renamed\n",
        &[],
        expect![[r#"
            d0755 0:0 dir/
            -0644 0:0 dir/d.txt "d"
            d0755 0:0 dir/deep/
            -0644 0:0 dir/deep/e.txt "e"
            -0644 0:0 dir/deep/f.md "f"
            -0644 0:0 renamed "e"
            d0755 0:0 w/
            -0644 0:0 w/a.txt "a"
            -0644 0:0 w/b.txt "b"
        "#]],
    )
}

#[test]
fn copy_and_add_set_owner_and_mode() -> Result<()> {
    let site = Site::new(TREE)?;
    site.write(&[(
        "Dockerfile",
        "FROM scratch\nCOPY --chown=5:6 --chmod=0701 dir /o\nADD --chown=7 a.txt /p/\nCOPY --chmod=600 b.txt c.md /q/\n",
    )])?;
    let image = site.image(&[])?;
    expect![[r#"
        d0701 5:6 o/
        -0701 5:6 o/d.txt "d"
        d0701 5:6 o/deep/
        -0701 5:6 o/deep/e.txt "e"
        -0701 5:6 o/deep/f.md "f"
        d0755 7:7 p/
        -0644 7:7 p/a.txt "a"
        d0600 0:0 q/
        -0600 0:0 q/b.txt "b"
        -0600 0:0 q/c.md "c"
    "#]]
    .assert_eq(&tree(&image.unpack()?)?);
    Ok(())
}

#[test]
fn dockerignore_hides_files() -> Result<()> {
    let mut files = TREE.to_vec();
    files.push((".dockerignore", "# comment\n*.md\n**/deep\n!dir/deep/e.txt\nDockerfile\n.dockerignore\n"));
    check_files(
        &files,
        "FROM scratch\nCOPY . /\n",
        &[],
        expect![[r#"
            -0644 0:0 a.txt "a"
            -0644 0:0 b.txt "b"
            d0755 0:0 dir/
            -0644 0:0 dir/d.txt "d"
            d0755 0:0 dir/deep/
            -0644 0:0 dir/deep/e.txt "e"
        "#]],
    )
}

#[test]
fn target_stops_at_a_stage() -> Result<()> {
    check_files(
        TREE,
        "FROM scratch AS one\nCOPY a.txt /\nFROM one AS two\nCOPY b.txt /\nFROM two\nCOPY nothing /\n",
        &["--opt=target=two"],
        expect![[r#"
            -0644 0:0 a.txt "a"
            -0644 0:0 b.txt "b"
        "#]],
    )
}

#[test]
fn arguments_reach_their_stages_only() -> Result<()> {
    check_files(
        &[],
        "ARG BASE\nARG TOP=top\nFROM $BASE AS b\nARG TOP\nARG OWN=own\nARG UNSET\nRUN echo \"$TOP $OWN [$UNSET] $TARGETARCH\" > /one\n\
         ARG TARGETARCH\nRUN echo $TARGETARCH > /two\nENV OWN=env\nRUN echo $OWN > /three\nFROM scratch\nCOPY --from=b /one /two /three /\n",
        &["--opt=build-arg:TOP=given", "--opt=build-arg:OWN=mine"],
        expect![[r#"
            -0644 0:0 one "given mine [] \n"
            -0644 0:0 three "env\n"
            -0644 0:0 two "amd64\n"
        "#]],
    )
}

#[test]
fn another_file_name_and_an_inner_from_number() -> Result<()> {
    check_files(
        &[
            ("sub/Other", "FROM scratch\nCOPY a.txt /\nFROM scratch\nCOPY --from=0 /a.txt /copied\n"),
            ("a.txt", "a"),
        ],
        "FROM scratch\nCOPY missing /\n",
        &["--opt=filename=sub/Other"],
        expect![[r#"
            -0644 0:0 copied "a"
        "#]],
    )
}

#[test]
fn removed_files_are_gone_and_links_stay_links() -> Result<()> {
    let site = Site::new(&[(
        "Dockerfile",
        "ARG BASE\nFROM $BASE\nRUN mkdir -p /d/sub && echo 1 > /d/sub/one && echo 2 > /d/two\n\
         RUN rm -r /d/sub && ln -s two /d/link && ln /d/two /d/hard\nRUN rm -rf /d/two /etc/group && mkdir /d/sub\n",
    )])?;
    let image = site.image(&[])?;
    let root = image.unpack()?;
    expect![[r#"
        -0644 0:0 hard "2\n"
        l0777 0:0 link -> two
        d0755 0:0 sub/
    "#]]
    .assert_eq(&tree(&root.join("d"))?);
    assert!(!root.join("etc/group").exists() && root.join("etc/passwd").exists());
    Ok(())
}

#[test]
fn unused_stages_do_not_run() -> Result<()> {
    let site = Site::new(&[])?;
    let built = site.dockerfile(
        "ARG BASE\nFROM $BASE AS never\nRUN echo never-run && false\nFROM $BASE AS used\nRUN echo used > /used\n\
         FROM scratch\nCOPY --from=used /used /\n",
        &[],
    )?;
    assert_eq!(outcome(&built.log, "RUN echo never-run"), "", "{}", built.log);
    assert_eq!(outcome(&built.log, "RUN echo used"), "DONE", "{}", built.log);
    Ok(())
}

#[test]
fn progress_shows_steps_and_their_output() -> Result<()> {
    let site = Site::new(&[(
        "Dockerfile",
        "ARG BASE\nFROM $BASE\nRUN echo to-$((40 + 2)) && echo err-$((40 + 3)) >&2\n",
    )])?;
    let log = site.build(&[])?.success()?.stderr;
    check_contains(
        &log,
        &[
            "[internal] load build definition from Dockerfile",
            "[internal] load .dockerignore",
            &format!("FROM {}", hub()?.base),
            "RUN echo to-$((40 + 2))",
            "to-42",
            "err-43",
        ],
    );
    Ok(())
}
