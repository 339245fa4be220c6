//! The commit protocol of Unanimity as a deterministic state machine over many transactions.
//!
//! One door in, one queue out:
//!
//! ```text
//! engine.handle(now, input);                     // one input
//! while let Some(effect) = engine.poll_effect()  // drain every effect, then the next input
//! engine.next_deadline()                         // when to call handle(now, Input::Tick)
//! ```
//!
//! The engine knows no socket, no clock, no randomness: time and random ids are inputs. **Decide, log, then act**: an effect that
//! depends on a record is handed out only after [`Input::Durable`] has reached that record, so no driver can send a commit early.
//!
//! Two-phase commit with presumed abort (Mohan, Lindsay, Obermarck 1986): one forced record for a committed transaction, none for an
//! aborted, a read-only or a one-phase one.
//!
//! ```text
//!  Waiting ──slots──▶ Preparing ──all yes──▶ Deciding ──durable──▶ Committing ──all proved──▶ Ended
//!  Active ──commit──▶    │  │                                                                  ▲
//!                        │  └──one branch──▶ Delegated ──its vote, or proof───────────────────▶│
//!                        └──a no, a timeout, a lost session, a client──▶ Aborting ────────────▶│
//! ```
//!
//! All of it is plain data: it can be cloned, compared and hashed, and nothing in it has an order of its own making. So the same inputs give the
//! same bytes, and a model checker can try every order of events on the engine itself (`tests/model`).
//!
//! Every (state, input) pair is accepted, absorbed (stale or duplicate: nothing happens), or refused (the peer is wrong).

#[cfg(all(unanimity_bug, not(debug_assertions)))]
compile_error!("a seeded bug would get into a release build: unset UNANIMITY_BUG");

mod admission;
mod checkpoint;
mod client;
mod decide;
mod deliver;
mod effect;
mod engine;
mod id;
mod in_doubt;
mod input;
mod lookup;
mod outcome;
mod prepare;
mod record;
mod record_text;
mod replay;
mod resolve;
mod saga;
mod session;
mod table;
mod timer;
mod transaction;

pub use effect::{
    Answer, Bound, BranchView, Compensates, Downward, Effect, Event, Refusal, Scalar,
    TransactionView,
};
pub use engine::{Engine, Settings};
pub use id::{
    BranchKey, Epoch, LockKey, LogId, MalformedId, Moment, ParticipantName, RequestId, Seq,
    SessionId, StepName, Ticket, TransactionId,
};
pub use in_doubt::{InDoubtView, Kind as InDoubtKind};
pub use input::{
    Begin, Completion, Found, Incarnation, Input, LogPosition, Opened, Payload, StepOutcome,
    Submit, SubmitSaga, Upward, Vote,
};
pub use outcome::{AbortCode, AbortReason, BranchState, Resolution, TransactionState};
pub use record::{DecidedBranch, Decision, DecodeError, Heuristic, HeuristicKind, Record};
pub use replay::{Replay, Start};
pub use saga::{
    Argument, Binding, DoneStep, Kind as StepKind, LockView, MalformedReference, Parent, Place,
    RESULT_BYTES, Reference, RetryPolicy, SagaBegin, SagaRecord, SagaView, StepDefinition,
    StepState, StepView, StepWork, Work,
};
pub use session::{ParticipantView, SessionView};
