//! The command line.

use std::{num::NonZeroU32, path::PathBuf};

use clap::Parser;
use unanimity_fuzz::{TARGETS, Target, target};

/// Lets libFuzzer search for bytes that break what each target promises: that reading never panics, that what was read and written again
/// reads the same, that nothing passes which nobody wrote.
///
/// What breaks a promise is kept in fuzz/crashes, and the command that shows it again is told. `cargo xtask fuzz` builds the engine and
/// gives it to this program; --replay, --input and --list need none.
#[derive(Debug, Parser)]
#[command(
    name = "unanimity-fuzz",
    after_help = "Exit codes: 0 every promise was kept; 1 one was broken; 2 the command line makes no sense.\n\n\
                  Example:\n  cargo xtask fuzz record segment --seconds 60"
)]
pub(crate) struct Arguments {
    /// The targets [default: all].
    #[arg(value_name = "TARGET")]
    pub(crate) targets: Vec<String>,

    /// How long to search for each target; two are searched at a time.
    #[arg(long, value_name = "NUMBER", default_value = "3")]
    pub(crate) seconds: NonZeroU32,

    /// Where chance starts.
    #[arg(long, value_name = "NUMBER", default_value = "1")]
    pub(crate) seed: NonZeroU32,

    /// The program that searches: unanimity-fuzz-engine, as `cargo xtask fuzz` builds it.
    #[arg(long, value_name = "PROGRAM", env = "UNANIMITY_FUZZ_ENGINE")]
    pub(crate) engine: Option<PathBuf>,

    /// Adds to fuzz/corpus what reaches code that nothing there reaches, each as small as it was found.
    #[arg(long)]
    pub(crate) keep: bool,

    /// Only puts what is kept through the targets.
    #[arg(long)]
    pub(crate) replay: bool,

    /// Only puts this file through one target.
    #[arg(long, value_name = "FILE", conflicts_with = "replay")]
    pub(crate) input: Option<PathBuf>,

    /// Only lists the targets and what they promise.
    #[arg(long)]
    pub(crate) list: bool,

    /// Prints the figures as one line of JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// The command line makes no sense.
#[derive(Debug)]
pub(crate) struct Usage(pub(crate) String);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

impl Arguments {
    /// The targets that are meant.
    pub(crate) fn targets(&self) -> Result<Vec<&'static Target>, Usage> {
        let named = |name: &String| {
            target(name).ok_or_else(|| {
                Usage(format!(
                    "TARGET: there is no {name:?}; --list shows which there are"
                ))
            })
        };
        let named: Vec<_> = self.targets.iter().map(named).collect::<Result<_, _>>()?;
        match (&self.input, named.len()) {
            (Some(_), 1) | (None, 1..) => Ok(named),
            (Some(_), _) => Err(Usage(
                "--input: name the one TARGET that the file is for".into(),
            )),
            (None, 0) => Ok(TARGETS.iter().collect()),
        }
    }
}
