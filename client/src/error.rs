//! What an error status means: whether the request was taken, and what the caller may do.
//!
//! Everything turns on `ErrorInfo.reason`. A status that the coordinator didn't make proves nothing, above all not that nothing
//! happened; and a message is for people, never parsed.

use std::{error::Error as _, time::Duration};

use tonic::{Code, Status};
use tonic_types::StatusExt;
use unanimity_proto::{ERROR_DOMAIN, v1::AbortCode};

/// Nothing was changed by the request, and nothing will be. Grouped by what the caller may do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The request itself is wrong; the same one will never be taken.
    #[error("{message}")]
    Invalid {
        /// What is wrong.
        reason: Reason,
        /// The field at fault, where one is.
        field: Option<String>,
        /// For people.
        message: String,
    },
    /// It names a participant, an operation or a transaction that is not there.
    #[error("{message}")]
    NotFound {
        /// What is not there.
        reason: Reason,
        /// For people.
        message: String,
    },
    /// The state of things, or the caller's rights, don't allow it; don't retry.
    #[error("{message}")]
    Refused {
        /// Why.
        reason: Reason,
        /// For people.
        message: String,
    },
    /// A bound is reached; retry later.
    #[error("{message}")]
    Busy {
        /// Which bound.
        reason: Reason,
        /// For people.
        message: String,
        /// How long the coordinator asks to wait.
        retry_after: Option<Duration>,
    },
    /// The coordinator, or what it needs, is away; retry later.
    #[error("{message}")]
    Unavailable {
        /// What is away.
        reason: Reason,
        /// For people.
        message: String,
        /// How long the coordinator asks to wait.
        retry_after: Option<Duration>,
    },
}

impl Error {
    /// The constant to switch on.
    pub fn reason(&self) -> &Reason {
        match self {
            Self::Invalid { reason, .. }
            | Self::NotFound { reason, .. }
            | Self::Refused { reason, .. }
            | Self::Busy { reason, .. }
            | Self::Unavailable { reason, .. } => reason,
        }
    }

    /// Whether the same request may be taken later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Busy { .. } | Self::Unavailable { .. })
    }

    pub(crate) fn invalid(field: &str, message: impl Into<String>) -> Self {
        Self::Invalid {
            reason: Reason::InvalidRequest,
            field: Some(field.to_owned()),
            message: message.into(),
        }
    }
}

/// `ErrorInfo.reason`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// A field is missing or malformed.
    InvalidRequest,
    /// More branches than the coordinator takes.
    TooManyBranches,
    /// More bytes than the coordinator takes.
    PayloadTooLarge,
    /// The request id came before with another request.
    RequestIdReused,
    /// The request id came again so late that its first outcome may be forgotten. Nothing was done this time.
    RequestIdForgotten,
    /// No participant of that name has ever registered.
    ParticipantUnknown,
    /// The participant offers no such operation.
    OperationUnknown,
    /// No such transaction.
    TransactionUnknown,
    /// The outcome is so old that it is no longer kept.
    TransactionForgotten,
    /// The transaction is decided already.
    TransactionDecided,
    /// The transaction takes no operations.
    TransactionNotOpen,
    /// The transaction was aborted.
    TransactionAborted,
    /// The participant has no session.
    ParticipantUnavailable,
    /// The coordinator is shutting down.
    Draining,
    /// The coordinator is replaying its log.
    Starting,
    /// The outcome hangs on a participant that is away.
    OutcomePending,
    /// As many transactions in flight as the coordinator takes.
    TooManyTransactions,
    /// The coordinator's log is short of disk space.
    LogSpaceLow,
    /// The participant has no slot free.
    ParticipantBusy,
    /// Made here: no answer came from the coordinator.
    NoAnswer,
    /// Of a newer coordinator, or a status code without a reason.
    Other(String),
}

impl From<&str> for Reason {
    fn from(reason: &str) -> Self {
        match reason {
            "INVALID_REQUEST" => Self::InvalidRequest,
            "TOO_MANY_BRANCHES" => Self::TooManyBranches,
            "PAYLOAD_TOO_LARGE" => Self::PayloadTooLarge,
            "REQUEST_ID_REUSED" => Self::RequestIdReused,
            "REQUEST_ID_FORGOTTEN" => Self::RequestIdForgotten,
            "PARTICIPANT_UNKNOWN" => Self::ParticipantUnknown,
            "OPERATION_UNKNOWN" => Self::OperationUnknown,
            "TRANSACTION_UNKNOWN" => Self::TransactionUnknown,
            "TRANSACTION_FORGOTTEN" => Self::TransactionForgotten,
            "TRANSACTION_DECIDED" => Self::TransactionDecided,
            "TRANSACTION_NOT_OPEN" => Self::TransactionNotOpen,
            "TRANSACTION_ABORTED" => Self::TransactionAborted,
            "PARTICIPANT_UNAVAILABLE" => Self::ParticipantUnavailable,
            "DRAINING" => Self::Draining,
            "STARTING" => Self::Starting,
            "OUTCOME_PENDING" => Self::OutcomePending,
            "TOO_MANY_TRANSACTIONS" => Self::TooManyTransactions,
            "LOG_SPACE_LOW" => Self::LogSpaceLow,
            "PARTICIPANT_BUSY" => Self::ParticipantBusy,
            other => Self::Other(other.to_owned()),
        }
    }
}

