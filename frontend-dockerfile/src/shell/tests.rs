use std::fmt::Write;

use super::{Env, Lex};

const WORDS: &str = include_str!("../../testdata/shell/words.tsv");
const ENV: &str = include_str!("../../testdata/shell/env.json");

#[test]
fn recorded_words() {
    let mut env = Env::default();
    for entry in serde_json::from_str::<Vec<String>>(ENV).unwrap() {
        let (key, value) = entry.split_once('=').unwrap();
        env.set(key, value);
    }
    let mut wrong = String::new();
    let mut count = 0;
    for row in WORDS.lines().skip(1) {
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
        if !same {
            writeln!(wrong, "{escape} {mode} {word:?}: want {outcome} {result} {unset}, got {got_outcome} {got_result} {:?}", got.unset).unwrap();
        }
        count += 1;
    }
    assert!(wrong.is_empty(), "of {count} rows:\n{wrong}");
}
