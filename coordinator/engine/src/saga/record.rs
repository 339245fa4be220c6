//! What the log holds of sagas.
//!
//! `Begin`, `Turn` and `Resolve` are forced before they take effect; `Step` and `End` ride with what comes next, for a step whose record is lost
//! is sent again and its marker answers.

use prost::{Message, Oneof};

use crate::{
    id::{LockKey, RequestId, StepName, TransactionId},
    input::Payload,
    outcome::{AbortCode, AbortReason},
    record::{DecodeError, malformed, name, request_id},
    saga::{Argument, Binding, Kind, Place, RetryPolicy, StepDefinition, StepWork, Work},
};

/// One record.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SagaRecord {
    /// It begins: nothing was sent yet.
    Begin(SagaBegin),
    /// A step took effect, or its compensation did.
    Step {
        /// Which saga.
        transaction: TransactionId,
        /// What is done.
        step: DoneStep,
    },
    /// It turns back: no compensation was sent yet.
    Turn {
        /// Which saga.
        transaction: TransactionId,
        /// Why.
        reason: AbortReason,
        /// Positions of steps of which it is not known whether they took effect. Of all others without a record it is known that they did not.
        unsettled: Vec<u32>,
    },
    /// An operator did a step, or its compensation, by hand.
    Resolve {
        /// Which saga.
        transaction: TransactionId,
        /// What is done.
        step: DoneStep,
    },
    /// It is over.
    End {
        /// Which saga.
        transaction: TransactionId,
        /// A branch of one of its groups went against the decision.
        heuristic: bool,
    },
    /// A saga that was live, or ended and still remembered, when the checkpoint came by it.
    Checkpoint {
        /// Its beginning.
        begin: SagaBegin,
        /// Its turn, as above.
        turn: Option<(AbortReason, Vec<u32>)>,
        /// What is done.
        done: Vec<DoneStep>,
        /// It had ended.
        ended: bool,
        /// As in its end; may be known before.
        heuristic: bool,
    },
}

/// A saga's beginning: all that is needed to run it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SagaBegin {
    /// Which saga.
    pub transaction: TransactionId,
    /// The client's key.
    pub request_id: Option<RequestId>,
    /// Hash of the content.
    pub fingerprint: u64,
    /// W3C trace context, or empty.
    pub traceparent: String,
    /// Fencing token of its locks: this record's number.
    pub token: u64,
    /// When it turns back unless it is past its pivot, in milliseconds since 1970.
    pub deadline_unix_ms: u64,
    /// Its steps.
    pub steps: Vec<StepDefinition>,
    /// Its locks.
    pub locks: Vec<LockKey>,
}

/// A step, or its compensation, that is done.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DoneStep {
    /// The step's position, from 0.
    pub position: u32,
    /// The compensation rather than the action.
    pub compensation: bool,
    /// The action's result, JSON, where something refers to it.
    pub result: Option<Payload>,
    /// An operator's reason.
    pub resolution: String,
}

/// The bytes of a [`SagaRecord`].
#[derive(Clone, PartialEq, Message)]
pub(crate) struct WireSaga {
    #[prost(oneof = "WireKind", tags = "1, 2, 3, 4, 5, 6")]
    kind: Option<WireKind>,
}

#[derive(Clone, PartialEq, Oneof)]
enum WireKind {
    #[prost(message, tag = "1")]
    Begin(WireBegin),
    #[prost(message, tag = "2")]
    Step(WireStep),
    #[prost(message, tag = "3")]
    Turn(WireTurn),
    #[prost(message, tag = "4")]
    Resolve(WireStep),
    #[prost(message, tag = "5")]
    End(WireSagaEnd),
    #[prost(message, tag = "6")]
    Checkpoint(WireCheckpointSaga),
}

#[derive(Clone, PartialEq, Message)]
struct WireBegin {
    #[prost(string, tag = "1")]
    transaction: String,
    #[prost(string, tag = "2")]
    request_id: String,
    #[prost(fixed64, tag = "3")]
    fingerprint: u64,
    #[prost(string, tag = "4")]
    traceparent: String,
    #[prost(uint64, tag = "5")]
    token: u64,
    #[prost(uint64, tag = "6")]
    deadline_unix_ms: u64,
    #[prost(message, repeated, tag = "7")]
    steps: Vec<WireDefinition>,
    #[prost(string, repeated, tag = "8")]
    locks: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct WireDefinition {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(uint32, tag = "2")]
    kind: u32,
    #[prost(string, repeated, tag = "3")]
    after: Vec<String>,
    /// One of them for a step of one participant, then with `group` false.
    #[prost(message, repeated, tag = "4")]
    actions: Vec<WireWork>,
    #[prost(message, optional, tag = "5")]
    compensation: Option<WireWork>,
    #[prost(bool, tag = "6")]
    group: bool,
    #[prost(uint32, tag = "7")]
    max_attempts: u32,
    #[prost(uint64, tag = "8")]
    first_backoff_ms: u64,
    #[prost(uint64, tag = "9")]
    max_backoff_ms: u64,
    #[prost(uint64, tag = "10")]
    attempt_timeout_ms: u64,
}