/// What a failed attempt tells.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Verdict {
    /// It did not take effect, and never will.
    NotTaken(Error),
    /// The coordinator says that the transaction named in the request is aborted.
    Aborted(AbortNotice),
    /// It may have taken effect, now or later.
    MaybeTaken(Doubt),
}

/// Why a transaction was aborted, as an error status tells it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct AbortNotice {
    pub(crate) code: AbortCode,
    pub(crate) participant: Option<String>,
    pub(crate) message: String,
}

/// Why nothing can be said.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Doubt {
    pub(crate) reason: Reason,
    pub(crate) message: String,
    pub(crate) retry_after: Option<Duration>,
}

impl Doubt {
    /// An answer that did not come, or that can't be understood.
    pub(crate) fn no_answer(message: impl Into<String>) -> Self {
        Self {
            reason: Reason::NoAnswer,
            message: message.into(),
            retry_after: None,
        }
    }
}

/// For calls in which a doubt does no harm, because they change nothing that lasts.
impl From<Doubt> for Error {
    fn from(doubt: Doubt) -> Self {
        Self::Unavailable {
            reason: doubt.reason,
            message: doubt.message,
            retry_after: doubt.retry_after,
        }
    }
}

impl Verdict {
    /// The longest wait that the coordinator asked for.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::NotTaken(
                Error::Busy { retry_after, .. } | Error::Unavailable { retry_after, .. },
            ) => *retry_after,
            Self::MaybeTaken(doubt) => doubt.retry_after,
            Self::NotTaken(_) | Self::Aborted(_) => None,
        }
    }

    /// Whether another attempt may tell more.
    pub(crate) fn is_retryable(&self) -> bool {
        match self {
            Self::NotTaken(error) => error.is_retryable(),
            Self::Aborted(_) => false,
            Self::MaybeTaken(_) => true,
        }
    }
}

impl From<Status> for Verdict {
    fn from(status: Status) -> Self {
        // tonic gives a source to a status that it made from a failed transport, and none to one that came over the wire. HTTP/2 errors
        // are dressed as RESOURCE_EXHAUSTED and the like, and say nothing of the request.
        let info = match status.source() {
            Some(_) => None,
            None => status
                .get_details_error_info()
                .filter(|info| info.domain == ERROR_DOMAIN),
        };
        let judge = Judge {
            retry_after: status
                .get_details_retry_info()
                .and_then(|info| info.retry_delay),
            message: message(&status),
        };
        match info {
            Some(mut info) => judge.by_reason(
                status.code(),
                info.reason.as_str().into(),
                &mut info.metadata,
            ),
            None if status.source().is_some() => judge.doubt(Reason::NoAnswer),
            None => judge.by_code(status.code(), None),
        }
    }
}

