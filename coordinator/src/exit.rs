//! How the process ends, and what its exit code says.

use std::{fmt, process, thread};

use tracing::error;

/// The configuration can't be used.
pub(crate) const CONFIGURATION: u8 = 78;
/// The address can't be listened on.
pub(crate) const ADDRESS: u8 = 69;
/// The log is damaged, an old copy, or not ours.
pub(crate) const LOG_DAMAGED: u8 = 65;
/// A broken invariant of our own.
pub(crate) const INTERNAL: u8 = 70;
/// The data directory is in use, or can't be made.
pub(crate) const DIRECTORY: u8 = 73;
/// A write or a sync of the log failed, or hung.
pub(crate) const LOG_FAILED: u8 = 74;
/// Stopped by a second signal while it drained.
pub(crate) const IMPATIENT: u8 = 130;

/// The table for `--help`.
pub(crate) const HELP: &str = "\
Exit codes:
    0  stopped by SIGTERM or SIGINT, after draining
    2  wrong arguments
   65  the log is damaged, an old copy, or was written by another release: nothing was decided; the report says what to do
   69  the address can't be listened on
   70  an invariant of the coordinator itself broke: please report it with the log output
   73  the data directory is in use by another process, or can't be made or read
   74  a write or sync of the log failed or hung: start again, recovery reads what is on disk and decides
   78  the configuration can't be used
  130  a second signal came while draining";

/// A failure with its exit code.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: u8,
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn new(code: u8, message: impl fmt::Display) -> Self {
        Failure {
            code,
            message: message.to_string(),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// The exit code that belongs to an error of [`crate::run`]: 1 where it says none itself.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    error
        .downcast_ref::<Failure>()
        .map_or(1, |failure| failure.code)
}

/// Held by a thread that the process can't do without: if it panics, the process ends before anyone is told something that
/// rests on a broken state.
pub(crate) struct FailStop(pub(crate) &'static str);

impl Drop for FailStop {
    fn drop(&mut self) {
        if thread::panicking() {
            error!(
                who = self.0,
                "an invariant broke, so the process ends now; please report the message above"
            );
            process::exit(INTERNAL.into());
        }
    }
}
