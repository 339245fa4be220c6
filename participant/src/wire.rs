//! The edge between `unanimity.v1` and this crate's own types: the one place where messages are parsed and written.
//!
//! What comes in is checked here and trusted inside: above all a branch's id, which database code splices into statements that take no
//! parameters. This module never panics on what a peer sent, and never turns "unset" into an answer that says more than the participant did.

use std::time::Duration;

use unanimity_proto::v1::{self, coordinator_message, participant_message::Kind};

use crate::participant::{
    BranchId, Compensated, Fence, InDoubt, Prepare, Refusal, STEP_RESULT_BYTES, Settled, Step,
    StepOutcome, Vote,
};

/// The longest id of a transaction, in bytes: what MySQL takes as gtrid.
const TRANSACTION_ID_BYTES: usize = 64;

/// How long an operation may take where the coordinator gave no time.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// Texts for people are cut here, so that a database's chatter can't break the session by its size.
const TEXT_BYTES: usize = 4096;

/// A message from the coordinator, checked.
#[derive(Debug)]
pub(crate) enum Incoming {
    /// Greets; must be first.
    Welcome(Welcome),
    /// Work on one branch; such messages must not overtake one another.
    Branch(BranchId, Work),
    /// Answers an enlist.
    EnlistResult {
        /// Which enlist.
        correlation: u64,
        /// The branch, or why not.
        result: Result<BranchId, String>,
    },
    /// Asks for every prepared branch.
    ListInDoubt,
}

/// The coordinator's greeting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Welcome {
    /// The log's identity.
    pub(crate) log_id: String,
    /// The coordinator's incarnation.
    pub(crate) epoch: u64,
    /// The random number of its start.
    pub(crate) instance: u64,
}

/// What is to be done with a branch.
#[derive(Clone, Debug)]
pub(crate) enum Work {
    /// Run and vote.
    Prepare(Prepare),
    /// The decision.
    Commit {
        /// From the vote.
        proof: String,
    },
    /// The decision.
    Abort {
        /// From the vote.
        proof: String,
    },
    /// One operation in an open branch.
    Execute {
        /// Echoed.
        sequence: u64,
        /// Open the branch first.
        open: bool,
        /// What to run; boxed because it is large and the rest is small.
        operation: Box<v1::Operation>,
        /// Give up after this long.
        timeout: Duration,
    },
    /// Settle a one-phase branch.
    Prove,
    /// Do a saga's step, or undo one; boxed because it is large.
    RunStep(Box<RunStep>),
    /// Tell whether a saga's step took effect.
    SettleStep {
        /// At most this long ago it was sent for the first time.
        age: Duration,
        /// Echoed.
        attempt: u32,
    },
    /// Roll back what is open still, for its session is lost. No coordinator says so, and nobody is answered.
    Abandon,
}

impl Work {
    /// Counts the time for which it has waited behind other work: the age in it was told when it was sent.
    pub(crate) fn has_waited(&mut self, time: Duration) {
        match self {
            Self::RunStep(run) => run.step.age = run.step.age.saturating_add(time),
            Self::SettleStep { age, .. } => *age = age.saturating_add(time),
            Self::Prepare(_)
            | Self::Commit { .. }
            | Self::Abort { .. }
            | Self::Execute { .. }
            | Self::Prove
            | Self::Abandon => {}
        }
    }
}

/// A saga's step to do, or to undo.
#[derive(Clone, Debug)]
pub(crate) struct RunStep {
    /// What to run.
    pub(crate) step: Step,
    /// Set where it is a compensation: what it undoes.
    pub(crate) compensated: Option<Compensated>,
}

/// A message that can't be acted on.
#[derive(Debug, thiserror::Error)]
#[error("{problem}")]
pub(crate) struct Malformed {
    /// What is wrong with it.
    problem: String,
    /// What to answer, where saying no is the truth. A decision about a branch that can't be named gets no answer.
    pub(crate) answer: Option<Box<v1::ParticipantMessage>>,
}

/// Whether `text` can be the id of a transaction: `[0-9a-z.]`, 1 to 64 bytes.
pub(crate) fn is_transaction_id(text: &str) -> bool {
    let bytes = text.as_bytes();
    (1..=TRANSACTION_ID_BYTES).contains(&bytes.len())
        && bytes
            .iter()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'z' | b'.'))
}

