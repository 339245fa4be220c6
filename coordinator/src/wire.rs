//! Between the wire's types and the engine's: the one module where they meet.
//!
//! What comes from a peer is checked field by field and never mapped to a default; what the engine says is translated as it is.

use std::sync::Arc;

use prost_types::Timestamp;
use unanimity_engine::{
    AbortCode, AbortReason, Bound, BranchKey, BranchState, BranchView, Completion, Downward, Epoch,
    Found, InDoubtKind, InDoubtView, LogPosition, ParticipantName, ParticipantView, Payload,
    Resolution, Seq, SessionView, TransactionId, TransactionState, TransactionView, Upward, Vote,
};
use unanimity_proto::v1::{self, coordinator_message, participant_message};

use prost::Message as _;

use crate::{clock::Now, error::Refused, outlet::Batch};

pub(crate) mod reference;
mod saga;

pub(crate) use saga::lock;

/// Logs of which a participant may tell what it has seen.
const SEEN_LOGS: usize = 64;
/// The longest proof that a vote may carry, in bytes.
const PROOF_BYTES: usize = 64;
/// A batch is split past this size, in bytes, so that it fits the 4 MiB that a gRPC peer takes by default.
const BATCH_BYTES: usize = 2 << 20;
/// Texts for people are cut here, in bytes, so that they can't fill the memory.
const TEXT_BYTES: usize = 4096;

/// What is wrong with a participant's message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Mistake {
    /// It is about something that we can't name: to be logged and ignored.
    Stray(String),
    /// The peer can't be trusted to speak the protocol: the session ends.
    Fatal(Refused),
}

impl Mistake {
    fn fatal(field: &str, problem: impl Into<String>) -> Self {
        Mistake::Fatal(Refused::invalid(field, problem))
    }
}

// ---- work, encoded for the engine, which never looks inside

/// The operations of one branch.
pub(crate) fn work(operations: Vec<v1::Operation>) -> Payload {
    v1::BranchRequest {
        participant: String::new(),
        operations,
    }
    .encode_to_vec()
    .into()
}

/// One operation.
pub(crate) fn operation(operation: &v1::Operation) -> Payload {
    operation.encode_to_vec().into()
}

/// What an operation gave back.
pub(crate) fn operation_result(payload: &Payload) -> v1::OperationResult {
    v1::OperationResult::decode(&payload[..]).expect("a result was encoded in this module")
}

// ---- down

/// A batch for a participant, in as few responses as the size of a message allows; usually one.
pub(crate) fn batches(batch: Batch) -> Vec<v1::SessionResponse> {
    let empty = v1::SessionResponse {
        messages: Vec::new(),
        durable_sequence: batch.durable.0,
    };
    let mut batches = vec![empty.clone()];
    let mut bytes = 0;
    for message in batch.messages.into_iter().map(downward) {
        let size = message.encoded_len();
        match batches.last_mut() {
            Some(batch) if bytes == 0 || bytes + size <= BATCH_BYTES => {
                batch.messages.push(message)
            }
            _ => {
                bytes = 0;
                batches.push(v1::SessionResponse {
                    messages: vec![message],
                    ..empty.clone()
                });
            }
        }
        bytes += size;
    }
    batches
}

