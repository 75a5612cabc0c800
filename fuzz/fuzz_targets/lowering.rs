//! A whole Dockerfile, built and linted in a world in which every image is there.
#![no_main]

use kiln_frontend_dockerfile::testing::lower;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _outcome = lower(data, &[("cmdline", "given"), ("build-arg:A", "x")]);
    let _outcome = lower(data, &[("cmdline", "given"), ("requestid", "frontend.lint")]);
});