/// Checks a message from the coordinator.
pub(crate) fn parse(message: v1::CoordinatorMessage) -> Result<Incoming, Malformed> {
    use coordinator_message::Kind;
    match message.kind {
        Some(Kind::Welcome(welcome)) => Ok(Incoming::Welcome(Welcome {
            log_id: welcome.log_id,
            epoch: welcome.epoch,
            instance: welcome.instance,
        })),
        Some(Kind::Prepare(message)) => prepare(message),
        Some(Kind::Commit(message)) => on_branch(
            message.key,
            Work::Commit {
                proof: message.proof,
            },
        ),
        Some(Kind::Abort(message)) => on_branch(
            message.key,
            Work::Abort {
                proof: message.proof,
            },
        ),
        Some(Kind::Prove(message)) => on_branch(message.key, Work::Prove),
        Some(Kind::Execute(message)) => execute(message),
        Some(Kind::RunStep(message)) => run_step(message),
        Some(Kind::SettleStep(message)) => on_branch(
            message.key,
            Work::SettleStep {
                age: age(message.age),
                attempt: message.attempt,
            },
        ),
        Some(Kind::EnlistResult(message)) => Ok(enlist_result(message)),
        Some(Kind::ListInDoubt(_)) => Ok(Incoming::ListInDoubt),
        None => Err(Malformed {
            problem: "the coordinator sent a kind of message that this version doesn't know".into(),
            answer: None,
        }),
    }
}

/// Reads a branch's key.
fn branch_id(key: Option<&v1::BranchKey>) -> Result<BranchId, String> {
    let key = key.ok_or("the coordinator sent a message that names no branch")?;
    if !is_transaction_id(&key.transaction_id) || key.branch == 0 {
        return Err(format!(
            "the coordinator sent a malformed branch id: {:?}, branch {}",
            key.transaction_id, key.branch
        ));
    }
    Ok(BranchId {
        transaction: key.transaction_id.clone(),
        number: key.branch,
    })
}

fn on_branch(key: Option<v1::BranchKey>, work: Work) -> Result<Incoming, Malformed> {
    let branch = branch_id(key.as_ref()).map_err(|problem| Malformed {
        problem,
        answer: None,
    })?;
    Ok(Incoming::Branch(branch, work))
}

fn prepare(message: v1::Prepare) -> Result<Incoming, Malformed> {
    let branch = match branch_id(message.key.as_ref()) {
        Ok(branch) => branch,
        Err(problem) => {
            let answer = Some(Box::new(vote(message.key, Vote::No(malformed(&problem)))));
            return Err(Malformed { problem, answer });
        }
    };
    let prepare = Prepare {
        branch: branch.clone(),
        continued: message.continued,
        operations: message.operations,
        one_phase: message.one_phase,
        request_id: message.request_id,
        timeout: timeout(message.timeout),
        traceparent: message.traceparent,
    };
    Ok(Incoming::Branch(branch, Work::Prepare(prepare)))
}

fn execute(message: v1::Execute) -> Result<Incoming, Malformed> {
    let branch = match branch_id(message.key.as_ref()) {
        Ok(branch) => branch,
        Err(problem) => {
            let answer = Some(Box::new(execute_result(
                message.key,
                message.sequence,
                Err(malformed(&problem)),
            )));
            return Err(Malformed { problem, answer });
        }
    };
    let work = Work::Execute {
        sequence: message.sequence,
        open: message.open,
        // An operation without a statement is the participant's to refuse.
        operation: Box::new(message.operation.unwrap_or_default()),
        timeout: timeout(message.timeout),
    };
    Ok(Incoming::Branch(branch, work))
}

/// Nothing can be known under a malformed key, so nothing took effect: a refusal is the truth.
fn run_step(message: v1::RunStep) -> Result<Incoming, Malformed> {
    let (key, attempt) = (message.key.clone(), message.attempt);
    let parsed = branch_id(key.as_ref()).and_then(|branch| {
        let compensated = message
            .compensates
            .map(|undone| compensated(&branch, undone))
            .transpose()?;
        Ok((branch, compensated))
    });
    let (branch, compensated) = match parsed {
        Ok(parsed) => parsed,
        Err(problem) => {
            let outcome = StepOutcome::Refused(malformed(&problem));
            let answer = Some(Box::new(step_result(key, attempt, outcome)));
            return Err(Malformed { problem, answer });
        }
    };
    let step = Step {
        branch: branch.clone(),
        name: message.step,
        // An operation without a statement is the participant's to refuse.
        operation: message.operation.unwrap_or_default(),
        keep_result: message.keep_result,
        fences: message.fences.into_iter().map(fence).collect(),
        timeout: timeout(message.timeout),
        attempt,
        age: age(message.age),
        traceparent: message.traceparent,
    };
    let work = Work::RunStep(Box::new(RunStep { step, compensated }));
    Ok(Incoming::Branch(branch, work))
}