fn downward(message: Downward) -> v1::CoordinatorMessage {
    use coordinator_message::Kind;
    let kind = match message {
        Downward::Welcome(incarnation) => Kind::Welcome(v1::Welcome {
            log_id: incarnation.log.to_string(),
            epoch: incarnation.epoch.0,
            instance: incarnation.instance,
        }),
        Downward::Prepare {
            key,
            continued,
            work,
            values,
            one_phase,
            request_id,
            timeout_ms,
            traceparent,
        } => Kind::Prepare(v1::Prepare {
            key: Some(branch_key(key)),
            continued,
            operations: work
                .map(|work| operations(&work, values))
                .unwrap_or_default(),
            one_phase,
            request_id,
            timeout: Some(duration(timeout_ms)),
            traceparent,
        }),
        Downward::Commit { key, proof } => Kind::Commit(v1::Commit {
            key: Some(branch_key(key)),
            proof,
        }),
        Downward::Abort { key, proof } => Kind::Abort(v1::Abort {
            key: Some(branch_key(key)),
            proof,
        }),
        Downward::Execute {
            key,
            sequence,
            open,
            operation,
            timeout_ms,
        } => Kind::Execute(v1::Execute {
            key: Some(branch_key(key)),
            sequence,
            open,
            operation: Some(
                v1::Operation::decode(&operation[..])
                    .expect("an operation was encoded in this module"),
            ),
            timeout: Some(duration(timeout_ms)),
        }),
        Downward::Enlisted {
            correlation,
            result,
        } => {
            let (key, refusal) = match result {
                Ok(key) => (Some(branch_key(key)), String::new()),
                Err(refusal) => (None, refusal),
            };
            Kind::EnlistResult(v1::EnlistResult {
                correlation,
                key,
                refusal,
            })
        }
        Downward::RunStep {
            key,
            step,
            operation,
            values,
            compensates,
            keep_result,
            locks,
            token,
            timeout_ms,
            attempt,
            age_ms,
            traceparent,
        } => Kind::RunStep(v1::RunStep {
            key: Some(branch_key(key)),
            step,
            operation: Some(saga::operation(&operation, values)),
            compensates: compensates.map(saga::compensates),
            keep_result,
            fences: saga::fences(&locks, token),
            timeout: Some(duration(timeout_ms)),
            attempt,
            age: Some(duration(age_ms)),
            traceparent,
        }),
        Downward::SettleStep {
            key,
            attempt,
            age_ms,
        } => Kind::SettleStep(saga::settle_step(key, attempt, age_ms)),
        Downward::ListInDoubt => Kind::ListInDoubt(v1::ListInDoubt {}),
        Downward::Prove { key } => Kind::Prove(v1::Prove {
            key: Some(branch_key(key)),
        }),
    };
    v1::CoordinatorMessage { kind: Some(kind) }
}

fn operations(work: &Payload, values: Vec<Bound>) -> Vec<v1::Operation> {
    let mut operations = v1::BranchRequest::decode(&work[..])
        .expect("work was encoded in this module")
        .operations;
    reference::substitute(&mut operations, values);
    operations
}

fn branch_key(key: BranchKey) -> v1::BranchKey {
    v1::BranchKey {
        transaction_id: key.transaction.to_string(),
        branch: key.branch,
    }
}

fn duration(ms: u64) -> prost_types::Duration {
    prost_types::Duration {
        seconds: (ms / 1_000) as i64,
        nanos: (ms % 1_000 * 1_000_000) as i32,
    }
}

// ---- up

/// A message from a participant, which is `sender`.
pub(crate) fn upward(
    sender: &ParticipantName,
    message: v1::ParticipantMessage,
) -> Result<Upward, Mistake> {
    use participant_message::Kind;
    match message.kind {
        Some(Kind::Hello(_)) => Err(Mistake::fatal("hello", "comes first, and once")),
        Some(Kind::Vote(message)) => {
            let key = key_of(message.key.as_ref())
                .map_err(|problem| Mistake::fatal("vote.key", problem))?;
            Ok(Upward::Vote {
                key,
                vote: vote(sender, message)?,
            })
        }
        Some(Kind::Completion(message)) => {
            let completion = completion(message.kind(), message.message)
                .ok_or_else(|| unknown_kind("completion.kind"))?;
            Ok(Upward::Completion {
                key: stray(message.key, "completion")?,
                completion,
            })
        }
        Some(Kind::ExecuteResult(message)) => execute_result(sender, message),
        Some(Kind::Enlist(message)) => Ok(Upward::Enlist {
            correlation: message.correlation,
            transaction: message.transaction_id.parse().ok(),
        }),
        Some(Kind::InDoubtReport(message)) => Ok(Upward::InDoubt(found(message.branches))),
        Some(Kind::StepResult(message)) => saga::step_result(sender, message),
        Some(Kind::Proof(message)) => {
            let completion = completion(message.kind(), message.message)
                .filter(|completion| !matches!(completion, Completion::Lost(_)))
                .ok_or_else(|| unknown_kind("proof.kind"))?;
            Ok(Upward::Proof {
                key: stray(message.key, "proof")?,
                completion,
            })
        }
        None => Err(Mistake::Stray(
            "a message of a kind that this release does not know".into(),
        )),
    }
}

