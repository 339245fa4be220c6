//! One command of a task.

use std::{
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail};

/// Runs a command, which sees no input, and says what it was for and how long it took.
///
/// # Errors
/// Where it can't be run, or fails.
pub(crate) fn step(name: &str, command: &mut Command) -> Result<()> {
    eprintln!("\n==> {name}");
    let started = Instant::now();
    let status = command
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("{name}: {} can't be run", command.get_program().display()))?;
    let seconds = started.elapsed().as_secs_f64();
    if !status.success() {
        bail!(
            "{name} failed after {seconds:.1} s ({status}): {}",
            line(command)
        );
    }
    eprintln!("==> {name}: done in {seconds:.1} s");
    Ok(())
}

/// Says what is done here, and how long it took.
///
/// # Errors
/// Where it fails.
pub(crate) fn timed(name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    eprintln!("\n==> {name}");
    let started = Instant::now();
    work().with_context(|| format!("{name} failed"))?;
    eprintln!(
        "==> {name}: done in {:.1} s",
        started.elapsed().as_secs_f64()
    );
    Ok(())
}

/// The command as one would type it.
fn line(command: &Command) -> String {
    let program = std::iter::once(command.get_program());
    let words: Vec<_> = program
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect();
    words.join(" ")
}
