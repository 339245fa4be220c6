//! The program that searches: libFuzzer, around the target that an environment variable names.
//!
//! It mutates inputs, keeps those that reach code which none reached before, and stops at the first that makes the target panic. It takes
//! libFuzzer's own arguments. `unanimity-fuzz` runs it; nobody else should need to.

#![no_main]

use std::sync::OnceLock;

use unanimity_fuzz::{TARGET_VARIABLE, Target, target};

static TARGET: OnceLock<&Target> = OnceLock::new();

fn chosen() -> &'static Target {
    let name = std::env::var(TARGET_VARIABLE).unwrap_or_default();
    target(&name).unwrap_or_else(|| {
        eprintln!("{TARGET_VARIABLE} names no target: {name:?}");
        std::process::exit(2);
    })
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    (TARGET.get_or_init(chosen).check)(input);
});