fn vote(sender: &ParticipantName, message: v1::Vote) -> Result<Vote, Mistake> {
    Ok(match message.kind() {
        v1::VoteKind::Unspecified => return Err(unknown_kind("vote.kind")),
        v1::VoteKind::Yes if message.proof.len() > PROOF_BYTES => {
            return Err(Mistake::fatal(
                "vote.proof",
                format!("is longer than {PROOF_BYTES} bytes"),
            ));
        }
        v1::VoteKind::Yes => Vote::Yes {
            proof: message.proof,
        },
        v1::VoteKind::ReadOnly => Vote::ReadOnly,
        v1::VoteKind::Committed => Vote::Committed,
        v1::VoteKind::No if !message.duplicate_of.is_empty() => {
            Vote::Duplicate(message.duplicate_of.parse().map_err(
                |e: unanimity_engine::MalformedId| {
                    Mistake::fatal("vote.duplicate_of", e.to_string())
                },
            )?)
        }
        v1::VoteKind::No => Vote::No(reason(
            sender,
            "vote.reason",
            message.reason.unwrap_or_default(),
        )?),
    })
}

fn execute_result(sender: &ParticipantName, message: v1::ExecuteResult) -> Result<Upward, Mistake> {
    let key = stray(message.key, "execute_result")?;
    let result = match (message.reason, message.result) {
        (Some(why), _) => Err(reason(sender, "execute_result.reason", why)?),
        (None, Some(result)) => Ok(Arc::from(result.encode_to_vec())),
        (None, None) => {
            return Err(Mistake::fatal(
                "execute_result",
                "carries neither a result nor a reason",
            ));
        }
    };
    Ok(Upward::Executed {
        key,
        sequence: message.sequence,
        result,
    })
}

fn completion(kind: v1::CompletionKind, message: String) -> Option<Completion> {
    Some(match kind {
        v1::CompletionKind::Unspecified => return None,
        v1::CompletionKind::Committed => Completion::Committed,
        v1::CompletionKind::Aborted => Completion::Aborted,
        v1::CompletionKind::Lost => Completion::Lost(cut(message)),
        v1::CompletionKind::Retry => Completion::Retry(cut(message)),
    })
}

/// The session says who the sender is, so the name within is not believed.
fn reason(
    sender: &ParticipantName,
    field: &str,
    reason: v1::AbortReason,
) -> Result<AbortReason, Mistake> {
    let code = match reason.code() {
        v1::AbortCode::Unspecified => return Err(unknown_kind(&format!("{field}.code"))),
        v1::AbortCode::Refused => AbortCode::Refused,
        v1::AbortCode::Client => AbortCode::Client,
        v1::AbortCode::Timeout => AbortCode::Timeout,
        v1::AbortCode::ParticipantUnavailable => AbortCode::ParticipantUnavailable,
        v1::AbortCode::Conflict => AbortCode::Conflict,
        v1::AbortCode::BranchLost => AbortCode::BranchLost,
        v1::AbortCode::InvalidOperation => AbortCode::InvalidOperation,
        v1::AbortCode::ParticipantFailure => AbortCode::ParticipantFailure,
        v1::AbortCode::CoordinatorRestart => AbortCode::CoordinatorRestart,
    };
    Ok(AbortReason {
        code,
        participant: sender.as_str().into(),
        message: cut(reason.message),
    })
}

/// Prepared branches. A key that is not of our form makes a branch foreign, which is never touched.
pub(crate) fn found(branches: Vec<v1::InDoubtBranch>) -> Vec<Found> {
    branches
        .into_iter()
        .map(|branch| Found {
            key: key_of(branch.key.as_ref()).ok(),
            identifier: cut(branch.identifier),
        })
        .collect()
}

/// How far a participant has seen logs go.
pub(crate) fn log_positions(seen: &[v1::LogPosition]) -> Result<Vec<LogPosition>, Refused> {
    if seen.len() > SEEN_LOGS {
        let problem = format!("must be at most {SEEN_LOGS}");
        return Err(Refused::invalid("hello.seen_logs", problem));
    }
    let position = |seen: &v1::LogPosition| {
        Ok(LogPosition {
            log: seen.log_id.parse().map_err(|_| {
                let problem = format!("{:?} is not 8 lower-case hex digits", seen.log_id);
                Refused::invalid("hello.seen_logs.log_id", problem)
            })?,
            epoch: Epoch(seen.epoch),
            seq: Seq(seen.sequence),
            instance: seen.instance,
        })
    };
    seen.iter().map(position).collect()
}

