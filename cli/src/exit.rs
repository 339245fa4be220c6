//! How a command ends when it doesn't end well: an exit code for scripts, a message and a way out for people.

use std::{error::Error as _, fmt, process::ExitCode};

use tonic::{Code, Status};
use tonic_types::StatusExt;
use unanimity_proto::ERROR_DOMAIN;

/// Part of `--help`.
pub(crate) const HELP: &str = "\
Exit codes:
  0  done
  1  internal: the command, the coordinator or the connection failed in an unforeseen way
  2  usage: the command line, or what it asks for, is wrong
  3  not found: no such transaction, participant or log
  4  wrong state: the transaction's state doesn't allow it
  6  unavailable: the coordinator is away, busy or shutting down; nothing was changed, try again
  7  outcome unknown: it may have been taken, or the outcome can't be told yet; look, or repeat the command, which is safe
  8  found problems: `log verify` or `log dump` found damage

Data goes to stdout, everything else to stderr.";

/// See [`HELP`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    Internal = 1,
    Usage = 2,
    NotFound = 3,
    WrongState = 4,
    Unavailable = 6,
    Unknown = 7,
    Problems = 8,
}

/// Whether a call changes anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    Reads,
    Changes,
}

/// What went wrong.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    pub(crate) message: String,
    /// What to do.
    pub(crate) advice: Option<String>,
}

impl Failure {
    pub(crate) fn new(exit: Exit, message: impl fmt::Display) -> Self {
        Self {
            exit,
            message: message.to_string(),
            advice: None,
        }
    }

    pub(crate) fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }

    /// The status of a call that reached a connected coordinator.
    pub(crate) fn from_status(status: &Status, effect: Effect) -> Self {
        // tonic gives a source to a status that it made from a failed transport: the call may have been taken.
        if status.source().is_some() {
            return Self::no_answer(innermost(status), effect);
        }
        match status
            .get_details_error_info()
            .filter(|info| info.domain == ERROR_DOMAIN)
        {
            Some(info) => {
                let failure = Self::new(exit_of(status.code(), &info.reason), status.message());
                Self {
                    advice: advice(&info.reason).map(Into::into),
                    ..failure
                }
            }
            None => Self::from_code(status, effect),
        }
    }

    /// Without our reason a status may be anybody's. Few codes say then that the call was not taken.
    fn from_code(status: &Status, effect: Effect) -> Self {
        let said = match status.message() {
            "" => status.code().description(),
            message => message,
        };
        match status.code() {
            Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded => {
                Self::no_answer(said, effect)
            }
            Code::Unimplemented => Self::new(Exit::Internal, status.message())
                .advise("is that address a unanimity coordinator, of this release or a later one?"),
            Code::Unauthenticated | Code::PermissionDenied => {
                Self::new(Exit::Usage, status.message()).advise("check --certificate and --key")
            }
            code @ (Code::InvalidArgument
            | Code::OutOfRange
            | Code::NotFound
            | Code::FailedPrecondition) => Self::new(exit_of(code, ""), said),
            code => match effect {
                Effect::Reads => Self::new(exit_of(code, ""), said),
                Effect::Changes => Self::no_answer(said, effect),
            },
        }
    }

    /// No answer came.
    pub(crate) fn no_answer(cause: impl fmt::Display, effect: Effect) -> Self {
        match effect {
            Effect::Reads => Self::new(
                Exit::Unavailable,
                format!("no answer from the coordinator: {cause}"),
            )
            .advise("try again, perhaps with a longer --timeout"),
            Effect::Changes => Self::new(
                Exit::Unknown,
                format!(
                    "no answer from the coordinator, which may have taken the command: {cause}"
                ),
            )
            .advise("look with `unanimity tx get`, or run the same command again, which is safe"),
        }
    }

    pub(crate) fn report(&self) -> ExitCode {
        eprintln!("error: {}", self.message);
        if let Some(advice) = &self.advice {
            eprintln!("  {advice}");
        }
        ExitCode::from(self.exit as u8)
    }
}

fn exit_of(code: Code, reason: &str) -> Exit {
    // STOPPING: the coordinator went down during the call.
    if matches!(reason, "OUTCOME_PENDING" | "STOPPING") {
        return Exit::Unknown;
    }
    match code {
        Code::InvalidArgument | Code::OutOfRange => Exit::Usage,
        Code::NotFound => Exit::NotFound,
        Code::FailedPrecondition | Code::Aborted | Code::AlreadyExists => Exit::WrongState,
        Code::Unavailable | Code::ResourceExhausted => Exit::Unavailable,
        Code::Unauthenticated | Code::PermissionDenied => Exit::Usage,
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::Unimplemented
        | Code::Internal
        | Code::DataLoss => Exit::Internal,
    }
}

