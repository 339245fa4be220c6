//! What the log holds: the engine's records and their bytes.
//!
//! ```text
//! byte 0      format version, 1
//! byte 1..    one protobuf message: Wire, below
//! ```
//!
//! Field numbers are for ever. `tests/golden` pins the bytes.

use prost::{Message, Oneof};

use crate::{
    id::{BranchKey, Epoch, MalformedId, ParticipantName, RequestId, TransactionId},
    outcome::Resolution,
    saga::{Parent, SagaRecord, WireSaga},
};

const VERSION: u8 = 1;

/// One record.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Record {
    /// A new incarnation starts. Forced before anything else happens.
    Epoch(Epoch),
    /// A participant that can prove one-phase commits, or any other, registered for the first time. Forced before its welcome.
    Participant {
        /// Who.
        name: ParticipantName,
        /// It writes marker rows, so a look-up of an unknown transaction must ask it.
        one_phase: bool,
    },
    /// The decision to commit. Forced; it exists once it is durable.
    Commit(Decision),
    /// Every branch is settled. Not forced.
    End {
        /// Which.
        transaction: TransactionId,
        /// Branches that went against the decision.
        heuristics: Vec<Heuristic>,
    },
    /// An operator settled a branch by hand. Forced before it takes effect.
    Resolve {
        /// Which.
        branch: BranchKey,
        /// What it was made.
        resolution: Resolution,
        /// Why.
        reason: String,
    },
    /// What follows carries over all that is live; a later [`Record::CheckpointEnd`] makes it count.
    CheckpointBegin {
        /// The current incarnation.
        epoch: Epoch,
        /// Committed transactions minted before this one may have been forgotten.
        forgotten: Option<TransactionId>,
    },
    /// A transaction that was live, or ended and still remembered, when the checkpoint came by it.
    CheckpointTransaction {
        /// Its decision.
        decision: Decision,
        /// It had ended.
        ended: bool,
        /// Branches settled by then, against the decision or by an operator.
        heuristics: Vec<Heuristic>,
    },
    /// The checkpoint is whole: older segments may go.
    CheckpointEnd,
    /// Of a saga.
    Saga(SagaRecord),
}

/// A decision to commit.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Decision {
    /// Which.
    pub transaction: TransactionId,
    /// The client's key.
    pub request_id: Option<RequestId>,
    /// Hash of the content.
    pub fingerprint: u64,
    /// The branches that voted yes.
    pub branches: Vec<DecidedBranch>,
    /// W3C trace context, or empty.
    pub traceparent: String,
    /// Where it is the atomic group of a saga's step.
    pub parent: Option<Parent>,
}

/// A branch that must commit.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DecidedBranch {
    /// Its number.
    pub number: u32,
    /// Who.
    pub participant: ParticipantName,
    /// From its vote.
    pub proof: String,
}

/// How a branch ended otherwise than decided, or by whose hand.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Heuristic {
    /// The branch's number.
    pub branch: u32,
    /// How.
    pub kind: HeuristicKind,
    /// What was said of it.
    pub reason: String,
}

/// How.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HeuristicKind {
    /// Rolled back against the commit.
    Aborted,
    /// Gone without proof.
    Lost,
    /// Committed, by an operator's word.
    ResolvedCommitted,
    /// Rolled back against the commit, by an operator's word.
    ResolvedAborted,
}

/// Bytes that are not a record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Written by a later release.
    #[error(
        "record format {0} is newer than this release understands (1); start the release that wrote it"
    )]
    Version(u8),
    /// Damaged, or not ours.
    #[error("not a record: {0}")]
    Malformed(String),
}

