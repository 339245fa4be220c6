//! Every way of saying no, and the one table from it to a gRPC code, a constant reason, and what may be done now.
//!
//! Clients switch on the reasons, never on the texts; `docs/protocol.md` lists them. A reason is for ever.

use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};
use unanimity_engine::Refusal;
use unanimity_proto::ERROR_DOMAIN;

use crate::wire;

/// Soon: what is missing comes and goes by itself.
const SOON: Duration = Duration::from_millis(200);
/// Later: the coordinator itself is what is in short supply.
const LATER: Duration = Duration::from_secs(1);

/// Why a call or a session was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// By the engine.
    #[error(transparent)]
    Engine(#[from] Refusal),
    /// The participant's hello listed no such operation.
    #[error(
        "{field}: participant {participant:?} has no operation {operation:?}; it offers {offered}"
    )]
    OperationUnknown {
        /// Where it was asked for.
        field: String,
        /// Whose.
        participant: String,
        /// Which.
        operation: String,
        /// What there is.
        offered: String,
    },
    /// The log's disk is almost full. Transactions that are in flight end; new ones are not taken.
    #[error(
        "the coordinator's log is short of disk space, so it takes no new transactions; free some and try again"
    )]
    LogSpaceLow,
    /// Replay is not done.
    #[error("the coordinator is starting; try again")]
    Starting,
    /// The call was cut off by the coordinator's end, so its fate is unknown.
    #[error("the coordinator went down during the call; ask another, or again after its restart")]
    Stopping,
    /// The reader of a watch is too slow.
    #[error("the watch fell behind by {0} changes; list the transactions, then watch anew")]
    WatchLagged(u64),
    /// The participant does not read what is sent to it.
    #[error("{0} batches wait in the session, which is the limit; the participant must read them")]
    SessionStalled(usize),
    /// Nothing came after the session was opened.
    #[error("no hello came within {} s of the session's start", .0.as_secs())]
    HelloMissing(Duration),
}

impl Refused {
    /// A field that is wrong: which, and how to mend it.
    pub(crate) fn invalid(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Refused::Engine(Refusal::Invalid {
            field: field.into(),
            problem: problem.into(),
        })
    }

    /// The constant reason that a client may switch on.
    pub fn reason(&self) -> &'static str {
        self.row().reason
    }

    fn row(&self) -> Row {
        match self {
            Refused::Engine(refusal) => engine_row(refusal),
            Refused::OperationUnknown {
                field,
                participant,
                operation,
                offered: _,
            } => row(Code::NotFound, "OPERATION_UNKNOWN")
                .with("field", field)
                .with("participant", participant)
                .with("operation", operation),
            Refused::LogSpaceLow => row(Code::ResourceExhausted, "LOG_SPACE_LOW").retry(LATER),
            Refused::Starting => row(Code::Unavailable, "STARTING").retry(SOON),
            Refused::Stopping => row(Code::Unavailable, "STOPPING").retry(LATER),
            Refused::WatchLagged(missed) => {
                row(Code::DataLoss, "WATCH_LAGGED").with("missed", missed)
            }
            Refused::SessionStalled(limit) => row(Code::ResourceExhausted, "SESSION_STALLED")
                .with("limit", limit)
                .retry(LATER),
            Refused::HelloMissing(_) => {
                row(Code::InvalidArgument, "INVALID_REQUEST").with("field", "hello")
            }
        }
    }
}

