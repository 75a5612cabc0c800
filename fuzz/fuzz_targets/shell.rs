//! Words and their expansion, in every way that instructions read them.
#![no_main]

const ENV: [(&str, &str); 4] = [("A", "foo*bar"), ("B", ""), ("C", "a/b/c.tar.gz"), ("PATH", "/bin")];

libfuzzer_sys::fuzz_target!(|word: &str| {
    let _outcome = kiln_frontend_dockerfile::testing::expand(word, &ENV);
});