impl Record {
    /// The record's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let wire = Wire {
            kind: Some(self.to_wire()),
        };
        let mut bytes = Vec::with_capacity(1 + wire.encoded_len());
        bytes.push(VERSION);
        wire.encode(&mut bytes).expect("a Vec grows");
        bytes
    }

    /// Reads it back.
    ///
    /// # Errors
    /// [`DecodeError`], for bytes that no `encode` of this release or an older one wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (version, body) = bytes.split_first().ok_or_else(|| malformed("empty"))?;
        if *version != VERSION {
            return Err(DecodeError::Version(*version));
        }
        let wire = Wire::decode(body).map_err(|e| DecodeError::Malformed(e.to_string()))?;
        Record::from_wire(wire.kind.ok_or_else(|| malformed("unknown kind"))?)
    }

    fn to_wire(&self) -> Kind {
        match self {
            Record::Epoch(epoch) => Kind::Epoch(epoch.0),
            Record::Participant { name, one_phase } => Kind::Participant(WireParticipant {
                name: name.as_str().into(),
                one_phase: *one_phase,
            }),
            Record::Commit(decision) => Kind::Commit(WireDecision::from(decision)),
            Record::End {
                transaction,
                heuristics,
            } => Kind::End(WireEnd {
                transaction: transaction.to_string(),
                heuristics: wire_heuristics(heuristics),
            }),
            Record::Resolve {
                branch,
                resolution,
                reason,
            } => Kind::Resolve(WireResolve {
                transaction: branch.transaction.to_string(),
                branch: branch.branch,
                committed: *resolution == Resolution::Committed,
                reason: reason.clone(),
            }),
            Record::CheckpointBegin { epoch, forgotten } => {
                Kind::CheckpointBegin(WireCheckpointBegin {
                    epoch: epoch.0,
                    forgotten: forgotten.map(|id| id.to_string()).unwrap_or_default(),
                })
            }
            Record::CheckpointTransaction {
                decision,
                ended,
                heuristics,
            } => Kind::CheckpointTransaction(WireCheckpointTransaction {
                decision: Some(decision.into()),
                ended: *ended,
                heuristics: wire_heuristics(heuristics),
            }),
            Record::CheckpointEnd => Kind::CheckpointEnd(true),
            Record::Saga(record) => Kind::Saga(record.to_wire()),
        }
    }

    fn from_wire(kind: Kind) -> Result<Self, DecodeError> {
        Ok(match kind {
            Kind::Epoch(number) => Record::Epoch(epoch(number)?),
            Kind::Participant(p) => Record::Participant {
                name: name(&p.name)?,
                one_phase: p.one_phase,
            },
            Kind::Commit(decision) => Record::Commit(decision.try_into()?),
            Kind::End(end) => Record::End {
                transaction: end.transaction.parse()?,
                heuristics: heuristics(end.heuristics)?,
            },
            Kind::Resolve(resolve) => Record::Resolve {
                branch: BranchKey {
                    transaction: resolve.transaction.parse()?,
                    branch: resolve.branch,
                },
                resolution: if resolve.committed {
                    Resolution::Committed
                } else {
                    Resolution::Aborted
                },
                reason: resolve.reason,
            },
            Kind::CheckpointBegin(begin) => Record::CheckpointBegin {
                epoch: epoch(begin.epoch)?,
                forgotten: if begin.forgotten.is_empty() {
                    None
                } else {
                    Some(begin.forgotten.parse()?)
                },
            },
            Kind::CheckpointTransaction(entry) => Record::CheckpointTransaction {
                decision: entry
                    .decision
                    .ok_or_else(|| malformed("checkpoint without decision"))?
                    .try_into()?,
                ended: entry.ended,
                heuristics: heuristics(entry.heuristics)?,
            },
            Kind::CheckpointEnd(_) => Record::CheckpointEnd,
            Kind::Saga(record) => Record::Saga(SagaRecord::from_wire(record)?),
        })
    }
}

#[derive(Clone, PartialEq, Message)]
struct Wire {
    #[prost(oneof = "Kind", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9")]
    kind: Option<Kind>,
}

#[derive(Clone, PartialEq, Oneof)]
enum Kind {
    #[prost(uint64, tag = "1")]
    Epoch(u64),
    #[prost(message, tag = "2")]
    Participant(WireParticipant),
    #[prost(message, tag = "3")]
    Commit(WireDecision),
    #[prost(message, tag = "4")]
    End(WireEnd),
    #[prost(message, tag = "5")]
    Resolve(WireResolve),
    #[prost(message, tag = "6")]
    CheckpointBegin(WireCheckpointBegin),
    #[prost(message, tag = "7")]
    CheckpointTransaction(WireCheckpointTransaction),
    #[prost(bool, tag = "8")]
    CheckpointEnd(bool),
    #[prost(message, tag = "9")]
    Saga(WireSaga),
}

