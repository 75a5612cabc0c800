//! Lines to instructions; what can be read is printed and read again.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _outcome = kiln_frontend_dockerfile::testing::parse(data);
});
