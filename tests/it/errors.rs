//! Builds that fail: one clear message, an exit code, and a daemon that goes on.

use anyhow::Result;
use kiln_tests::DaemonOptions;

use crate::support::{Site, check_contains, hub};

/// What is asked for, and what the message must hold.
struct Case<'a> {
    name: &'a str,
    dockerfile: &'a str,
    args: &'a [&'a str],
    want: &'a [&'a str],
}

const CASES: &[Case<'_>] = &[
    Case {
        name: "a failing step",
        dockerfile: "ARG BASE\nFROM $BASE\n\nRUN for i in $(seq 30); do echo line-$i; done; echo last words >&2; exit 42\nRUN true\n",
        args: &[],
        want: &[
            "did not complete successfully: exit code: 42",
            "line-30",
            "last words",
            "Dockerfile:4",
            "   4 | >>> RUN for i in $(seq 30)",
            "   2 |     FROM $BASE",
        ],
    },
    Case {
        name: "an unknown program",
        dockerfile: "ARG BASE\nFROM $BASE\nRUN [\"/no/such/program\"]\n",
        args: &[],
        want: &["/no/such/program", ">>> RUN [\"/no/such/program\"]"],
    },
    Case {
        name: "an unknown user",
        dockerfile: "ARG BASE\nFROM $BASE\nUSER nosuchuser\nRUN true\n",
        args: &[],
        want: &["nosuchuser"],
    },
    Case {
        name: "a missing source",
        dockerfile: "FROM scratch\nCOPY there /\nCOPY not-there /\n",
        args: &[],
        want: &["\"/not-there\": not found", "Dockerfile:3", ">>> COPY not-there /"],
    },
    Case {
        name: "a missing source of a stage",
        dockerfile: "ARG BASE\nFROM $BASE AS one\nFROM scratch\nCOPY --from=one /nothing/here /\n",
        args: &[],
        want: &["\"/nothing/here\": not found", ">>> COPY --from=one"],
    },
    Case {
        name: "an unknown target",
        dockerfile: "FROM scratch AS one\n",
        args: &["--opt=target=two"],
        want: &["target stage \"two\" could not be found"],
    },
    Case {
        name: "an unknown instruction",
        dockerfile: "FROM scratch\n\nCOPPY a b\n",
        args: &[],
        want: &["unknown instruction: COPPY", "Dockerfile:3", "did you mean COPY?"],
    },
    Case {
        name: "an unknown flag of an instruction",
        dockerfile: "FROM scratch\nCOPY --form=x a b\n",
        args: &[],
        want: &["unknown flag: --form", "Dockerfile:2"],
    },
    Case {
        name: "too few arguments",
        dockerfile: "FROM scratch\nCOPY a\n",
        args: &[],
        want: &["COPY requires at least two arguments", "Dockerfile:2"],
    },
    Case {
        name: "an empty Dockerfile",
        dockerfile: "",
        args: &[],
        want: &["the Dockerfile cannot be empty"],
    },
    Case {
        name: "a missing Dockerfile",
        dockerfile: "FROM scratch\n",
        args: &["--opt=filename=Nowhere"],
        want: &["failed to read dockerfile", "Nowhere", "no such file or directory"],
    },
    Case {
        name: "a cycle of stages",
        dockerfile: "FROM scratch AS a\nCOPY --from=b / /\nFROM scratch AS b\nCOPY --from=a / /\n",
        args: &[],
        want: &["circular dependency detected on stage"],
    },
    Case {
        name: "an unset base name",
        dockerfile: "FROM ${NOTHING}\n",
        args: &[],
        want: &["base name (${NOTHING}) should not be blank", "Dockerfile:1"],
    },
    Case {
        name: "a bad platform",
        dockerfile: "FROM scratch\nCOPY there /\n",
        args: &["--opt=platform=nonsense/"],
        want: &["nonsense"],
    },
    Case {
        name: "an unknown frontend",
        dockerfile: "FROM scratch\n",
        args: &["--frontend=nonsense.v0"],
        want: &["nonsense.v0"],
    },
    Case {
        name: "a bad epoch",
        dockerfile: "FROM scratch\nCOPY there /\n",
        args: &["--opt=build-arg:SOURCE_DATE_EPOCH=yesterday", "--output=type=oci,dest=/dev/null"],
        want: &["SOURCE_DATE_EPOCH", "yesterday"],
    },
    Case {
        name: "a registry that is not there",
        dockerfile: "FROM 127.0.0.1:1/nothing:latest\nRUN true\n",
        args: &[],
        want: &["127.0.0.1:1/nothing:latest", "onnection refused", ">>> FROM 127.0.0.1:1/nothing:latest"],
    },
    Case {
        name: "an unknown flag of the client",
        dockerfile: "FROM scratch\n",
        args: &["--nonsense"],
        want: &["flag provided but not defined: -nonsense"],
    },
    Case {
        name: "a secret that no one has",
        dockerfile: "ARG BASE\nFROM $BASE\nRUN --mount=type=secret,id=nope,required cat /run/secrets/nope\n",
        args: &[],
        want: &["secret nope: not found"],
    },
    Case {
        name: "a right that was not granted",
        dockerfile: "ARG BASE\nFROM $BASE\nRUN --security=insecure true\n",
        args: &[],
        want: &["security.insecure is not allowed"],
    },
];