/// The table. Each variant stands here by itself, so that a new one can't be forgotten.
fn engine_row(refusal: &Refusal) -> Row {
    match refusal {
        Refusal::Invalid { field, problem: _ } => {
            row(Code::InvalidArgument, "INVALID_REQUEST").with("field", field)
        }
        Refusal::TooManyBranches { given, limit } => {
            row(Code::InvalidArgument, "TOO_MANY_BRANCHES")
                .with("given", given)
                .with("limit", limit)
        }
        Refusal::PayloadTooLarge { given, limit } => {
            row(Code::InvalidArgument, "PAYLOAD_TOO_LARGE")
                .with("given", given)
                .with("limit", limit)
        }
        Refusal::RequestIdReused(id) => {
            row(Code::InvalidArgument, "REQUEST_ID_REUSED").with("requestId", id)
        }
        Refusal::RequestIdForgotten(id) => {
            row(Code::NotFound, "REQUEST_ID_FORGOTTEN").with("requestId", id)
        }
        Refusal::ParticipantUnknown(name) => {
            row(Code::NotFound, "PARTICIPANT_UNKNOWN").with("participant", name)
        }
        Refusal::TransactionUnknown(id) => {
            row(Code::NotFound, "TRANSACTION_UNKNOWN").with("transactionId", id)
        }
        Refusal::TransactionForgotten(id) => {
            row(Code::NotFound, "TRANSACTION_FORGOTTEN").with("transactionId", id)
        }
        Refusal::TransactionDecided(id) => {
            row(Code::FailedPrecondition, "TRANSACTION_DECIDED").with("transactionId", id)
        }
        Refusal::TransactionNotOpen(id) => {
            row(Code::FailedPrecondition, "TRANSACTION_NOT_OPEN").with("transactionId", id)
        }
        Refusal::StepNotTried { transaction, step } => {
            row(Code::FailedPrecondition, "STEP_NOT_TRIED")
                .with("transactionId", transaction)
                .with("step", step)
        }
        Refusal::BranchNotInDoubt(key) => row(Code::FailedPrecondition, "BRANCH_NOT_IN_DOUBT")
            .with("transactionId", key.transaction)
            .with("branch", key.branch),
        Refusal::ResourceMismatch {
            participant,
            held,
            given,
        } => row(Code::FailedPrecondition, "RESOURCE_MISMATCH")
            .with("participant", participant)
            .with("held", held)
            .with("given", given),
        Refusal::TransactionAborted {
            transaction,
            reason,
        } => row(Code::Aborted, "TRANSACTION_ABORTED")
            .with("transactionId", transaction)
            .with("code", wire::abort_code(reason.code).as_str_name())
            .with("participant", &reason.participant),
        Refusal::ParticipantUnavailable(name) => row(Code::Unavailable, "PARTICIPANT_UNAVAILABLE")
            .with("participant", name)
            .retry(SOON),
        Refusal::Draining => row(Code::Unavailable, "DRAINING").retry(LATER),
        // Not DRAINING, which promises that nothing was done.
        Refusal::Interrupted(id) => row(Code::Unavailable, "STOPPING")
            .with("transactionId", id)
            .retry(LATER),
        Refusal::OutcomePending {
            transaction,
            participant,
        } => row(Code::Unavailable, "OUTCOME_PENDING")
            .with("transactionId", transaction)
            .with("participant", participant)
            .retry(SOON),
        Refusal::TooManyTransactions(limit) => {
            row(Code::ResourceExhausted, "TOO_MANY_TRANSACTIONS")
                .with("limit", limit)
                .retry(LATER)
        }
        Refusal::ParticipantBusy(name) => row(Code::ResourceExhausted, "PARTICIPANT_BUSY")
            .with("participant", name)
            .retry(SOON),
    }
}

/// One row of the table.
struct Row {
    code: Code,
    reason: &'static str,
    /// lowerCamel keys; every variable of the message.
    metadata: Vec<(&'static str, String)>,
    /// Set where the same call may succeed after a while.
    retry_after: Option<Duration>,
}

fn row(code: Code, reason: &'static str) -> Row {
    Row {
        code,
        reason,
        metadata: Vec::new(),
        retry_after: None,
    }
}

impl Row {
    fn with(mut self, key: &'static str, value: impl ToString) -> Self {
        self.metadata.push((key, value.to_string()));
        self
    }

