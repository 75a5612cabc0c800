//! Recorded command lines whose answers need no daemon.

use super::*;

/// The parts of a recorded case.
struct Case {
    arguments: Vec<String>,
    code: i32,
    stdout: String,
    stderr: String,
}

fn load(name: &str) -> Case {
    let path = format!("{}/testdata/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let case: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let lines = |key: &str| -> Vec<String> {
        let lines = case[key].as_array().cloned().unwrap_or_default();
        lines.iter().map(|line| line.as_str().unwrap().to_owned()).collect()
    };
    Case {
        arguments: lines("args"),
        code: i32::try_from(case["exit_code"].as_i64().unwrap()).unwrap(),
        stdout: lines("stdout").join("\n"),
        stderr: lines("stderr").join("\n"),
    }
}

/// Parses, and runs what is left to run.
async fn answer(arguments: Vec<String>) -> (i32, String, String) {
    match parse(arguments) {
        Parse::Answer { stdout, stderr, code } => (i32::from(code), stdout, stderr),
        Parse::Run(invocation) => match run(&invocation, &CancellationToken::new()).await {
            Ok(()) => (0, String::new(), String::new()),
            Err(error) => {
                let mut stderr = Vec::new();
                kiln_cli::report(&mut stderr, &error).unwrap();
                (1, String::new(), String::from_utf8(stderr).unwrap())
            }
        },
    }
}

#[tokio::test]
async fn recorded_mistakes() {
    for name in [
        "build-bad-allow",
        "build-bad-local",
        "build-bad-opt",
        "build-bad-output",
        "build-bad-progress",
        "build-bad-secret",
        "build-bad-ssh",
        "build-missing-dir",
        "debug-monitor-help-missing",
        "no-daemon",
        "unknown-command",
    ] {
        let case = load(name);
        let got = answer(case.arguments).await;
        assert_eq!(got, (case.code, case.stdout, case.stderr), "{name}");
    }
}

#[tokio::test]
async fn mistakes() {
    for (line, code, want) in [
        (
            "du --nosuch",
            1,
            "Incorrect Usage: flag provided but not defined: -nosuch\n\nerror: flag provided but not defined: -nosuch\n",
        ),
        (
            "build --output",
            1,
            "Incorrect Usage: flag needs an argument: --output\n\nerror: flag needs an argument: --output\n",
        ),
        ("debug get", 1, "error: blob digest must be specified\n"),
        ("debug logs", 1, "error: build ref must be specified\n"),
        ("debug ctl x", 1, "error: must specify one of --pin, --unpin, --delete\n"),
        ("debug ctl x --pin --delete", 1, "error: cannot specify --delete with --pin or --unpin\n"),
        ("debug dump-llb /nofile", 1, "error: open /nofile: no such file or directory\n"),
        ("debug dump-metadata", 1, "error: debug dump-metadata is not supported yet\n"),
        (
            "--tlsdir /nodir du",
            1,
            "error: directory did not contain one of the needed files: ca.pem or ca.crt\n",
        ),
        (
            "--tlscacert /no/x du",
            1,
            "error: could not read ca certificate: open /no/x: no such file or directory\n",
        ),
        (
            "--addr tcp://h:1 dial-stdio",
            1,
            "error: invalid address tcp://h:1 (expected unix://, got tcp://)\n",
        ),
        (
            "--addr unix:///nodir dial-stdio",
            1,
            "error: dial unix /nodir: connect: no such file or directory\n",
        ),
        ("--addr docker-container:// du", 1, "error: url lacks container name\n"),
        (
            "build --frontend x --source-policy-file f",
            1,
            "error: --source-policy-file is not supported yet\n",
        ),
        (
            "du --format {{.ID}}",
            1,
            "error: --format `{{.ID}}` is not supported yet: use json or '{{json .}}'\n",
        ),
        ("b --frontend x --trace /nodir/x", 1, "error: open /nodir/x: no such file or directory\n"),
    ] {
        let got = answer(line.split(' ').map(str::to_owned).collect()).await;
        assert_eq!((got.0, got.2.as_str()), (code, want), "{line}");
    }
}

#[test]
fn help_and_version() {
    for (line, want) in [
        ("", "NAME:\n   buildctl - build utility\n"),
        ("--help", "NAME:\n   buildctl - build utility\n"),
        ("debug", "NAME:\n   buildctl debug - debug utilities\n"),
        ("du -h", "NAME:\n   buildctl du - disk usage\n"),
        ("debug workers --help", "NAME:\n   buildctl debug workers - list workers\n"),
        ("-v", "buildctl github.com/moby/buildkit v"),
    ] {
        let arguments = line.split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect();
        let Parse::Answer { stdout, code: 0, .. } = parse(arguments) else { panic!("{line}") };
        assert!(stdout.starts_with(want), "{line}: {stdout}");
    }
}
