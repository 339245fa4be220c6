//! Bytes that nobody would send, and what must hold of them all the same.
//!
//! Each target takes any bytes and panics where a promise is broken: that reading never panics, that what was read and written again reads
//! the same, that nothing passes which nobody wrote. `cargo xtask fuzz` lets libFuzzer search for such bytes; `cargo test -p unanimity-fuzz`
//! only replays the corpus, on any machine.

pub mod corpus;
mod log_format;
mod scratch;
mod targets;

/// Names the target that the engine runs.
pub const TARGET_VARIABLE: &str = "UNANIMITY_FUZZ_TARGET";

/// One thing that reads bytes.
#[derive(Debug)]
pub struct Target {
    /// Its name, and that of its folder in the corpus.
    pub name: &'static str,
    /// What must hold, in a line.
    pub promise: &'static str,
    /// Panics where the promise is broken.
    pub check: fn(&[u8]),
    /// Inputs to start from, made by the product's own encoders where there are any.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub use targets::TARGETS;

/// The target of this name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
