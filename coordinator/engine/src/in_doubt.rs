//! Branches that a participant found prepared in its database: at its hello, and at every scan.
//!
//! Abort is presumed only for what is ours: a branch of another log, or of an epoch newer than ours (then *this* is an old copy of the log),
//! is listed and never touched. A branch of ours whose transaction is not remembered was never decided to commit, or had proved its commit
//! before it was forgotten; prepared, it can only be one that must abort.

use crate::{
    effect::{Downward, Event},
    engine::Engine,
    id::{BranchKey, ParticipantName, SessionId},
    input::Found,
    outcome::BranchState,
    timer::Timer,
    transaction::{Outcome, Phase},
};

/// What is done about a prepared branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Its transaction is not decided yet.
    Undecided,
    /// Commit is being delivered.
    Committing,
    /// Abort is being delivered.
    Aborting,
    /// Of another log, or not of our form: never touched.
    Foreign,
    /// Of our log, from an epoch newer than ours: never touched.
    NewerEpoch,
}

/// A prepared branch as shown.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct InDoubtView {
    /// As the database shows it, or `<transaction id>.<branch>`.
    pub identifier: String,
    /// Where.
    pub participant: ParticipantName,
    /// What is done about it.
    pub kind: Kind,
    /// How often the decision was sent.
    pub attempts: u32,
    /// What went wrong last.
    pub last_error: String,
}

impl Engine {
    pub(crate) fn in_doubt_report(&mut self, session: SessionId, found: Vec<Found>) {
        let Some(name) = self.sessions.get(&session).map(|s| s.participant.clone()) else {
            return;
        };
        let before: Vec<_> = self
            .untouchable
            .range((name.clone(), String::new())..)
            .take_while(|((n, _), _)| *n == name)
            .map(|(k, _)| k.clone())
            .collect();
        let before: Vec<_> = before
            .into_iter()
            .filter_map(|k| self.untouchable.remove_entry(&k))
            .map(|((_, i), _)| i)
            .collect();
        for branch in found {
            let is_ours = |key: &BranchKey| {
                key.transaction.log == self.log || cfg!(unanimity_bug = "other-logs-presumed")
            };
            match branch.key.filter(is_ours) {
                None => self.leave_alone(&name, branch.identifier, Kind::Foreign, &before),
                Some(key)
                    if key.transaction.epoch > self.epoch
                        && !cfg!(unanimity_bug = "newer-epochs-presumed") =>
                {
                    self.leave_alone(&name, branch.identifier, Kind::NewerEpoch, &before);
                }
                Some(key) => self.settle_found(session, &name, key),
            }
        }
    }

    fn leave_alone(
        &mut self,
        name: &ParticipantName,
        identifier: String,
        why: Kind,
        before: &[String],
    ) {
        if !before.contains(&identifier) {
            let (participant, identifier) = (name.clone(), identifier.clone());
            self.report(Event::Untouchable {
                participant,
                identifier,
                why,
            });
        }
        self.untouchable.insert((name.clone(), identifier), why);
    }

    fn settle_found(&mut self, session: SessionId, name: &ParticipantName, key: BranchKey) {
        let Some(transaction) = self.table.find(&key.transaction) else {
            return self.send(
                session,
                Downward::Abort {
                    key,
                    proof: String::new(),
                },
            );
        };
        let branch = transaction.branch(key.branch);
        if branch.is_some_and(|b| b.participant != *name) {
            // Two databases on one server list each other's branches. That one is for its own participant to end.
            return;
        }
        let proof = branch.map(|b| b.proof.clone()).unwrap_or_default();
        let (state, unsent) = (
            branch.map(|b| b.state),
            branch.is_some_and(|b| b.retry_at.is_none()),
        );
        match (&transaction.phase, state) {
            (Phase::Committing, Some(state)) if !state.is_settled() => {
                if unsent {
                    self.deliver(key);
                }
            }
            // It proved its commit, and this report was made before that, or it was restored since: the decision stands.
            // One that was lost is found again.
            (Phase::Ended(Outcome::Committed), Some(BranchState::Committed))
            | (
                Phase::Ended(Outcome::Heuristic(None)),
                Some(BranchState::Committed | BranchState::Lost),
            ) => {
                self.send(session, Downward::Commit { key, proof });
            }
            (Phase::Aborting(_), Some(state)) if !state.is_settled() => {
                if unsent {
                    self.deliver(key);
                }
            }
            (
                Phase::Aborting(_)
                | Phase::Ended(Outcome::Aborted(_) | Outcome::Heuristic(Some(_))),
                _,
            ) => {
                self.send(session, Downward::Abort { key, proof });
            }
            // A branch that the commit record does not name did not vote yes.
            (Phase::Committing | Phase::Ended(Outcome::Committed), None) => {
                self.send(session, Downward::Abort { key, proof });
            }
            (
                Phase::Waiting { .. }
                | Phase::Active
                | Phase::Preparing
                | Phase::Delegated { .. }
                | Phase::Deciding
                | Phase::Committing
                | Phase::Saga
                | Phase::Ended(
                    Outcome::Committed | Outcome::Compensated(_) | Outcome::Heuristic(None),
                ),
                _,
            ) => {}
        }
    }

    /// Asks one session of each participant.
    pub(crate) fn scan(&mut self) {
        let sessions: Vec<_> = self
            .participants
            .values()
            .filter_map(|p| p.sessions.first().copied())
            .collect();
        for session in sessions {
            self.send(session, Downward::ListInDoubt);
        }
        self.timers.set(
            self.now.after_ms(self.settings.scan_interval_ms.max(1)),
            Timer::Scan,
        );
    }

    /// Everything prepared and not settled: ours on the way, then what must not be touched.
    pub fn in_doubt(&self) -> Vec<InDoubtView> {
        let mut list = Vec::new();
        for transaction in self.table.after(None).filter(|t| !t.is_ended()) {
            let kind = match transaction.phase {
                Phase::Committing => Kind::Committing,
                Phase::Aborting(_) => Kind::Aborting,
                _ => Kind::Undecided,
            };
            for branch in transaction
                .branches
                .iter()
                .filter(|b| b.state == BranchState::Prepared)
            {
                list.push(InDoubtView {
                    identifier: transaction.key(branch).to_string(),
                    participant: branch.participant.clone(),
                    kind,
                    attempts: branch.attempts,
                    last_error: branch.last_error.clone(),
                });
            }
        }
        list.extend(
            self.untouchable
                .iter()
                .map(|((participant, identifier), kind)| InDoubtView {
                    identifier: identifier.clone(),
                    participant: participant.clone(),
                    kind: *kind,
                    attempts: 0,
                    last_error: String::new(),
                }),
        );
        list
    }
}
