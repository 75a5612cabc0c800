use std::path::Path;
use std::process::Command;

use kiln_vectors::Vectors;

use super::{Env, Lex};

#[test]
fn recorded_words() {
    let mut vectors = Vectors::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/shell"));
    let read = |name: &str| std::fs::read_to_string(vectors.dir().join(name)).unwrap();
    let (words, env_file) = (read("words.tsv"), read("env.json"));
    let mut env = Env::default();
    for entry in serde_json::from_str::<Vec<String>>(&env_file).unwrap() {
        let (key, value) = entry.split_once('=').unwrap();
        env.set(key, value);
    }
    for (number, row) in words.lines().enumerate().skip(1) {
        let columns: Vec<&str> = row.split('\t').collect();
        let &[escape, mode, word, outcome, result, unset] = columns.as_slice() else { panic!("{row}") };
        let word: String = serde_json::from_str(word).unwrap();
        let mut lex = Lex::new(escape.chars().next().unwrap());
        match mode {
            "body" => lex.plain_quotes = true,
            "name" => (lex.raw_quotes, lex.keep_unset) = (true, true),
            _ => {}
        }
        let (got, status) = lex.expand(&word, &env);
        let (got_outcome, got_result) = match (&status, mode) {
            (Err(message), _) => ("error", serde_json::to_string(message).unwrap()),
            (Ok(()), "words") => ("ok", serde_json::to_string(&got.words).unwrap()),
            (Ok(()), _) => ("ok", serde_json::to_string(&got.text).unwrap()),
        };
        let same_unset = mode == "words"
            || status.is_err()
            || got.unset.iter().cloned().collect::<Vec<_>>()
                == serde_json::from_str::<Vec<String>>(unset).unwrap();
        let same = got_outcome == outcome
            && serde_json::from_str::<serde_json::Value>(&got_result).unwrap()
                == serde_json::from_str::<serde_json::Value>(result).unwrap()
            && same_unset;
        let wrong =
            || format!("want {outcome} {result} {unset}, got {got_outcome} {got_result} {:?}", got.unset);
        let name = format!("line {}: {escape} {mode} {word:?}", number + 1);
        vectors.check(name, || if same { Ok(()) } else { Err(wrong()) });
    }
    vectors.finish(2368);
}

/// Words that mean the same here and in a POSIX shell: quotes, escapes, variables with the modifiers that both have.
mod shared {
    use proptest::prelude::*;

    pub(super) const ENV: [(&str, &str); 4] =
        [("N", "foobarbaz"), ("E", ""), ("P", "a/b/c.tar.gz"), ("S", "two words")];

    fn name() -> impl Strategy<Value = String> {
        "[NEPSZ]"
    }

    fn plain() -> impl Strategy<Value = String> {
        "[a-zA-Z0-9._/-]{1,6}"
    }

    fn pattern() -> impl Strategy<Value = String> {
        proptest::collection::vec(
            prop_oneof!["[a-z./]{1,2}", Just("*".to_owned()), Just("?".to_owned())],
            1..4,
        )
        .prop_map(|parts| parts.concat())
    }

    fn escaped() -> impl Strategy<Value = String> {
        "[a-z$\"'\\\\ ]".prop_map(|c| format!("\\{c}"))
    }

    fn braced(inner: impl Strategy<Value = String>) -> impl Strategy<Value = String> {
        prop_oneof![
            name().prop_map(|name| format!("${{{name}}}")),
            // A name in front of other letters would be longer in both, so it is told apart by its own end.
            name().prop_map(|name| format!("${name}.")),
            (name(), prop_oneof!["-", ":-", "\\+", ":\\+"], inner)
                .prop_map(|(name, operator, word)| format!("${{{name}{operator}{word}}}")),
            (name(), prop_oneof!["#", "##", "%", "%%"], pattern())
                .prop_map(|(name, operator, pattern)| format!("${{{name}{operator}{pattern}}}")),
        ]
    }

    fn double_quoted() -> impl Strategy<Value = String> {
        let part = prop_oneof![plain(), braced(plain()), Just(" ".to_owned()), "\\\\[$\"\\\\a]"];
        proptest::collection::vec(part, 0..4).prop_map(|parts| format!("\"{}\"", parts.concat()))
    }

    pub(super) fn word() -> impl Strategy<Value = String> {
        let single_quoted = "[a-z$\"\\\\ ]{0,5}".prop_map(|text| format!("'{text}'"));
        let inner = prop_oneof![plain(), double_quoted(), braced(plain())];
        let part = prop_oneof![plain(), escaped(), single_quoted, double_quoted(), braced(inner)];
        proptest::collection::vec(part, 1..5).prop_map(|parts| parts.concat())
    }
}

#[test]
fn words_expand_as_in_a_posix_shell() {
    use proptest::strategy::{Strategy as _, ValueTree as _};
    use proptest::test_runner::TestRunner;

    let mut runner = TestRunner::deterministic();
    let strategy = shared::word();
    let words: Vec<String> = (0..2_000).map(|_| strategy.new_tree(&mut runner).unwrap().current()).collect();
    let mut script = String::new();
    for (key, value) in shared::ENV {
        script.push_str(&format!("{key}='{value}'\n"));
    }
    script.push_str("unset Z\n");
    for word in &words {
        // What is assigned is neither split nor matched against files.
        script.push_str(&format!("x={word}\nprintf '%s\\n' \"$x\"\n"));
    }
    let output = Command::new("sh").arg("-c").arg(&script).env_clear().output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let answers = String::from_utf8(output.stdout).unwrap();
    let mut env = Env::default();
    for (key, value) in shared::ENV {
        env.set(key, value);
    }
    let answers: Vec<&str> = answers.lines().collect();
    assert_eq!(answers.len(), words.len());
    for (word, answer) in words.iter().zip(answers) {
        assert_eq!(Lex::new('\\').word(word, &env).as_deref(), Ok(answer), "{word}");
    }
}