#[test]
fn failures_say_what_is_wrong_and_where() -> Result<()> {
    let site = Site::new(&[("there", "x")])?;
    let mut wrong = String::new();
    for case in CASES {
        site.write(&[("Dockerfile", case.dockerfile)])?;
        let finished = site.build(case.args)?;
        let missing: Vec<_> = case.want.iter().filter(|w| !finished.stderr.contains(**w)).collect();
        let shown_once = finished.stderr.lines().filter(|l| l.contains("error: ")).count() <= 1;
        if finished.code != 1 || !missing.is_empty() || !shown_once || finished.stderr.contains("panicked") {
            wrong += &format!(
                "--- {}: exit code {}, without {missing:?}\n{}\n",
                case.name, finished.code, finished.stderr
            );
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    // Afterwards it builds as ever, from what is cached of the failed builds too.
    let built = site.dockerfile(
        "ARG BASE\nFROM $BASE AS b\nRUN echo fine > /fine\nFROM scratch\nCOPY --from=b /fine /\n",
        &[],
    )?;
    assert_eq!(built.read("fine")?, "fine\n");
    Ok(())
}

#[test]
fn a_step_that_fails_is_not_cached() -> Result<()> {
    let site = Site::new(&[(
        "Dockerfile",
        "ARG BASE\nFROM $BASE\nRUN --mount=type=cache,target=/c echo x >> /c/tries; [ $(wc -l < /c/tries) -gt 1 ]\n",
    )])?;
    site.build(&[])?.failure()?;
    site.build(&[])?.success()?;
    Ok(())
}

#[test]
fn one_failing_stage_stops_the_others() -> Result<()> {
    let site = Site::new(&[(
        "Dockerfile",
        "ARG BASE\nFROM $BASE AS slow\nRUN --mount=type=cache,target=/c touch /c/runs; sleep 300\nFROM $BASE AS bad\n\
         RUN --mount=type=cache,target=/c while [ ! -e /c/runs ]; do sleep 0.05; done; exit 3\nFROM scratch\n\
         COPY --from=slow /etc/passwd /1\nCOPY --from=bad /etc/passwd /2\n",
    )])?;
    let failed = site.build(&[])?.failure()?;
    check_contains(&failed.stderr, &["exit code: 3", "CANCELED"]);
    Ok(())
}

#[test]
fn images_that_cannot_be_had() -> Result<()> {
    let site = Site::new(&[])?;
    let address = hub()?.registry.address();
    let base = &hub()?.base;
    for (from, want) in [
        (format!("{address}/no/such:image"), vec!["not found", "no/such:image"]),
        (format!("{base}-no-such-tag"), vec!["not found"]),
        (format!("{address}/base@sha256:{}", "0".repeat(64)), vec!["not found"]),
        ("Upper/Case".to_owned(), vec!["invalid reference format", "must be lowercase"]),
    ] {
        site.write(&[("Dockerfile", &format!("FROM {from}\nRUN [\"/bin/true\"]\n"))])?;
        let failed = site.build(&["--opt=build-arg:X=1"])?.failure()?;
        check_contains(&failed.stderr, &want);
    }
    Ok(())
}

#[test]
fn a_client_without_a_daemon_says_so() -> Result<()> {
    let mut site = Site::new(&[("Dockerfile", "FROM scratch\n")])?;
    site.daemon.stop()?;
    let failed = site.build(&[])?.failure()?;
    check_contains(&failed.stderr, &["buildkitd.sock"]);
    Ok(())
}

#[test]
fn a_full_disk_fails_the_build_that_fills_it_and_no_other() -> Result<()> {
    let options = DaemonOptions { disk: Some(48), ..DaemonOptions::default() };
    let site = Site::with_options(&[("small", "small\n")], options)?;
    let fill = "ARG BASE\nFROM $BASE\nRUN dd if=/dev/zero of=/big bs=1M count=100\n";
    site.write(&[("Dockerfile", fill)])?;
    let failed = site.build(&[])?.failure()?;
    check_contains(&failed.stderr, &["o space left on device", ">>> RUN dd if=/dev/zero"]);
    site.write(&[
        ("context.bin", &"x".repeat(60 << 20)),
        ("Dockerfile", "FROM scratch\nCOPY context.bin /\n"),
    ])?;
    let failed = site.build(&[])?.failure()?;
    check_contains(&failed.stderr, &["o space left on device"]);
    std::fs::remove_file(site.context().join("context.bin"))?;
    let next = "ARG BASE\nFROM $BASE\nRUN echo works > /made\nCOPY small /\n";
    let built = site.dockerfile(next, &[])?;
    assert_eq!(built.read("made")?, "works\n");
    assert!(!site.daemon.log().contains("panicked"), "{}", site.daemon.log());
    Ok(())
}
