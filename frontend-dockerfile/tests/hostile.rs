//! Input that is meant to hurt ends in a clear error, soon and in little memory.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test may stop at the first surprise")]

use std::time::Duration;

use kiln_frontend_dockerfile::testing::{expand, lower};

/// Processor time: far more than any of it takes, and far less than what is not bounded would.
const SOON: Duration = Duration::from_secs(60);

/// The processor time of this thread, which does not depend on what else the machine does.
fn processor_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

/// Builds and lints a file; the error of the build has to contain `want`, or there is none if that is empty.
#[track_caller]
fn check(dockerfile: impl AsRef<[u8]>, want: &str) {
    check_with(dockerfile, &[], want);
}

#[track_caller]
fn check_with(dockerfile: impl AsRef<[u8]>, opts: &[(&str, &str)], want: &str) {
    let start = processor_time();
    let outcome = lower(dockerfile.as_ref(), opts);
    let message = outcome.as_ref().err().map(kiln_frontend::Error::chain).unwrap_or_default();
    assert!(message.contains(want), "{}", &message.chars().take(500).collect::<String>());
    assert_eq!(message.is_empty(), want.is_empty(), "{}", &message.chars().take(500).collect::<String>());
    // What ends with the file's share of work used up would only do so once more.
    if want != TOO_FAR {
        let lint = [opts, &[("requestid", "frontend.lint")]].concat();
        lower(dockerfile.as_ref(), &lint).expect("what is wrong with the file is part of the answer");
    }
    let took = processor_time() - start;
    assert!(took < SOON, "{took:?}");
}

const TOO_FAR: &str = "the Dockerfile expands too far";

#[test]
fn variables_that_double_each_other() {
    let bomb = format!("FROM scratch\nENV A=0123456789abcdef\n{}", "ENV A=$A$A$A$A\n".repeat(40));
    check(bomb, "the result has more than 16777216 bytes");
    let global = format!("ARG A=xxxxxxxxxxxxxxxx\n{}FROM scratch\n", "ARG A=$A$A$A$A\n".repeat(40));
    check(global, "the result has more than 16777216 bytes");
    let label =
        format!("FROM scratch\nENV A={}\n{}", "x".repeat(60_000), "LABEL a=$A$A$A$A$A$A$A$A\n".repeat(2000));
    check(label, TOO_FAR);
}

#[test]
fn replacements_that_multiply() {
    let value = "a".repeat(30_000);
    let line = format!("FROM scratch\nENV A={value}\nENV B=${{A//a/{value}}}\n");
    check(line, TOO_FAR);
    let found = format!("FROM scratch\nENV A={value}\nENV B=${{A//*/{}}}\n", "\\$0".repeat(10_000));
    check(found, TOO_FAR);
}

#[test]
fn patterns_that_never_match() {
    let value = "a".repeat(60_000);
    let stars = "*a".repeat(15_000);
    check(format!("FROM scratch\nENV A={value}\nENV B=${{A//{stars}b/x}}\n"), TOO_FAR);
    // One pass is enough for what a person might write.
    check(format!("FROM scratch\nENV A={value}\nENV B=${{A//a*a*b/x}} C=${{A%%a*b}}\n"), "");
}

#[test]
fn substitutions_nested_deeply() {
    check(format!("FROM scratch\nENV A={}\n", "${a:-".repeat(13_000)), "nested too deeply");
    check(format!("FROM scratch\nENV A={}x{}\n", "${a:-".repeat(190), "}".repeat(190)), "");
    assert!(expand(&"${a/${a/".repeat(5_000), &[]).is_err());
}

#[test]
fn json_nested_deeply_is_a_shell_command() {
    check(format!("FROM scratch\nRUN {}\n", "[".repeat(60_000)), "");
    check(format!("{{\"syntax\":{}", "[".repeat(1_000_000)), "file with no instructions");
}

#[test]
fn triggers_in_triggers() {
    check(format!("FROM scratch\n{}RUN x\n", "ONBUILD \\\n".repeat(300_000)), "Chaining ONBUILD");
}