    fn retry(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }
}

impl From<Refused> for Status {
    fn from(refused: Refused) -> Status {
        let row = refused.row();
        let metadata: std::collections::HashMap<String, String> = row
            .metadata
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect();
        let mut details = ErrorDetails::with_error_info(row.reason, ERROR_DOMAIN, metadata);
        if row.retry_after.is_some() {
            details.set_retry_info(row.retry_after);
        }
        Status::with_error_details(row.code, refused.to_string(), details)
    }
}

#[cfg(test)]
mod tests {
    use unanimity_engine::{AbortCode, AbortReason, BranchKey, Epoch, LogId, TransactionId};

    use super::*;

    const ID: TransactionId = TransactionId {
        log: LogId(1),
        epoch: Epoch(1),
        unique: 1,
    };

    /// Every refusal with what a client sees of it. A new variant breaks the build in `engine_row`; add it here too.
    fn all() -> Vec<(Refused, Code, &'static str, &'static [&'static str], bool)> {
        let reason = AbortReason {
            code: AbortCode::Timeout,
            participant: "a".into(),
            message: "late".into(),
        };
        let key = BranchKey {
            transaction: ID,
            branch: 1,
        };
        let text = String::from;
        let engine: Vec<(Refusal, Code, &'static str, &'static [&'static str], bool)> = vec![
            (
                Refusal::Invalid {
                    field: text("f"),
                    problem: text("p"),
                },
                Code::InvalidArgument,
                "INVALID_REQUEST",
                &["field"],
                false,
            ),
            (
                Refusal::TooManyBranches { given: 2, limit: 1 },
                Code::InvalidArgument,
                "TOO_MANY_BRANCHES",
                &["given", "limit"],
                false,
            ),
            (
                Refusal::PayloadTooLarge { given: 2, limit: 1 },
                Code::InvalidArgument,
                "PAYLOAD_TOO_LARGE",
                &["given", "limit"],
                false,
            ),
            (
                Refusal::RequestIdReused(text("r")),
                Code::InvalidArgument,
                "REQUEST_ID_REUSED",
                &["requestId"],
                false,
            ),
            (
                Refusal::ParticipantUnknown(text("a")),
                Code::NotFound,
                "PARTICIPANT_UNKNOWN",
                &["participant"],
                false,
            ),
            (
                Refusal::TransactionUnknown(text("t")),
                Code::NotFound,
                "TRANSACTION_UNKNOWN",
                &["transactionId"],
                false,
            ),
            (
                Refusal::RequestIdForgotten(text("r")),
                Code::NotFound,
                "REQUEST_ID_FORGOTTEN",
                &["requestId"],
                false,
            ),
            (
                Refusal::TransactionForgotten(ID),
                Code::NotFound,
                "TRANSACTION_FORGOTTEN",
                &["transactionId"],
                false,
            ),
            (
                Refusal::TransactionDecided(ID),
                Code::FailedPrecondition,
                "TRANSACTION_DECIDED",
                &["transactionId"],
                false,
            ),
            (
                Refusal::TransactionNotOpen(ID),
                Code::FailedPrecondition,
                "TRANSACTION_NOT_OPEN",
                &["transactionId"],
                false,
            ),
            (
                Refusal::BranchNotInDoubt(key),
                Code::FailedPrecondition,
                "BRANCH_NOT_IN_DOUBT",
                &["transactionId", "branch"],
                false,
            ),
            (
                Refusal::StepNotTried {
                    transaction: ID,
                    step: text("s"),
                },
                Code::FailedPrecondition,
                "STEP_NOT_TRIED",
                &["transactionId", "step"],
                false,
            ),
            (
                Refusal::ResourceMismatch {
                    participant: text("a"),
                    held: text("x"),
                    given: text("y"),
                },
                Code::FailedPrecondition,
                "RESOURCE_MISMATCH",
                &["participant", "held", "given"],
                false,
            ),
            (
                Refusal::TransactionAborted {
                    transaction: ID,
                    reason,
                },
                Code::Aborted,
                "TRANSACTION_ABORTED",
                &["transactionId", "code", "participant"],
                false,
            ),
            (
                Refusal::ParticipantUnavailable(text("a")),
                Code::Unavailable,
                "PARTICIPANT_UNAVAILABLE",
                &["participant"],
                true,
            ),
            (Refusal::Draining, Code::Unavailable, "DRAINING", &[], true),
            (
                Refusal::Interrupted(ID),
                Code::Unavailable,
                "STOPPING",
                &["transactionId"],
                true,
            ),
            (
                Refusal::OutcomePending {
                    transaction: ID,
                    participant: text("a"),
                },
                Code::Unavailable,
                "OUTCOME_PENDING",
                &["transactionId", "participant"],
                true,
            ),
            (
                Refusal::TooManyTransactions(1),
                Code::ResourceExhausted,
                "TOO_MANY_TRANSACTIONS",
                &["limit"],
                true,
            ),
            (
                Refusal::ParticipantBusy(text("a")),
                Code::ResourceExhausted,
                "PARTICIPANT_BUSY",
                &["participant"],
                true,
            ),
        ];
        let own: Vec<(Refused, Code, &'static str, &'static [&'static str], bool)> = vec![
            (
                Refused::OperationUnknown {
                    field: text("f"),
                    participant: text("a"),
                    operation: text("o"),
                    offered: text("nothing"),
                },
                Code::NotFound,
                "OPERATION_UNKNOWN",
                &["field", "participant", "operation"],
                false,
            ),
            (
                Refused::LogSpaceLow,
                Code::ResourceExhausted,
                "LOG_SPACE_LOW",
                &[],
                true,
            ),
            (Refused::Starting, Code::Unavailable, "STARTING", &[], true),
            (Refused::Stopping, Code::Unavailable, "STOPPING", &[], true),
            (
                Refused::WatchLagged(3),
                Code::DataLoss,
                "WATCH_LAGGED",
                &["missed"],
                false,
            ),
            (
                Refused::SessionStalled(3),
                Code::ResourceExhausted,
                "SESSION_STALLED",
                &["limit"],
                true,
            ),
            (
                Refused::HelloMissing(LATER),
                Code::InvalidArgument,
                "INVALID_REQUEST",
                &["field"],
                false,
            ),
        ];
        let engine = engine
            .into_iter()
            .map(|(refusal, a, b, c, d)| (Refused::from(refusal), a, b, c, d));
        engine.chain(own).collect()
    }

    #[test]
    fn every_refusal_has_its_code_reason_metadata_and_back_off() {
        for (refused, code, reason, keys, retry) in all() {
            let shown = refused.to_string();
            let status = Status::from(refused);
            assert_eq!(status.code(), code, "{shown}");
            assert_eq!(status.message(), shown);
            let info = status.get_details_error_info().expect("ErrorInfo");
            assert_eq!(
                (info.reason.as_str(), info.domain.as_str()),
                (reason, "unanimity")
            );
            let mut found: Vec<_> = info.metadata.keys().map(String::as_str).collect();
            let mut wanted = keys.to_vec();
            found.sort_unstable();
            wanted.sort_unstable();
            assert_eq!(found, wanted, "{reason}");
            assert_eq!(status.get_details_retry_info().is_some(), retry, "{reason}");
        }
    }

    #[test]
    fn an_abort_is_told_with_the_name_of_its_code() {
        let reason = AbortReason {
            code: AbortCode::Conflict,
            participant: "a".into(),
            message: String::new(),
        };
        let status = Status::from(Refused::from(Refusal::TransactionAborted {
            transaction: ID,
            reason,
        }));
        let info = status.get_details_error_info().expect("ErrorInfo");
        assert_eq!(info.metadata["code"], "ABORT_CODE_CONFLICT");
        assert_eq!(info.metadata["transactionId"], ID.to_string());
    }
}
