use proptest::prelude::*;

use super::parse;
use crate::instruction::parse_stages;
use crate::lint::Linter;
use crate::shell::{Env, Lex};

/// Reads a whole file; gives the instructions as they were understood, or the error.
fn read(data: &[u8]) -> String {
    let parsed = match parse(data) {
        Ok(parsed) => parsed,
        Err(error) => return format!("error {:?}: {}", error.places(), error.message()),
    };
    match parse_stages(&parsed.nodes, &mut Linter::default()) {
        Ok(stages) => {
            let all = stages.stages.iter().flat_map(|stage| &stage.commands);
            let all = all.map(|command| format!("{}-{}", command.ranges[0].start, command.code));
            all.collect::<Vec<_>>().join("\n")
        }
        Err(error) => format!("error {:?}: {}", error.places(), error.message()),
    }
}

#[track_caller]
fn check(dockerfile: &str, want: &str) {
    assert_eq!(read(dockerfile.as_bytes()), want);
}

#[test]
fn lines_are_joined_without_what_lies_between() {
    check("FROM a\nRUN x \\\n  # note\n\n  y\n", "2-RUN x   y");
    check("# escape=`\nFROM a\nRUN x`\ny\\\n", "3-RUN xy\\");
}

#[test]
fn triggers_in_triggers_cost_nothing() {
    let nested = format!("FROM a\n{} RUN x\n", "ONBUILD \\\n".repeat(200_000));
    let got = read(nested.as_bytes());
    assert!(
        got.ends_with("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed"),
        "{}",
        &got[got.len() - 80..]
    );
}

#[test]
fn substitutions_nest_only_so_deep() {
    let word = "${a:-".repeat(100_000);
    let error = Lex::new('\\').word(&word, &Env::default()).unwrap_err();
    assert!(
        error.ends_with("syntax error: missing '}'") || error.ends_with("too deeply"),
        "{}",
        &error[error.len() - 60..]
    );
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(data in proptest::collection::vec(any::<u8>(), 0..400)) {
        read(&data);
        let _outcome = crate::testing::parse(&data);
    }

    #[test]
    fn any_instructions_are_read_or_refused(
        lines in proptest::collection::vec(
            ("(FROM|RUN|COPY|ADD|ENV|ARG|ONBUILD|HEALTHCHECK|EXPOSE|LABEL|SHELL) ", "[-a-z=\\\\\"'$<{}\\[\\]:,/ \n]{0,30}"),
            0..12,
        ),
    ) {
        let text: String = lines.iter().map(|(keyword, rest)| format!("{keyword}{rest}\n")).collect();
        read(text.as_bytes());
        // What can be read is the same once it is printed.
        let _outcome = crate::testing::parse(text.as_bytes());
    }

    #[test]
    fn any_word_is_expanded_or_refused(word in "[a-zA-Z$ {}:\\-+?#%/\\\\'\"*]{0,40}") {
        let mut env = Env::default();
        env.set("a", "a*b");
        for keep_unset in [false, true] {
            let _ = Lex { keep_unset, ..Lex::new('\\') }.expand(&word, &env);
        }
    }
}

#[test]
fn printed_files_read_the_same() {
    for file in [
        "# escape=`\nFROM a `\n  AS b\nRUN c:\\x `\n\n y\n",
        "FROM a\nRUN <<-A <<'B' cat\n\tx\\\n\tA\ny $z\r\nB\nCOPY [\"a b\", \"c\"]\n",
        "FROM a\nONBUILD RUN --mount=type=cache,target=/x \\\n y\nONBUILD COPY <<E /\nb\nE\nHEALTHCHECK --retries=3 CMD x\n",
        "\\\n  FROM a\nENV a  b  \\\n  c\nLABEL \"x y\"=z q='\\'\n",
    ] {
        crate::testing::parse(file.as_bytes()).unwrap();
    }
}