#[test]
fn stages_on_stages() {
    let mut chain = "FROM scratch AS s0\n".to_owned();
    for i in 1..1_000 {
        chain.push_str(&format!("FROM s{} AS s{i}\nCOPY --from=s{} / /\n", i - 1, i / 2));
    }
    check(chain, "");
    let many = format!("FROM scratch\n{}", "RUN --mount=type=tmpfs,target=/a true\n".repeat(100_001));
    check(many, "more than 100000 stages and images");
}

#[test]
fn long_lines() {
    check(
        format!("FROM scratch\nRUN {}\n", "x".repeat(1 << 20)),
        "dockerfile line greater than max allowed size",
    );
    check(format!("FROM scratch\nRUN {}\n", "xxxxxxxxxxxxxxx\\\n".repeat(1 << 16)), "");
    check("\\\n".repeat(1 << 20), "unknown instruction");
}

#[test]
fn huge_heredocs() {
    let body = "0123456789abcdef $A\n".repeat(200_000);
    check(format!("FROM scratch\nCOPY <<EOF /a\n{body}EOF\n"), "");
    check(format!("FROM scratch\nCOPY <<EOF /a\n{body}"), "unterminated heredoc");
    let docs: String = (0..8_000).map(|i| format!("<<a{i} ")).collect();
    let bodies: String = (0..8_000).map(|i| format!("x\na{i}\n")).collect();
    check(format!("FROM scratch\nCOPY {docs}/d/\n{bodies}"), "");
    // Each of many warnings names all lines of the instruction.
    let unset: String = (0..9_000).map(|i| format!("$v{i} ")).collect();
    check(format!("FROM scratch\nCOPY <<EOF {unset} /a\n{body}EOF\n"), "");
}

#[test]
fn ports_without_end() {
    check(format!("FROM scratch\nEXPOSE {}\n", "1-65535 ".repeat(7_000)), TOO_FAR);
    check(format!("FROM scratch\n{}", "EXPOSE 1-65535\n".repeat(7_000)), TOO_FAR);
}

#[test]
fn names_that_nearly_match() {
    let name = "n".repeat(30_000);
    let envs: String = (0..100).map(|i| format!("ENV {name}{i}=1\n")).collect();
    check(format!("FROM scratch\n{envs}ENV X=${{{name}}}\n"), "");
    check(format!("FROM scratch AS {name}\n"), "invalid context name");
    let name = "n".repeat(200);
    check_with(format!("FROM scratch AS {name}\n"), &[("target", &format!("{name}x"))], "did you mean");
}

#[test]
fn many_variables() {
    let envs: String = (0..8_000).map(|i| format!("ENV V{i}=1\n")).collect();
    let runs: String = (0..3_000).map(|i| format!("RUN {i}\n")).collect();
    check(format!("FROM scratch\n{envs}{runs}"), TOO_FAR);
}

#[test]
fn bytes_that_are_no_text() {
    check(b"FROM scratch\nRUN \xff\xfe\n", "string field contains invalid UTF-8");
    check(b"\xff\xff\xff", "unknown instruction");
    check(b"FROM scratch\nENV A=\0 B=\"\0\"\nLABEL \0=\0\nCOPY \0 /\0\n", "");
    check(b"FROM \0\n", "failed to parse stage name");
    check(vec![0; 60_000], "unknown instruction");
    check("FROM scratch\n\u{feff}RUN x\n", "unknown instruction");
}

#[test]
fn files_that_are_too_long() {
    check_size(17 << 20, "it may have 16777216");
    check_size(15 << 20, "");
}

#[track_caller]
fn check_size(size: usize, want: &str) {
    let line = "# a comment that says nothing at all\n";
    let file = format!("FROM scratch\n{}", line.repeat(size / line.len()));
    let message = lower(file.as_bytes(), &[]).err().map(|error| error.chain()).unwrap_or_default();
    assert!(message.contains(want) && message.is_empty() == want.is_empty(), "{message}");
}