/// The innermost source of a transport error is what names the trouble.
fn message(status: &Status) -> String {
    let mut innermost: Option<&(dyn std::error::Error + 'static)> = status.source();
    while let Some(next) = innermost.and_then(std::error::Error::source) {
        innermost = Some(next);
    }
    let said = match status.message() {
        "" => status.code().description(),
        message => message,
    };
    match innermost.map(ToString::to_string) {
        Some(inner) if !said.contains(&inner) => format!("{said}: {inner}"),
        _ => said.to_owned(),
    }
}

struct Judge {
    message: String,
    retry_after: Option<Duration>,
}

impl Judge {
    fn by_reason(
        self,
        code: Code,
        reason: Reason,
        metadata: &mut std::collections::HashMap<String, String>,
    ) -> Verdict {
        match reason {
            Reason::InvalidRequest
            | Reason::TooManyBranches
            | Reason::PayloadTooLarge
            | Reason::RequestIdReused => self.invalid(reason, metadata.remove("field")),
            Reason::RequestIdForgotten
            | Reason::ParticipantUnknown
            | Reason::OperationUnknown
            | Reason::TransactionUnknown
            | Reason::TransactionForgotten => self.not_found(reason),
            Reason::TransactionDecided | Reason::TransactionNotOpen => self.refused(reason),
            Reason::TransactionAborted => Verdict::Aborted(AbortNotice {
                code: metadata
                    .get("code")
                    .map_or(AbortCode::Unspecified, |name| abort_code(name)),
                participant: metadata
                    .remove("participant")
                    .filter(|name| !name.is_empty()),
                message: self.message,
            }),
            Reason::ParticipantUnavailable | Reason::Draining | Reason::Starting => {
                self.unavailable(reason)
            }
            Reason::TooManyTransactions | Reason::LogSpaceLow | Reason::ParticipantBusy => {
                self.busy(reason)
            }
            Reason::OutcomePending | Reason::NoAnswer => self.doubt(reason),
            Reason::Other(_) => self.by_code(code, Some(reason)),
        }
    }

    /// Only codes that no client library makes up, and that come before anything is done, say that the request was not taken.
    fn by_code(self, code: Code, reason: Option<Reason>) -> Verdict {
        // A bound that we don't know is still the coordinator's. Without a reason it may be a proxy's, over the length of an answer.
        let ours = reason.is_some();
        let reason = reason.unwrap_or_else(|| Reason::Other(format!("{code:?}")));
        match code {
            // OUT_OF_RANGE: tonic's servers answer so to a message that is too long. This client sets no limit of its own.
            Code::InvalidArgument | Code::OutOfRange => self.invalid(reason, None),
            Code::NotFound => self.not_found(reason),
            Code::FailedPrecondition
            | Code::Unauthenticated
            | Code::PermissionDenied
            | Code::Unimplemented => self.refused(reason),
            Code::ResourceExhausted if ours => self.busy(reason),
            Code::Ok
            | Code::Cancelled
            | Code::Unknown
            | Code::DeadlineExceeded
            | Code::AlreadyExists
            | Code::Aborted
            | Code::Internal
            | Code::ResourceExhausted
            | Code::Unavailable
            | Code::DataLoss => self.doubt(if ours { reason } else { Reason::NoAnswer }),
        }
    }

    fn invalid(self, reason: Reason, field: Option<String>) -> Verdict {
        let message = self.message;
        Verdict::NotTaken(Error::Invalid {
            reason,
            field,
            message,
        })
    }

    fn not_found(self, reason: Reason) -> Verdict {
        let message = self.message;
        Verdict::NotTaken(Error::NotFound { reason, message })
    }

    fn refused(self, reason: Reason) -> Verdict {
        let message = self.message;
        Verdict::NotTaken(Error::Refused { reason, message })
    }

    fn busy(self, reason: Reason) -> Verdict {
        let Self {
            message,
            retry_after,
        } = self;
        Verdict::NotTaken(Error::Busy {
            reason,
            message,
            retry_after,
        })
    }

    fn unavailable(self, reason: Reason) -> Verdict {
        let Self {
            message,
            retry_after,
        } = self;
        Verdict::NotTaken(Error::Unavailable {
            reason,
            message,
            retry_after,
        })
    }

    fn doubt(self, reason: Reason) -> Verdict {
        let Self {
            message,
            retry_after,
        } = self;
        Verdict::MaybeTaken(Doubt {
            reason,
            message,
            retry_after,
        })
    }
}

/// The enum's name, with its prefix or without.
fn abort_code(name: &str) -> AbortCode {
    AbortCode::from_str_name(name)
        .or_else(|| AbortCode::from_str_name(&format!("ABORT_CODE_{name}")))
        .unwrap_or(AbortCode::Unspecified)
}

#[cfg(test)]
mod tests {
    use std::{io, sync::Arc};

    use tonic_types::ErrorDetails;

    use super::*;

    fn status(code: Code, reason: &str, metadata: &[(&str, &str)]) -> Status {
        let metadata: Vec<_> = metadata
            .iter()
            .map(|&(k, v)| (k.to_owned(), v.to_owned()))
            .collect();
        let details = ErrorDetails::with_error_info(
            reason,
            ERROR_DOMAIN,
            metadata
                .into_iter()
                .collect::<std::collections::HashMap<_, _>>(),
        );
        Status::with_error_details(code, "no", details)
    }

    fn kind(status: Status) -> &'static str {
        match Verdict::from(status) {
            Verdict::NotTaken(Error::Invalid { .. }) => "invalid",
            Verdict::NotTaken(Error::NotFound { .. }) => "not found",
            Verdict::NotTaken(Error::Refused { .. }) => "refused",
            Verdict::NotTaken(Error::Busy { .. }) => "busy",
            Verdict::NotTaken(Error::Unavailable { .. }) => "unavailable",
            Verdict::Aborted(_) => "aborted",
            Verdict::MaybeTaken(_) => "doubt",
        }
    }

    #[test]
    fn every_reason_says_what_the_caller_may_do() {
        let table = [
            (Code::InvalidArgument, "INVALID_REQUEST", "invalid"),
            (Code::InvalidArgument, "TOO_MANY_BRANCHES", "invalid"),
            (Code::InvalidArgument, "PAYLOAD_TOO_LARGE", "invalid"),
            (Code::InvalidArgument, "REQUEST_ID_REUSED", "invalid"),
            (Code::NotFound, "PARTICIPANT_UNKNOWN", "not found"),
            (Code::NotFound, "OPERATION_UNKNOWN", "not found"),
            (Code::NotFound, "TRANSACTION_UNKNOWN", "not found"),
            (Code::FailedPrecondition, "TRANSACTION_DECIDED", "refused"),
            (Code::FailedPrecondition, "TRANSACTION_NOT_OPEN", "refused"),
            (Code::Aborted, "TRANSACTION_ABORTED", "aborted"),
            (Code::Unavailable, "PARTICIPANT_UNAVAILABLE", "unavailable"),
            (Code::Unavailable, "DRAINING", "unavailable"),
            (Code::Unavailable, "STARTING", "unavailable"),
            (Code::Unavailable, "STOPPING", "doubt"),
            (Code::NotFound, "TRANSACTION_FORGOTTEN", "not found"),
            (Code::NotFound, "REQUEST_ID_FORGOTTEN", "not found"),
            (Code::ResourceExhausted, "LOG_SPACE_LOW", "busy"),
            (Code::Unavailable, "OUTCOME_PENDING", "doubt"),
            (Code::ResourceExhausted, "TOO_MANY_TRANSACTIONS", "busy"),
            (Code::ResourceExhausted, "PARTICIPANT_BUSY", "busy"),
            (Code::ResourceExhausted, "OF_TOMORROW", "busy"),
            (Code::FailedPrecondition, "OF_TOMORROW", "refused"),
            (Code::Unavailable, "OF_TOMORROW", "doubt"),
            (Code::Aborted, "OF_TOMORROW", "doubt"),
        ];
        for (code, reason, wanted) in table {
            assert_eq!(kind(status(code, reason, &[])), wanted, "{code:?}/{reason}");
        }
    }

    #[test]
    fn a_code_without_our_reason_says_nothing_unless_it_comes_before_the_work() {
        let table = [
            (Code::Unavailable, "doubt"),
            (Code::Cancelled, "doubt"),
            (Code::DeadlineExceeded, "doubt"),
            (Code::Unknown, "doubt"),
            (Code::Internal, "doubt"),
            (Code::Aborted, "doubt"),
            (Code::DataLoss, "doubt"),
            (Code::InvalidArgument, "invalid"),
            (Code::NotFound, "not found"),
            (Code::Unauthenticated, "refused"),
            (Code::PermissionDenied, "refused"),
            (Code::ResourceExhausted, "doubt"),
        ];
        for (code, wanted) in table {
            assert_eq!(kind(Status::new(code, "")), wanted, "{code:?}");
        }
    }

    #[test]
    fn a_foreign_domain_is_no_reason_of_ours() {
        let details = ErrorDetails::with_error_info(
            "DRAINING",
            "example.com",
            std::collections::HashMap::new(),
        );
        assert_eq!(
            kind(Status::with_error_details(Code::Unavailable, "", details)),
            "doubt"
        );
    }

    #[test]
    fn a_broken_transport_is_a_doubt_whatever_code_it_wears() {
        let mut status = Status::resource_exhausted("enhance your calm");
        status.set_source(Arc::new(io::Error::other("GOAWAY")));
        let Verdict::MaybeTaken(doubt) = Verdict::from(status) else {
            panic!("it may have been taken");
        };
        assert_eq!(doubt.reason, Reason::NoAnswer);
        assert_eq!(doubt.message, "enhance your calm: GOAWAY");
    }

    #[test]
    fn the_metadata_names_the_field_and_the_abort() {
        let invalid = Verdict::from(status(
            Code::InvalidArgument,
            "INVALID_REQUEST",
            &[("field", "branches[0].participant")],
        ));
        assert!(
            matches!(invalid, Verdict::NotTaken(Error::Invalid { field: Some(field), .. }) if field == "branches[0].participant")
        );
        for code in ["ABORT_CODE_CONFLICT", "CONFLICT"] {
            let aborted = Verdict::from(status(
                Code::Aborted,
                "TRANSACTION_ABORTED",
                &[("code", code), ("participant", "bank1")],
            ));
            let notice = AbortNotice {
                code: AbortCode::Conflict,
                participant: Some("bank1".into()),
                message: "no".into(),
            };
            assert_eq!(aborted, Verdict::Aborted(notice));
        }
    }
}
