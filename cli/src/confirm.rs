//! What an operator says by hand, and is asked about first.

use std::io::{self, IsTerminal, Write};

use crate::exit::{Exit, Failure};

/// As short as a reason may be, in characters; the coordinator's bound.
const SHORTEST_REASON: usize = 10;

/// Reads a reason.
pub(crate) fn reason(text: &str) -> Result<String, String> {
    match text.trim() {
        trimmed if trimmed.chars().count() < SHORTEST_REASON => Err(format!(
            "whoever reads the log later needs at least {SHORTEST_REASON} characters"
        )),
        trimmed => Ok(trimmed.to_owned()),
    }
}

/// Tells the operator what will be, and goes on only after a yes.
pub(crate) fn confirm(what: &str) -> Result<(), Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure::new(
            Exit::Usage,
            "there is no terminal to ask whether you are sure",
        )
        .advise("give --yes"));
    }
    eprint!("{what} Type yes to go on: ");
    let failed = |error| Failure::new(Exit::Internal, format!("can't ask: {error}"));
    io::stderr().flush().map_err(failed)?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).map_err(failed)?;
    match answer.trim() {
        "yes" => Ok(()),
        _ => Err(Failure::new(
            Exit::Usage,
            "not confirmed; nothing was changed",
        )),
    }
}