#[derive(Clone, PartialEq, Message)]
struct WireWork {
    #[prost(string, tag = "1")]
    participant: String,
    #[prost(bytes = "vec", tag = "2")]
    payload: Vec<u8>,
    #[prost(message, repeated, tag = "3")]
    bindings: Vec<WireBinding>,
}

#[derive(Clone, PartialEq, Message)]
struct WireBinding {
    #[prost(uint32, tag = "1")]
    operation: u32,
    /// Empty where the value goes to a position.
    #[prost(string, tag = "2")]
    parameter: String,
    #[prost(uint32, tag = "3")]
    position: u32,
    #[prost(string, tag = "4")]
    reference: String,
}

#[derive(Clone, PartialEq, Message)]
struct WireStep {
    #[prost(string, tag = "1")]
    transaction: String,
    #[prost(message, optional, tag = "2")]
    step: Option<WireDone>,
}

#[derive(Clone, PartialEq, Message)]
struct WireDone {
    #[prost(uint32, tag = "1")]
    position: u32,
    #[prost(bool, tag = "2")]
    compensation: bool,
    #[prost(bytes = "vec", optional, tag = "3")]
    result: Option<Vec<u8>>,
    #[prost(string, tag = "4")]
    resolution: String,
}

#[derive(Clone, PartialEq, Message)]
struct WireTurn {
    #[prost(string, tag = "1")]
    transaction: String,
    #[prost(uint32, tag = "2")]
    code: u32,
    #[prost(string, tag = "3")]
    participant: String,
    #[prost(string, tag = "4")]
    message: String,
    #[prost(uint32, repeated, tag = "5")]
    unsettled: Vec<u32>,
}

#[derive(Clone, PartialEq, Message)]
struct WireSagaEnd {
    #[prost(string, tag = "1")]
    transaction: String,
    #[prost(bool, tag = "2")]
    heuristic: bool,
}

#[derive(Clone, PartialEq, Message)]
struct WireCheckpointSaga {
    #[prost(message, optional, tag = "1")]
    begin: Option<WireBegin>,
    #[prost(message, optional, tag = "2")]
    turn: Option<WireTurn>,
    #[prost(message, repeated, tag = "3")]
    done: Vec<WireDone>,
    #[prost(bool, tag = "4")]
    ended: bool,
    #[prost(bool, tag = "5")]
    heuristic: bool,
}

impl SagaRecord {
    /// Which saga it is of.
    pub fn transaction(&self) -> TransactionId {
        match self {
            SagaRecord::Begin(begin) | SagaRecord::Checkpoint { begin, .. } => begin.transaction,
            SagaRecord::Step { transaction, .. }
            | SagaRecord::Turn { transaction, .. }
            | SagaRecord::Resolve { transaction, .. }
            | SagaRecord::End { transaction, .. } => *transaction,
        }
    }

    pub(crate) fn to_wire(&self) -> WireSaga {
        let kind = match self {
            SagaRecord::Begin(begin) => WireKind::Begin(begin.into()),
            SagaRecord::Step { transaction, step } => WireKind::Step(wire_step(transaction, step)),
            SagaRecord::Turn {
                transaction,
                reason,
                unsettled,
            } => WireKind::Turn(wire_turn(transaction, reason, unsettled)),
            SagaRecord::Resolve { transaction, step } => {
                WireKind::Resolve(wire_step(transaction, step))
            }
            SagaRecord::End {
                transaction,
                heuristic,
            } => WireKind::End(WireSagaEnd {
                transaction: transaction.to_string(),
                heuristic: *heuristic,
            }),
            SagaRecord::Checkpoint {
                begin,
                turn,
                done,
                ended,
                heuristic,
            } => WireKind::Checkpoint(WireCheckpointSaga {
                begin: Some(begin.into()),
                turn: turn
                    .as_ref()
                    .map(|(reason, unsettled)| wire_turn(&begin.transaction, reason, unsettled)),
                done: done.iter().map(WireDone::from).collect(),
                ended: *ended,
                heuristic: *heuristic,
            }),
        };
        WireSaga { kind: Some(kind) }
    }