fn stray(key: Option<v1::BranchKey>, what: &str) -> Result<BranchKey, Mistake> {
    key_of(key.as_ref()).map_err(|problem| Mistake::Stray(format!("{what}: {problem}")))
}

fn key_of(key: Option<&v1::BranchKey>) -> Result<BranchKey, String> {
    let key = key.ok_or("the branch's key is missing")?;
    if key.branch == 0 {
        return Err("branches are numbered from 1".into());
    }
    let transaction: TransactionId = key
        .transaction_id
        .parse()
        .map_err(|e: unanimity_engine::MalformedId| format!("{:?}: {e}", key.transaction_id))?;
    Ok(BranchKey {
        transaction,
        branch: key.branch,
    })
}

/// prost reads an unknown number as `Unspecified`, and both are refused alike.
fn unknown_kind(field: &str) -> Mistake {
    Mistake::fatal(field, "is unset, or a value that is not legal here")
}

fn cut(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(TEXT_BYTES));
    text
}

// ---- views

/// A transaction as clients see it.
pub(crate) fn transaction(view: &TransactionView, now: Now) -> v1::Transaction {
    v1::Transaction {
        transaction_id: view.id.to_string(),
        request_id: view.request_id.clone(),
        state: transaction_state(view.state).into(),
        branches: view.branches.iter().map(branch).collect(),
        abort_reason: view.abort_reason.as_ref().map(abort_reason),
        start_time: Some(timestamp(view.id.unix_ms())),
        saga: view.saga.as_ref().map(|view| saga::saga(view, now)),
    }
}

fn branch(view: &BranchView) -> v1::Branch {
    v1::Branch {
        number: view.number,
        participant: view.participant.as_str().into(),
        state: branch_state(view.state).into(),
        delivery_attempts: view.attempts,
        last_error: view.last_error.clone(),
        resolution_reason: view.resolution.clone(),
    }
}

fn abort_reason(reason: &AbortReason) -> v1::AbortReason {
    v1::AbortReason {
        code: abort_code(reason.code).into(),
        participant: reason.participant.clone(),
        message: reason.message.clone(),
    }
}

fn timestamp(unix_ms: u64) -> Timestamp {
    Timestamp {
        seconds: (unix_ms / 1_000) as i64,
        nanos: (unix_ms % 1_000 * 1_000_000) as i32,
    }
}

/// The wire's name of a reason's kind.
pub(crate) fn abort_code(code: AbortCode) -> v1::AbortCode {
    match code {
        AbortCode::Refused => v1::AbortCode::Refused,
        AbortCode::Client => v1::AbortCode::Client,
        AbortCode::Timeout => v1::AbortCode::Timeout,
        AbortCode::ParticipantUnavailable => v1::AbortCode::ParticipantUnavailable,
        AbortCode::Conflict => v1::AbortCode::Conflict,
        AbortCode::BranchLost => v1::AbortCode::BranchLost,
        AbortCode::InvalidOperation => v1::AbortCode::InvalidOperation,
        AbortCode::ParticipantFailure => v1::AbortCode::ParticipantFailure,
        AbortCode::CoordinatorRestart => v1::AbortCode::CoordinatorRestart,
    }
}

fn transaction_state(state: TransactionState) -> v1::TransactionState {
    match state {
        TransactionState::Active => v1::TransactionState::Active,
        TransactionState::Waiting => v1::TransactionState::Waiting,
        TransactionState::Preparing => v1::TransactionState::Preparing,
        TransactionState::Committing => v1::TransactionState::Committing,
        TransactionState::Aborting => v1::TransactionState::Aborting,
        TransactionState::Committed => v1::TransactionState::Committed,
        TransactionState::Aborted => v1::TransactionState::Aborted,
        TransactionState::Heuristic => v1::TransactionState::Heuristic,
        TransactionState::Running => v1::TransactionState::Running,
        TransactionState::Compensating => v1::TransactionState::Compensating,
        TransactionState::Compensated => v1::TransactionState::Compensated,
    }
}