fn compensated(branch: &BranchId, undone: v1::Compensates) -> Result<Compensated, String> {
    if undone.branch == 0 || undone.branch == branch.number {
        return Err(format!(
            "the coordinator sent compensation {branch} for a step that can't be, branch {}",
            undone.branch
        ));
    }
    Ok(Compensated {
        branch: BranchId {
            transaction: branch.transaction.clone(),
            number: undone.branch,
        },
        unsettled: undone.unsettled,
        result: undone.result,
    })
}

fn fence(fence: v1::Fence) -> Fence {
    Fence {
        key: fence.key,
        token: fence.token,
    }
}

/// An age that can't be read is that of a request which may have come at any time before.
fn age(duration: Option<prost_types::Duration>) -> Duration {
    duration.map_or(Duration::ZERO, |duration| {
        duration.try_into().unwrap_or(Duration::MAX)
    })
}

fn enlist_result(message: v1::EnlistResult) -> Incoming {
    let result = match message.key {
        None if message.refusal.is_empty() => {
            Err("the coordinator refused and gave no reason".into())
        }
        None => Err(message.refusal),
        Some(key) => branch_id(Some(&key)),
    };
    Incoming::EnlistResult {
        correlation: message.correlation,
        result,
    }
}

fn malformed(problem: &str) -> Refusal {
    Refusal {
        code: v1::AbortCode::InvalidOperation,
        message: problem.into(),
    }
}

fn timeout(duration: Option<prost_types::Duration>) -> Duration {
    duration
        .and_then(|duration| duration.try_into().ok())
        .unwrap_or(DEFAULT_TIMEOUT)
}

/// The key of a branch.
pub(crate) fn key(branch: &BranchId) -> v1::BranchKey {
    v1::BranchKey {
        transaction_id: branch.transaction.clone(),
        branch: branch.number,
    }
}

/// Answers a prepare.
pub(crate) fn vote(key: Option<v1::BranchKey>, vote: Vote) -> v1::ParticipantMessage {
    let mut message = v1::Vote {
        key,
        ..v1::Vote::default()
    };
    let kind = match vote {
        Vote::Yes { proof } => {
            message.proof = proof;
            v1::VoteKind::Yes
        }
        Vote::ReadOnly => v1::VoteKind::ReadOnly,
        Vote::Committed => v1::VoteKind::Committed,
        Vote::No(refusal) => {
            message.reason = Some(reason(refusal));
            v1::VoteKind::No
        }
        Vote::Duplicate { transaction } => {
            message.reason = Some(reason(Refusal {
                code: v1::AbortCode::Refused,
                message: format!("the request id has committed before, as {transaction}"),
            }));
            message.duplicate_of = transaction;
            v1::VoteKind::No
        }
    };
    message.set_kind(kind);
    up(Kind::Vote(message))
}

/// Answers a commit or an abort.
pub(crate) fn completion(branch: &BranchId, settled: Settled) -> v1::ParticipantMessage {
    let (kind, message) = completion_kind(settled);
    up(Kind::Completion(v1::Completion {
        key: Some(key(branch)),
        kind: kind.into(),
        message,
    }))
}

/// Answers a prove. "Lost" is no proof: the coordinator is to ask again.
pub(crate) fn proof(branch: &BranchId, settled: Settled) -> v1::ParticipantMessage {
    let (kind, message) = match completion_kind(settled) {
        (v1::CompletionKind::Lost, message) => (v1::CompletionKind::Retry, message),
        other => other,
    };
    up(Kind::Proof(v1::Proof {
        key: Some(key(branch)),
        kind: kind.into(),
        message,
    }))
}

