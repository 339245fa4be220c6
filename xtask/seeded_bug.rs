//! The build script of the crates that hold seeded bugs: compiles in the one that `UNANIMITY_BUG` names, and none otherwise.
//!
//! A seeded bug is a mistake put in on purpose, to see that a proof harness catches it. It must never get into a program that somebody might
//! use, so it is compiled in the profile `bug` alone, whose programs lie in a directory of their own; everything else is refused here.

use std::{env, path::Path, process};

fn main() {
    println!("cargo::rerun-if-env-changed=UNANIMITY_BUG");
    let Some(bug) = env::var("UNANIMITY_BUG").ok().filter(|bug| !bug.is_empty()) else {
        return;
    };
    let out = env::var("OUT_DIR").expect("cargo sets it");
    let in_profile_bug = Path::new(&out)
        .components()
        .any(|part| part.as_os_str() == "bug");
    if !in_profile_bug || env::var("PROFILE").is_ok_and(|profile| profile != "debug") {
        eprintln!(
            "UNANIMITY_BUG={bug} asks for a seeded bug, which only `--profile bug` compiles in: unset it, or run `cargo xtask bugs --only {bug}`"
        );
        process::exit(1);
    }
    println!("cargo::warning=the seeded bug {bug} is compiled in");
    println!("cargo::rustc-cfg=unanimity_bug");
    println!("cargo::rustc-cfg=unanimity_bug=\"{bug}\"");
    println!("cargo::rustc-env=UNANIMITY_SEEDED_BUG={bug}");
}