    pub(crate) fn from_wire(wire: WireSaga) -> Result<Self, DecodeError> {
        Ok(
            match wire
                .kind
                .ok_or_else(|| malformed("unknown kind of saga record"))?
            {
                WireKind::Begin(begin) => SagaRecord::Begin(begin.try_into()?),
                WireKind::Step(wire) => SagaRecord::Step {
                    transaction: wire.transaction.parse()?,
                    step: done(wire.step)?,
                },
                WireKind::Turn(turn) => SagaRecord::Turn {
                    transaction: turn.transaction.parse()?,
                    reason: reason(&turn)?,
                    unsettled: turn.unsettled,
                },
                WireKind::Resolve(wire) => SagaRecord::Resolve {
                    transaction: wire.transaction.parse()?,
                    step: done(wire.step)?,
                },
                WireKind::End(end) => SagaRecord::End {
                    transaction: end.transaction.parse()?,
                    heuristic: end.heuristic,
                },
                WireKind::Checkpoint(wire) => SagaRecord::Checkpoint {
                    begin: wire
                        .begin
                        .ok_or_else(|| malformed("saga without its beginning"))?
                        .try_into()?,
                    turn: wire
                        .turn
                        .map(|turn| Ok::<_, DecodeError>((reason(&turn)?, turn.unsettled)))
                        .transpose()?,
                    done: wire.done.into_iter().map(DoneStep::from).collect(),
                    ended: wire.ended,
                    heuristic: wire.heuristic,
                },
            },
        )
    }
}

fn wire_step(transaction: &TransactionId, step: &DoneStep) -> WireStep {
    WireStep {
        transaction: transaction.to_string(),
        step: Some(step.into()),
    }
}

fn done(step: Option<WireDone>) -> Result<DoneStep, DecodeError> {
    step.map(DoneStep::from)
        .ok_or_else(|| malformed("step without its position"))
}

impl From<&DoneStep> for WireDone {
    fn from(step: &DoneStep) -> Self {
        WireDone {
            position: step.position,
            compensation: step.compensation,
            result: step.result.as_ref().map(|result| result.to_vec()),
            resolution: step.resolution.clone(),
        }
    }
}

impl From<WireDone> for DoneStep {
    fn from(wire: WireDone) -> Self {
        DoneStep {
            position: wire.position,
            compensation: wire.compensation,
            result: wire.result.map(Payload::from),
            resolution: wire.resolution,
        }
    }
}

fn wire_turn(transaction: &TransactionId, reason: &AbortReason, unsettled: &[u32]) -> WireTurn {
    WireTurn {
        transaction: transaction.to_string(),
        code: CODES
            .iter()
            .position(|code| *code == reason.code)
            .map_or(0, |at| at as u32 + 1),
        participant: reason.participant.clone(),
        message: reason.message.clone(),
        unsettled: unsettled.to_vec(),
    }
}

fn reason(turn: &WireTurn) -> Result<AbortReason, DecodeError> {
    let code = (turn.code as usize)
        .checked_sub(1)
        .and_then(|at| CODES.get(at));
    Ok(AbortReason {
        code: *code.ok_or_else(|| malformed("unknown reason"))?,
        participant: turn.participant.clone(),
        message: turn.message.clone(),
    })
}

/// Their numbers in the log, from 1, for ever.
const CODES: [AbortCode; 9] = [
    AbortCode::Refused,
    AbortCode::Client,
    AbortCode::Timeout,
    AbortCode::ParticipantUnavailable,
    AbortCode::Conflict,
    AbortCode::BranchLost,
    AbortCode::InvalidOperation,
    AbortCode::ParticipantFailure,
    AbortCode::CoordinatorRestart,
];

/// As above.
const KINDS: [Kind; 3] = [Kind::Compensatable, Kind::Pivot, Kind::Retriable];

impl From<&SagaBegin> for WireBegin {
    fn from(begin: &SagaBegin) -> Self {
        WireBegin {
            transaction: begin.transaction.to_string(),
            request_id: begin
                .request_id
                .as_ref()
                .map(|r| r.as_str().to_owned())
                .unwrap_or_default(),
            fingerprint: begin.fingerprint,
            traceparent: begin.traceparent.clone(),
            token: begin.token,
            deadline_unix_ms: begin.deadline_unix_ms,
            steps: begin.steps.iter().map(WireDefinition::from).collect(),
            locks: begin
                .locks
                .iter()
                .map(|key| key.as_str().to_owned())
                .collect(),
        }
    }
}

impl TryFrom<WireBegin> for SagaBegin {
    type Error = DecodeError;

