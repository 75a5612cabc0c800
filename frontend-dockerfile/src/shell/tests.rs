use std::path::Path;

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
