//! Fuzzing: builds the engine, with the branches of our crates counted, and runs the harness with it.

use anyhow::Result;

use crate::{Arguments, cargo, harness, released, step::step};

/// Runs the harness `unanimity-fuzz`.
///
/// # Errors
/// Where it can't be built, or a promise was broken.
pub(crate) fn fuzz(arguments: Arguments) -> Result<()> {
    let mut build = cargo(
        "build --release --locked --package unanimity-fuzz --features engine --bin unanimity-fuzz-engine",
    );
    let wrapper = harness::root().join("fuzz/instrument.sh");
    build.env("RUSTC_WORKSPACE_WRAPPER", wrapper);
    step("build the engine of the fuzzer", &mut build)?;
    let engine = released("unanimity-fuzz-engine")?;
    arguments.run_with("fuzz", "unanimity-fuzz", |command| {
        command.env("UNANIMITY_FUZZ_ENGINE", engine);
    })
}