/// A state that a filter names; `None` for unset and unknown ones.
pub(crate) fn state_filter(state: i32) -> Option<TransactionState> {
    Some(match v1::TransactionState::try_from(state).ok()? {
        v1::TransactionState::Unspecified => return None,
        v1::TransactionState::Active => TransactionState::Active,
        v1::TransactionState::Waiting => TransactionState::Waiting,
        v1::TransactionState::Preparing => TransactionState::Preparing,
        v1::TransactionState::Committing => TransactionState::Committing,
        v1::TransactionState::Aborting => TransactionState::Aborting,
        v1::TransactionState::Committed => TransactionState::Committed,
        v1::TransactionState::Aborted => TransactionState::Aborted,
        v1::TransactionState::Heuristic => TransactionState::Heuristic,
        v1::TransactionState::Running => TransactionState::Running,
        v1::TransactionState::Compensating => TransactionState::Compensating,
        v1::TransactionState::Compensated => TransactionState::Compensated,
    })
}

fn branch_state(state: BranchState) -> v1::BranchState {
    match state {
        BranchState::Waiting => v1::BranchState::Waiting,
        BranchState::Active => v1::BranchState::Active,
        BranchState::Prepared => v1::BranchState::Prepared,
        BranchState::ReadOnly => v1::BranchState::ReadOnly,
        BranchState::Committed => v1::BranchState::Committed,
        BranchState::Aborted => v1::BranchState::Aborted,
        BranchState::HeuristicCommitted => v1::BranchState::HeuristicCommitted,
        BranchState::HeuristicAborted => v1::BranchState::HeuristicAborted,
        BranchState::Lost => v1::BranchState::Lost,
    }
}

/// A participant as operators see it.
pub(crate) fn participant(view: &ParticipantView) -> v1::Participant {
    v1::Participant {
        name: view.name.as_str().into(),
        used_slots: view.sessions.iter().map(|session| session.used).sum(),
        capacity: view
            .sessions
            .iter()
            .fold(0, |sum: u32, session| sum.saturating_add(session.capacity)),
        sessions: view.sessions.iter().map(session).collect(),
        waiting_transactions: view.waiting,
    }
}

fn session(view: &SessionView) -> v1::ParticipantSession {
    v1::ParticipantSession {
        agent: view.agent.clone(),
        resource: view.resource.clone(),
        used_slots: view.used,
        capacity: view.capacity,
    }
}

/// A prepared branch as operators see it.
pub(crate) fn in_doubt(view: &InDoubtView) -> v1::InDoubt {
    v1::InDoubt {
        identifier: view.identifier.clone(),
        participant: view.participant.as_str().into(),
        kind: in_doubt_kind(view.kind).into(),
        delivery_attempts: view.attempts,
        last_error: view.last_error.clone(),
    }
}

fn in_doubt_kind(kind: InDoubtKind) -> v1::InDoubtKind {
    match kind {
        InDoubtKind::Undecided => v1::InDoubtKind::Undecided,
        InDoubtKind::Committing => v1::InDoubtKind::Committing,
        InDoubtKind::Aborting => v1::InDoubtKind::Aborting,
        InDoubtKind::Foreign => v1::InDoubtKind::Foreign,
        InDoubtKind::NewerEpoch => v1::InDoubtKind::NewerEpoch,
    }
}

