//! The targets, each with what must hold of it.

mod answer;
mod branch_journal;
mod config;
mod identifier;
mod log;
mod message;
mod prepare_journal;
mod record;
mod reference;
mod replay;
mod request;
mod result;
mod statement;

use crate::Target;

/// All of them, by name.
pub const TARGETS: &[Target] = &[
    answer::ANSWER,
    branch_journal::BRANCH_JOURNAL,
    config::COORDINATOR_CONFIG,
    config::HTTP_CONFIG,
    config::SQL_CONFIG,
    identifier::IDENTIFIER,
    log::CRASHED_LOG,
    log::DAMAGED_LOG,
    log::SEGMENT,
    message::DOWNWARD,
    message::UPWARD,
    prepare_journal::PREPARE_JOURNAL,
    record::RECORD,
    reference::REFERENCE,
    replay::REPLAY,
    request::SAGA,
    request::SUBMIT,
    result::RESULT,
    result::TRANSACTION,
    statement::STATEMENT,
];
