//! An ignore file and a path, split at the first NUL. Whole paths and walks have to agree where they promise to.
#![no_main]

use kiln_patterns::{Patterns, ignore_file};

libfuzzer_sys::fuzz_target!(|input: &str| {
    let (file, path) = input.split_once('\0').unwrap_or((input, "a/b/c"));
    let Ok(patterns) = Patterns::new(ignore_file(file)) else { return };
    let ignored = patterns.matches(path);
    let (walked, _) = patterns.matches_with_parents(path, None);
    assert_eq!(ignored, walked);
    let _may = (patterns.may_match_below(path), patterns.may_negate_below(path));
});
