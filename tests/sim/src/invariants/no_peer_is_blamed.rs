//! Agents and clients of a life keep to the protocol, whatever the network does: so the engine finds no fault with them.

use unanimity_engine::{Event, Refusal};

use super::{Invariant, Ledger, Verdict};
use crate::fact::Fact;

#[derive(Default)]
pub(crate) struct NoPeerIsBlamed;

impl Invariant for NoPeerIsBlamed {
    fn name(&self) -> &'static str {
        "no_peer_is_blamed"
    }

    fn observe(&mut self, _now: u64, fact: &Fact<'_>, _ledger: &Ledger) -> Verdict {
        match fact {
            Fact::Reported(Event::PeerMistake { mistake, .. }) => {
                Err(format!("a peer was wrong: {mistake}"))
            }
            Fact::Refused(refusal) => Err(format!("a session was refused: {refusal}")),
            Fact::Answered {
                answer: Err(refusal),
                ..
            } => match refusal {
                Refusal::Invalid { .. }
                | Refusal::TooManyBranches { .. }
                | Refusal::PayloadTooLarge { .. }
                | Refusal::RequestIdReused(_)
                | Refusal::ResourceMismatch { .. } => {
                    Err(format!("a sound request was refused: {refusal}"))
                }
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }
}