/// Answers an execute.
pub(crate) fn execute_result(
    key: Option<v1::BranchKey>,
    sequence: u64,
    result: Result<v1::OperationResult, Refusal>,
) -> v1::ParticipantMessage {
    let (result, reason) = match result {
        Ok(result) => (Some(result), None),
        Err(refusal) => (None, Some(reason(refusal))),
    };
    up(Kind::ExecuteResult(v1::ExecuteResult {
        key,
        sequence,
        result,
        reason,
    }))
}

/// Answers a run-step or a settle-step.
pub(crate) fn step_result(
    key: Option<v1::BranchKey>,
    attempt: u32,
    outcome: StepOutcome,
) -> v1::ParticipantMessage {
    let mut message = v1::StepResult {
        key,
        attempt,
        ..v1::StepResult::default()
    };
    let (kind, refusal) = match carried(outcome) {
        StepOutcome::Done { result } => {
            message.result = result;
            (v1::StepResultKind::Done, None)
        }
        StepOutcome::Refused(refusal) => (v1::StepResultKind::Refused, Some(refusal)),
        StepOutcome::Failed(refusal) => (v1::StepResultKind::Failed, Some(refusal)),
        StepOutcome::Unknown(problem) => (v1::StepResultKind::Unknown, Some(failed(problem))),
        StepOutcome::Working(at_work) => (v1::StepResultKind::Working, Some(failed(at_work))),
        StepOutcome::Never => (v1::StepResultKind::Never, None),
    };
    message.reason = refusal.map(reason);
    message.set_kind(kind);
    up(Kind::StepResult(message))
}

/// A result that can't be sent is the service's defect. The effect is there all the same, so "refused" would be a lie, and "done" without the result
/// would let the saga go on with a value that nobody has: unknown, until the service tells it properly.
fn carried(outcome: StepOutcome) -> StepOutcome {
    let StepOutcome::Done { result } = &outcome else {
        return outcome;
    };
    let bytes = result.len();
    let problem = if bytes > STEP_RESULT_BYTES {
        format!("{bytes} bytes, more than the {STEP_RESULT_BYTES} that can be sent")
    } else if !result.is_empty() && serde_json::from_str::<serde_json::Value>(result).is_err() {
        "a form that is no JSON".to_owned()
    } else {
        return outcome;
    };
    StepOutcome::Unknown(format!(
        "the participant says that it took effect, but its result has {problem}: the participant's code must be corrected"
    ))
}

fn failed(message: String) -> Refusal {
    Refusal {
        code: v1::AbortCode::ParticipantFailure,
        message,
    }
}

/// Asks to join a transaction.
pub(crate) fn enlist(correlation: u64, transaction: &str) -> v1::ParticipantMessage {
    up(Kind::Enlist(v1::Enlist {
        correlation,
        transaction_id: transaction.into(),
    }))
}

/// Answers a list-in-doubt.
pub(crate) fn in_doubt_report(branches: Vec<InDoubt>) -> v1::ParticipantMessage {
    up(Kind::InDoubtReport(v1::InDoubtReport {
        branches: in_doubt(branches),
    }))
}

/// The first message of a session.
pub(crate) fn hello(hello: v1::Hello) -> v1::ParticipantMessage {
    up(Kind::Hello(hello))
}

/// Prepared branches, for a hello or a report.
pub(crate) fn in_doubt(branches: Vec<InDoubt>) -> Vec<v1::InDoubtBranch> {
    branches
        .into_iter()
        .map(|found| v1::InDoubtBranch {
            identifier: found.identifier,
            key: found.branch.as_ref().map(key),
        })
        .collect()
}

fn up(kind: Kind) -> v1::ParticipantMessage {
    v1::ParticipantMessage { kind: Some(kind) }
}

/// The coordinator knows which participant a session belongs to, and fills in the name.
fn reason(refusal: Refusal) -> v1::AbortReason {
    v1::AbortReason {
        code: refusal.code.into(),
        participant: String::new(),
        message: shorten(refusal.message),
    }
}

fn completion_kind(settled: Settled) -> (v1::CompletionKind, String) {
    match settled {
        Settled::Committed => (v1::CompletionKind::Committed, String::new()),
        Settled::Aborted => (v1::CompletionKind::Aborted, String::new()),
        Settled::Lost(message) => (v1::CompletionKind::Lost, shorten(message)),
        Settled::Retry(message) => (v1::CompletionKind::Retry, shorten(message)),
    }
}