/// What an operator says of a branch; `None` for unset and unknown.
pub(crate) fn resolution(resolution: i32) -> Option<Resolution> {
    match v1::Resolution::try_from(resolution).ok()? {
        v1::Resolution::Unspecified => None,
        v1::Resolution::Committed => Some(Resolution::Committed),
        v1::Resolution::Aborted => Some(Resolution::Aborted),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use unanimity_engine::{Epoch, LogId};

    const ID: TransactionId = TransactionId {
        log: LogId(0xab),
        epoch: Epoch(3),
        unique: 77,
    };

    fn sender() -> ParticipantName {
        ParticipantName::parse("accounts").expect("a name")
    }

    fn key() -> Option<v1::BranchKey> {
        Some(v1::BranchKey {
            transaction_id: ID.to_string(),
            branch: 1,
        })
    }

    fn up(kind: participant_message::Kind) -> Result<Upward, Mistake> {
        upward(&sender(), v1::ParticipantMessage { kind: Some(kind) })
    }

    #[test]
    fn work_reads_back_as_it_was_given() {
        let given = vec![v1::Operation {
            statement: Some(v1::operation::Statement::Name("debit".into())),
            ..v1::Operation::default()
        }];
        assert_eq!(operations(&work(given.clone()), Vec::new()), given);
        assert_eq!(
            v1::Operation::decode(&operation(&given[0])[..]),
            Ok(given[0].clone())
        );
    }

    #[test]
    fn a_batch_is_split_before_it_is_too_large_for_a_message() {
        let statement = Some(v1::operation::Statement::Sql("x".repeat(900_000)));
        let work = work(vec![v1::Operation {
            statement,
            ..v1::Operation::default()
        }]);
        let prepare = |branch| Downward::Prepare {
            key: BranchKey {
                transaction: ID,
                branch,
            },
            continued: false,
            work: Some(work.clone()),
            values: Vec::new(),
            one_phase: false,
            request_id: String::new(),
            timeout_ms: 1,
            traceparent: String::new(),
        };
        let batches = batches(Batch {
            messages: (1..=5).map(prepare).collect(),
            durable: Seq(9),
        });
        let sizes: Vec<_> = batches
            .iter()
            .map(|batch| (batch.messages.len(), batch.durable_sequence))
            .collect();
        assert_eq!(sizes, [(2, 9), (2, 9), (1, 9)]);
    }

    #[test]
    fn a_no_names_the_participant_of_the_session_whatever_it_says() {
        let vote = v1::Vote {
            key: key(),
            kind: v1::VoteKind::No.into(),
            reason: Some(v1::AbortReason {
                code: v1::AbortCode::Refused.into(),
                participant: "somebody".into(),
                message: "no".into(),
            }),
            ..v1::Vote::default()
        };
        let Ok(Upward::Vote {
            vote: Vote::No(reason),
            ..
        }) = up(participant_message::Kind::Vote(vote))
        else {
            panic!("not a no")
        };
        assert_eq!(reason.participant, "accounts");
    }

    #[test]
    fn what_is_unset_or_unknown_is_never_taken_for_an_answer() {
        use participant_message::Kind;
        let fatal = [
            Kind::Hello(v1::Hello::default()),
            Kind::Vote(v1::Vote {
                key: key(),
                ..v1::Vote::default()
            }),
            Kind::Vote(v1::Vote {
                key: key(),
                kind: 99,
                ..v1::Vote::default()
            }),
            Kind::Vote(v1::Vote {
                kind: v1::VoteKind::Yes.into(),
                ..v1::Vote::default()
            }),
            Kind::Vote(v1::Vote {
                key: key(),
                kind: v1::VoteKind::No.into(),
                ..v1::Vote::default()
            }),
            Kind::Vote(v1::Vote {
                key: key(),
                kind: v1::VoteKind::Yes.into(),
                proof: "x".repeat(65),
                ..v1::Vote::default()
            }),
            Kind::Completion(v1::Completion {
                key: key(),
                ..v1::Completion::default()
            }),
            Kind::Proof(v1::Proof {
                key: key(),
                kind: v1::CompletionKind::Lost.into(),
                ..v1::Proof::default()
            }),
            Kind::ExecuteResult(v1::ExecuteResult {
                key: key(),
                ..v1::ExecuteResult::default()
            }),
        ];
        for kind in fatal {
            let shown = format!("{kind:?}");
            assert!(matches!(up(kind), Err(Mistake::Fatal(_))), "{shown}");
        }
    }

    #[test]
    fn a_completion_of_an_unnameable_branch_is_ignored() {
        let completion = v1::Completion {
            key: None,
            kind: v1::CompletionKind::Committed.into(),
            message: String::new(),
        };
        assert!(matches!(
            up(participant_message::Kind::Completion(completion)),
            Err(Mistake::Stray(_))
        ));
    }

    #[test]
    fn a_branch_of_another_form_is_found_without_a_key() {
        let theirs = v1::InDoubtBranch {
            identifier: "legacy".into(),
            key: Some(v1::BranchKey {
                transaction_id: "legacy".into(),
                branch: 1,
            }),
        };
        assert_eq!(
            found(vec![theirs]),
            [Found {
                identifier: "legacy".into(),
                key: None
            }]
        );
    }

    #[test]
    fn times_are_told_in_seconds_and_nanoseconds() {
        assert_eq!(
            duration(1_500),
            prost_types::Duration {
                seconds: 1,
                nanos: 500_000_000
            }
        );
        let minted = TransactionId {
            unique: 1_700_000_000_250u128 << 80,
            ..ID
        };
        assert_eq!(
            timestamp(minted.unix_ms()),
            Timestamp {
                seconds: 1_700_000_000,
                nanos: 250_000_000
            }
        );
    }
}
