#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| miaf_agent::fuzzing::run("est_token", data));