#[derive(Clone, PartialEq, Message)]
struct WireParticipant {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(bool, tag = "2")]
    one_phase: bool,
}

#[derive(Clone, PartialEq, Message)]
struct WireDecision {
    #[prost(string, tag = "1")]
    transaction: String,
    #[prost(string, tag = "2")]
    request_id: String,
    #[prost(fixed64, tag = "3")]
    fingerprint: u64,
    #[prost(message, repeated, tag = "4")]
    branches: Vec<WireBranch>,
    #[prost(string, tag = "5")]
    traceparent: String,
    /// Of its saga; empty where it has none.
    #[prost(string, tag = "6")]
    saga: String,
    /// The step's position, from 0.
    #[prost(uint32, tag = "7")]
    step: u32,
}

#[derive(Clone, PartialEq, Message)]
struct WireBranch {
    #[prost(uint32, tag = "1")]
    number: u32,
    #[prost(string, tag = "2")]
    participant: String,
    #[prost(string, tag = "3")]
    proof: String,
}

#[derive(Clone, PartialEq, Message)]
struct WireEnd {
    #[prost(string, tag = "1")]
    transaction: String,
    #[prost(message, repeated, tag = "2")]
    heuristics: Vec<WireHeuristic>,
}

#[derive(Clone, PartialEq, Message)]
struct WireHeuristic {
    #[prost(uint32, tag = "1")]
    branch: u32,
    #[prost(uint32, tag = "2")]
    kind: u32,
    #[prost(string, tag = "3")]
    reason: String,
}

#[derive(Clone, PartialEq, Message)]
struct WireResolve {
    #[prost(string, tag = "1")]
    transaction: String,
    #[prost(uint32, tag = "2")]
    branch: u32,
    #[prost(bool, tag = "3")]
    committed: bool,
    #[prost(string, tag = "4")]
    reason: String,
}

#[derive(Clone, PartialEq, Message)]
struct WireCheckpointBegin {
    #[prost(uint64, tag = "1")]
    epoch: u64,
    #[prost(string, tag = "2")]
    forgotten: String,
}

#[derive(Clone, PartialEq, Message)]
struct WireCheckpointTransaction {
    #[prost(message, optional, tag = "1")]
    decision: Option<WireDecision>,
    #[prost(bool, tag = "2")]
    ended: bool,
    #[prost(message, repeated, tag = "3")]
    heuristics: Vec<WireHeuristic>,
}

impl From<&Decision> for WireDecision {
    fn from(decision: &Decision) -> Self {
        WireDecision {
            transaction: decision.transaction.to_string(),
            request_id: decision
                .request_id
                .as_ref()
                .map(|r| r.as_str().to_owned())
                .unwrap_or_default(),
            fingerprint: decision.fingerprint,
            branches: decision
                .branches
                .iter()
                .map(|b| WireBranch {
                    number: b.number,
                    participant: b.participant.as_str().into(),
                    proof: b.proof.clone(),
                })
                .collect(),
            traceparent: decision.traceparent.clone(),
            saga: decision
                .parent
                .map(|p| p.saga.to_string())
                .unwrap_or_default(),
            step: decision.parent.map_or(0, |p| p.step as u32),
        }
    }
}

impl TryFrom<WireDecision> for Decision {
    type Error = DecodeError;

    fn try_from(wire: WireDecision) -> Result<Self, DecodeError> {
        let branches = wire.branches.into_iter().map(|b| {
            Ok(DecidedBranch {
                number: b.number,
                participant: name(&b.participant)?,
                proof: b.proof,
            })
        });
        Ok(Decision {
            transaction: wire.transaction.parse()?,
            request_id: request_id(&wire.request_id)?,
            fingerprint: wire.fingerprint,
            branches: branches.collect::<Result<_, DecodeError>>()?,
            traceparent: wire.traceparent,
            parent: if wire.saga.is_empty() {
                None
            } else {
                Some(Parent {
                    saga: wire.saga.parse()?,
                    step: wire.step as usize,
                })
            },
        })
    }
}

