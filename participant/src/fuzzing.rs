//! Doors for the fuzz targets: what reads strangers' bytes here and is private. No part of the API.

use std::{path::Path, time::Duration};

use http::{HeaderMap, StatusCode};
use unanimity_proto::v1::{self, coordinator_message::Kind};

use crate::{
    http::{
        answer::{Answer, Body, meaning},
        journal::{Journal, State},
    },
    operation::Dialect,
    participant::{BranchId, Compensated, Prepare},
    resource::{
        identifier,
        sqlite::journal::{self, Record},
    },
    wire::{self, Incoming, RunStep, Work},
};

/// Reads a message of the coordinator, and writes down as a message again what was understood.
///
/// # Errors
/// What is answered where it was not understood; `None` for nothing.
pub fn understood(
    message: v1::CoordinatorMessage,
) -> Result<v1::CoordinatorMessage, Option<Box<v1::ParticipantMessage>>> {
    let kind = match wire::parse(message).map_err(|malformed| malformed.answer)? {
        Incoming::Welcome(welcome) => Kind::Welcome(v1::Welcome {
            log_id: welcome.log_id,
            epoch: welcome.epoch,
            instance: welcome.instance,
        }),
        Incoming::Branch(branch, work) => on_branch(wire::key(&branch), work),
        Incoming::EnlistResult {
            correlation,
            result,
        } => {
            let (key, refusal) = match result {
                Ok(branch) => (Some(wire::key(&branch)), String::new()),
                Err(refusal) => (None, refusal),
            };
            Kind::EnlistResult(v1::EnlistResult {
                correlation,
                key,
                refusal,
            })
        }
        Incoming::ListInDoubt => Kind::ListInDoubt(v1::ListInDoubt {}),
    };
    Ok(v1::CoordinatorMessage { kind: Some(kind) })
}

fn on_branch(key: v1::BranchKey, work: Work) -> Kind {
    let key = Some(key);
    match work {
        Work::Prepare(work) => Kind::Prepare(prepare(key, work)),
        Work::Commit { proof } => Kind::Commit(v1::Commit { key, proof }),
        Work::Abort { proof } => Kind::Abort(v1::Abort { key, proof }),
        Work::Execute {
            sequence,
            open,
            operation,
            timeout,
        } => Kind::Execute(v1::Execute {
            key,
            sequence,
            open,
            operation: Some(*operation),
            timeout: span(timeout),
        }),
        Work::Prove => Kind::Prove(v1::Prove { key }),
        Work::Abandon => unreachable!("no message says so"),
        Work::RunStep(run) => Kind::RunStep(run_step(key, *run)),
        Work::SettleStep { age, attempt } => Kind::SettleStep(v1::SettleStep {
            key,
            age: span(age),
            attempt,
        }),
    }
}

fn prepare(key: Option<v1::BranchKey>, work: Prepare) -> v1::Prepare {
    v1::Prepare {
        key,
        continued: work.continued,
        operations: work.operations,
        one_phase: work.one_phase,
        request_id: work.request_id,
        timeout: span(work.timeout),
        traceparent: work.traceparent,
    }
}

fn run_step(key: Option<v1::BranchKey>, run: RunStep) -> v1::RunStep {
    let step = run.step;
    let fence = |fence: crate::participant::Fence| v1::Fence {
        key: fence.key,
        token: fence.token,
    };
    let compensates = |undone: Compensated| v1::Compensates {
        branch: undone.branch.number,
        unsettled: undone.unsettled,
        result: undone.result,
    };
    v1::RunStep {
        key,
        step: step.name,
        operation: Some(step.operation),
        compensates: run.compensated.map(compensates),
        keep_result: step.keep_result,
        fences: step.fences.into_iter().map(fence).collect(),
        timeout: span(step.timeout),
        attempt: step.attempt,
        age: span(step.age),
        traceparent: step.traceparent,
    }
}

fn span(duration: Duration) -> Option<prost_types::Duration> {
    duration.try_into().ok()
}

/// Whether the session takes this for the id of a transaction.
pub fn is_transaction_id(text: &str) -> bool {
    wire::is_transaction_id(text)
}

/// Reads PostgreSQL's name of a prepared branch.
pub fn gid(text: &str) -> Option<BranchId> {
    identifier::parse_gid(text)
}

/// Reads the two halves of an XA id.
pub fn xid(transaction: &str, number: &str) -> Option<BranchId> {
    identifier::parse_parts(transaction, number)
}

/// Whether the id may be spliced into SQL.
pub fn is_spliceable(branch: &BranchId) -> bool {
    identifier::check(branch).is_ok()
}

/// How long ago the branch's transaction began.
pub fn age(branch: &BranchId) -> Option<Duration> {
    identifier::age(branch)
}

/// Reads the prepare journal of SQLite's agent: the branch and its changes.
pub fn prepare_journal(bytes: &[u8]) -> Option<(BranchId, Vec<u8>)> {
    journal::decode(bytes).map(|record| (record.branch, record.changeset))
}

/// Writes it.
pub fn write_prepare_journal(branch: BranchId, changeset: Vec<u8>) -> Vec<u8> {
    journal::encode(&Record { branch, changeset })
}

/// Makes a journal of the agent around a service, with a branch in each state.
///
/// # Errors
/// Where that can't be done.
pub async fn make_branch_journal(path: &Path) -> Result<(), String> {
    use sqlx::Connection as _;
    let journal = Journal::open(path, Duration::from_secs(60))
        .await
        .map_err(|refused| refused.to_string())?;
    let states = [
        State::Open,
        State::Doomed,
        State::Committed,
        State::Aborted,
        State::Sent,
        State::Fenced,
    ];
    for (number, state) in (1..).zip(states) {
        let branch = BranchId {
            transaction: "u1.0000002a.3.0192f0c4a7b87c3d8e9f00112233aabb".into(),
            number,
        };
        let operations = ["reserve".to_owned(), "charge".to_owned()];
        let written = journal.write(&branch, state, &operations).await;
        written.map_err(|error| error.to_string())?;
    }
    // Closed, all is in the one file.
    let connection = journal.connection.into_inner();
    connection.close().await.map_err(|error| error.to_string())
}

/// Opens a journal of the agent around a service, and reads all of it that is unsettled: each branch, its state, and its operations.
///
/// # Errors
/// Where it can't be used.
pub async fn branch_journal(
    path: &Path,
) -> Result<Vec<(BranchId, Option<(String, Vec<String>)>)>, String> {
    let journal = Journal::open(path, Duration::from_secs(60))
        .await
        .map_err(|refused| refused.to_string())?;
    let mut read = Vec::new();
    for branch in journal.unsettled().await.map_err(|e| e.to_string())? {
        let record = journal.record(&branch).await.map_err(|e| e.to_string())?;
        let told = record.map(|record| (format!("{:?}", record.state), record.operations));
        read.push((branch, told));
    }
    Ok(read)
}

/// Reads a service's answer: what it means, and its text.
pub fn answer(status: StatusCode, headers: &HeaderMap, body: Vec<u8>) -> (&'static str, String) {
    match meaning("POST /x", status, headers, Body::Whole(body)) {
        Answer::Done(result) => ("done", result),
        Answer::Refused(text) => ("refused", text),
        Answer::Working(text) => ("working", text),
        Answer::NotTaken(text) => ("not taken", text),
        Answer::Mistaken(text) => ("mistaken", text),
        Answer::Unknown(text) => ("unknown", text),
    }
}

/// Whether a branch takes this statement.
pub fn takes(dialect: Dialect, sql: &str) -> bool {
    dialect.check(sql).is_ok()
}