fn advice(reason: &str) -> Option<&'static str> {
    Some(match reason {
        "TRANSACTION_UNKNOWN" => {
            "check the id, and that this is its coordinator; `unanimity tx list` shows what is there"
        }
        "TRANSACTION_FORGOTTEN" => {
            "it is older than what the log keeps; ask the databases themselves"
        }
        "REQUEST_ID_FORGOTTEN" => {
            "nothing was done now; whether it was done before, only the databases themselves can tell"
        }
        "PARTICIPANT_UNKNOWN" => "`unanimity participant list` shows all that ever registered",
        "TRANSACTION_DECIDED" => {
            "a decision never changes, and a saga past its pivot only goes forward; `unanimity tx get` shows how far it is, \
             `unanimity tx retry` sends now what is due"
        }
        "TRANSACTION_NOT_OPEN" => "`unanimity tx get` shows where it stands",
        "BRANCH_NOT_IN_DOUBT" => "`unanimity tx get` shows where its branches stand",
        "STEP_NOT_TRIED" => {
            "`unanimity tx get` shows its steps; only one that is being tried, or waits to be, can be marked done"
        }
        "OUTCOME_PENDING" => "start the participant that it hangs on, then ask again",
        "STOPPING" => {
            "look with `unanimity tx get` when it is back, or run the same command again, which is safe"
        }
        "DRAINING" | "STARTING" => "try again when the coordinator is up",
        "PARTICIPANT_UNAVAILABLE" => {
            "start the participant; `unanimity participant list` shows which have a session"
        }
        _ => return None,
    })
}

/// The innermost cause is the one that names the trouble.
pub(crate) fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, sync::Arc};

    use tonic_types::ErrorDetails;

    use super::*;

    fn said(code: Code, reason: &str) -> Exit {
        let details = ErrorDetails::with_error_info(reason, ERROR_DOMAIN, HashMap::new());
        Failure::from_status(
            &Status::with_error_details(code, "no", details),
            Effect::Changes,
        )
        .exit
    }

    #[test]
    fn a_reason_gives_its_exit_code() {
        for (code, reason, exit) in [
            (Code::InvalidArgument, "INVALID_REQUEST", Exit::Usage),
            (Code::NotFound, "TRANSACTION_UNKNOWN", Exit::NotFound),
            (Code::NotFound, "REQUEST_ID_FORGOTTEN", Exit::NotFound),
            (
                Code::FailedPrecondition,
                "TRANSACTION_DECIDED",
                Exit::WrongState,
            ),
            (Code::Unavailable, "DRAINING", Exit::Unavailable),
            (Code::Unavailable, "OUTCOME_PENDING", Exit::Unknown),
            (Code::Unavailable, "STOPPING", Exit::Unknown),
            (
                Code::ResourceExhausted,
                "TOO_MANY_TRANSACTIONS",
                Exit::Unavailable,
            ),
        ] {
            assert_eq!(said(code, reason), exit, "{reason}");
        }
    }

    #[test]
    fn a_lost_answer_is_unknown_for_what_changes_and_unavailable_for_what_reads() {
        let mut broken = Status::unknown("transport error");
        broken.set_source(Arc::new(std::io::Error::other("reset")));
        for status in [
            broken,
            Status::cancelled("Timeout expired"),
            Status::unavailable("proxy"),
            Status::resource_exhausted("enhance your calm"),
        ] {
            assert_eq!(
                Failure::from_status(&status, Effect::Changes).exit,
                Exit::Unknown
            );
            assert_eq!(
                Failure::from_status(&status, Effect::Reads).exit,
                Exit::Unavailable
            );
        }
    }

    #[test]
    fn a_code_without_our_reason_leaves_a_change_unknown_unless_it_comes_before_the_work() {
        for (code, exit) in [
            (Code::Unknown, Exit::Unknown),
            (Code::Internal, Exit::Unknown),
            (Code::Aborted, Exit::Unknown),
            (Code::AlreadyExists, Exit::Unknown),
            (Code::DataLoss, Exit::Unknown),
            (Code::InvalidArgument, Exit::Usage),
            (Code::OutOfRange, Exit::Usage),
            (Code::NotFound, Exit::NotFound),
            (Code::FailedPrecondition, Exit::WrongState),
            (Code::Unauthenticated, Exit::Usage),
            (Code::PermissionDenied, Exit::Usage),
            (Code::Unimplemented, Exit::Internal),
        ] {
            let failure = Failure::from_status(&Status::new(code, ""), Effect::Changes);
            assert_eq!(failure.exit, exit, "{code:?}");
        }
    }
}