fn wire_heuristics(heuristics: &[Heuristic]) -> Vec<WireHeuristic> {
    let number = |kind| match kind {
        HeuristicKind::Aborted => 1,
        HeuristicKind::Lost => 2,
        HeuristicKind::ResolvedCommitted => 3,
        HeuristicKind::ResolvedAborted => 4,
    };
    heuristics
        .iter()
        .map(|h| WireHeuristic {
            branch: h.branch,
            kind: number(h.kind),
            reason: h.reason.clone(),
        })
        .collect()
}

fn heuristics(wire: Vec<WireHeuristic>) -> Result<Vec<Heuristic>, DecodeError> {
    let kind = |number| {
        Ok(match number {
            1 => HeuristicKind::Aborted,
            2 => HeuristicKind::Lost,
            3 => HeuristicKind::ResolvedCommitted,
            4 => HeuristicKind::ResolvedAborted,
            _ => return Err(malformed("unknown heuristic")),
        })
    };
    wire.into_iter()
        .map(|h| {
            Ok(Heuristic {
                branch: h.branch,
                kind: kind(h.kind)?,
                reason: h.reason,
            })
        })
        .collect()
}

/// The next start takes the next number, so there is one.
fn epoch(number: u64) -> Result<Epoch, DecodeError> {
    let has_next = number < u64::MAX;
    has_next
        .then_some(Epoch(number))
        .ok_or_else(|| malformed("epoch without a next one"))
}

/// Empty for none. One that is malformed is not taken for none: then the same request could commit once more.
pub(crate) fn request_id(text: &str) -> Result<Option<RequestId>, DecodeError> {
    if text.is_empty() {
        return Ok(None);
    }
    RequestId::parse(text)
        .map(Some)
        .ok_or_else(|| malformed("request id"))
}

pub(crate) fn name(text: &str) -> Result<ParticipantName, DecodeError> {
    ParticipantName::parse(text).ok_or_else(|| malformed("participant name"))
}

pub(crate) fn malformed(what: &str) -> DecodeError {
    DecodeError::Malformed(what.into())
}

impl From<MalformedId> for DecodeError {
    fn from(error: MalformedId) -> Self {
        DecodeError::Malformed(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(kind: Kind) -> Result<Record, DecodeError> {
        let mut bytes = vec![VERSION];
        Wire { kind: Some(kind) }
            .encode(&mut bytes)
            .expect("a Vec grows");
        Record::decode(&bytes)
    }

    #[test]
    fn an_epoch_that_no_next_one_follows_is_no_record() {
        let begin = |epoch| {
            Kind::CheckpointBegin(WireCheckpointBegin {
                epoch,
                forgotten: String::new(),
            })
        };
        for kind in [Kind::Epoch(u64::MAX), begin(u64::MAX)] {
            assert!(matches!(decode(kind), Err(DecodeError::Malformed(_))));
        }
        for kind in [Kind::Epoch(u64::MAX - 1), begin(u64::MAX - 1)] {
            assert!(decode(kind).is_ok());
        }
    }

    #[test]
    fn a_request_id_that_cannot_be_read_is_not_taken_for_none() {
        let commit = |request_id: &str| {
            Kind::Commit(WireDecision {
                transaction: "u1.0000002a.3.0192f0c4a7b87c3d8e9f00112233aabb".into(),
                request_id: request_id.into(),
                ..WireDecision::default()
            })
        };
        assert!(decode(commit("")).is_ok());
        assert!(decode(commit("order-7")).is_ok());
        for wrong in ["a\nb", &"x".repeat(65)] {
            assert!(matches!(
                decode(commit(wrong)),
                Err(DecodeError::Malformed(_))
            ));
        }
    }
}