    fn try_from(wire: WireBegin) -> Result<Self, DecodeError> {
        let lock = |key: &String| LockKey::parse(key).ok_or_else(|| malformed("lock"));
        Ok(SagaBegin {
            transaction: wire.transaction.parse()?,
            request_id: request_id(&wire.request_id)?,
            fingerprint: wire.fingerprint,
            traceparent: wire.traceparent,
            token: wire.token,
            deadline_unix_ms: wire.deadline_unix_ms,
            steps: wire
                .steps
                .into_iter()
                .map(StepDefinition::try_from)
                .collect::<Result<_, _>>()?,
            locks: wire.locks.iter().map(lock).collect::<Result<_, _>>()?,
        })
    }
}

impl From<&StepDefinition> for WireDefinition {
    fn from(step: &StepDefinition) -> Self {
        let (actions, compensation, group) = match &step.work {
            StepWork::Single {
                participant,
                action,
                compensation,
            } => (
                vec![wire_work(participant.as_str(), action)],
                compensation.as_ref().map(|work| wire_work("", work)),
                false,
            ),
            StepWork::Group(branches) => {
                let wire = |(name, work): &(crate::id::ParticipantName, Work)| {
                    wire_work(name.as_str(), work)
                };
                (branches.iter().map(wire).collect(), None, true)
            }
        };
        WireDefinition {
            name: step.name.as_str().into(),
            kind: KINDS
                .iter()
                .position(|kind| *kind == step.kind)
                .map_or(0, |at| at as u32 + 1),
            after: step.after.iter().map(|name| name.as_str().into()).collect(),
            actions,
            compensation,
            group,
            max_attempts: step.retry.max_attempts,
            first_backoff_ms: step.retry.first_backoff_ms,
            max_backoff_ms: step.retry.max_backoff_ms,
            attempt_timeout_ms: step.retry.attempt_timeout_ms,
        }
    }
}

impl StepDefinition {
    /// Its size in the log, in bytes.
    pub(crate) fn log_bytes(&self) -> usize {
        WireDefinition::from(self).encoded_len()
    }
}

impl TryFrom<WireDefinition> for StepDefinition {
    type Error = DecodeError;

    fn try_from(wire: WireDefinition) -> Result<Self, DecodeError> {
        let step_name = |text: &String| StepName::parse(text).ok_or_else(|| malformed("step name"));
        let kind = (wire.kind as usize)
            .checked_sub(1)
            .and_then(|at| KINDS.get(at));
        let mut actions = wire
            .actions
            .into_iter()
            .map(|work| Ok((name(&work.participant)?, read_work(work)?)))
            .collect::<Result<Vec<_>, DecodeError>>()?;
        let work = if wire.group {
            StepWork::Group(actions)
        } else {
            let (participant, action) = actions
                .pop()
                .ok_or_else(|| malformed("step without work"))?;
            StepWork::Single {
                participant,
                action,
                compensation: wire.compensation.map(read_work).transpose()?,
            }
        };
        Ok(StepDefinition {
            name: step_name(&wire.name)?,
            kind: *kind.ok_or_else(|| malformed("unknown kind of step"))?,
            after: wire.after.iter().map(step_name).collect::<Result<_, _>>()?,
            work,
            retry: RetryPolicy {
                max_attempts: wire.max_attempts,
                first_backoff_ms: wire.first_backoff_ms,
                max_backoff_ms: wire.max_backoff_ms,
                attempt_timeout_ms: wire.attempt_timeout_ms,
            },
        })
    }
}

fn wire_work(participant: &str, work: &Work) -> WireWork {
    let bindings = work.bindings.iter().map(|binding| {
        let (parameter, position) = match &binding.place.argument {
            Argument::Parameter(name) => (name.clone(), 0),
            Argument::Position(at) => (String::new(), *at),
        };
        WireBinding {
            operation: binding.place.operation,
            parameter,
            position,
            reference: binding.reference.to_string(),
        }
    });
    WireWork {
        participant: participant.into(),
        payload: work.payload.to_vec(),
        bindings: bindings.collect(),
    }
}

fn read_work(wire: WireWork) -> Result<Work, DecodeError> {
    let bindings = wire.bindings.into_iter().map(|binding| {
        let argument = if binding.parameter.is_empty() {
            Argument::Position(binding.position)
        } else {
            Argument::Parameter(binding.parameter)
        };
        Ok(Binding {
            place: Place {
                operation: binding.operation,
                argument,
            },
            reference: binding
                .reference
                .parse()
                .map_err(|_| malformed("reference"))?,
        })
    });
    Ok(Work {
        payload: wire.payload.into(),
        bindings: bindings.collect::<Result<_, DecodeError>>()?,
    })
}