fn shorten(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(TEXT_BYTES));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prepare_of(transaction: &str, branch: u32) -> v1::CoordinatorMessage {
        let key = Some(v1::BranchKey {
            transaction_id: transaction.into(),
            branch,
        });
        let prepare = v1::Prepare {
            key,
            ..v1::Prepare::default()
        };
        v1::CoordinatorMessage {
            kind: Some(coordinator_message::Kind::Prepare(prepare)),
        }
    }

    #[test]
    fn ids_outside_the_alphabet_or_the_length_are_refused_with_a_no() {
        let long = "a".repeat(TRANSACTION_ID_BYTES + 1);
        for (transaction, branch) in [
            ("", 1),
            ("U1.a", 1),
            ("u1'; drop", 1),
            ("u1.é", 1),
            (long.as_str(), 1),
            ("u1.a", 0),
        ] {
            let malformed = parse(prepare_of(transaction, branch)).expect_err(transaction);
            let Some(Kind::Vote(vote)) = malformed.answer.and_then(|answer| answer.kind) else {
                panic!("no vote for {transaction:?}")
            };
            assert_eq!(vote.kind(), v1::VoteKind::No);
            assert_eq!(
                vote.key.map(|key| key.transaction_id).as_deref(),
                Some(transaction)
            );
        }
        assert!(matches!(
            parse(prepare_of(&"a".repeat(TRANSACTION_ID_BYTES), 1)),
            Ok(Incoming::Branch(..))
        ));
    }

    #[test]
    fn a_decision_for_a_malformed_branch_gets_no_answer() {
        let commit = coordinator_message::Kind::Commit(v1::Commit::default());
        assert!(
            parse(v1::CoordinatorMessage { kind: Some(commit) })
                .expect_err("no key")
                .answer
                .is_none()
        );
        assert!(
            parse(v1::CoordinatorMessage { kind: None })
                .expect_err("no kind")
                .answer
                .is_none()
        );
    }

    fn step_of(branch: u32, compensated: Option<u32>) -> v1::CoordinatorMessage {
        let step = v1::RunStep {
            key: Some(v1::BranchKey {
                transaction_id: "u1.a".into(),
                branch,
            }),
            compensates: compensated.map(|branch| v1::Compensates {
                branch,
                ..v1::Compensates::default()
            }),
            attempt: 7,
            ..v1::RunStep::default()
        };
        v1::CoordinatorMessage {
            kind: Some(coordinator_message::Kind::RunStep(step)),
        }
    }

    #[test]
    fn a_step_that_names_no_branch_or_undoes_itself_is_refused() {
        for (branch, compensated) in [(0, None), (0, Some(1)), (3, Some(0)), (3, Some(3))] {
            let malformed = parse(step_of(branch, compensated)).expect_err("malformed");
            let Some(Kind::StepResult(result)) = malformed.answer.and_then(|answer| answer.kind)
            else {
                panic!("no result")
            };
            assert_eq!(
                (result.kind(), result.attempt),
                (v1::StepResultKind::Refused, 7)
            );
        }
        let Ok(Incoming::Branch(branch, Work::RunStep(run))) = parse(step_of(4, Some(1))) else {
            panic!("no step")
        };
        let undone = run.compensated.expect("a compensation");
        assert_eq!((branch.number, undone.branch.number), (4, 1));
    }

    #[test]
    fn an_age_that_makes_no_sense_is_not_taken_for_the_first_time() {
        assert_eq!(age(None), Duration::ZERO);
        let negative = prost_types::Duration {
            seconds: -1,
            nanos: 0,
        };
        assert_eq!(age(Some(negative)), Duration::MAX);
    }

    #[test]
    fn a_lost_branch_is_never_sent_as_a_proof() {
        let branch = BranchId {
            transaction: "u1.a".into(),
            number: 1,
        };
        let Some(Kind::Proof(proof)) = proof(&branch, Settled::Lost("gone".into())).kind else {
            panic!("not a proof")
        };
        assert_eq!(proof.kind(), v1::CompletionKind::Retry);
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(shorten("é".repeat(TEXT_BYTES)).len(), TEXT_BYTES);
        assert_eq!(
            shorten(format!("a{}", "é".repeat(TEXT_BYTES))).len(),
            TEXT_BYTES - 1
        );
    }
}
