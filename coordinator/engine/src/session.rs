//! Sessions: a participant's process is here, or it is gone.

use std::{cmp::Ordering, collections::BTreeSet};

use crate::{
    admission::Claim,
    effect::{Downward, Effect, Refusal},
    engine::{Engine, Pending},
    id::{BranchKey, ParticipantName, Seq, SessionId},
    input::{Found, LogPosition, Opened},
    outcome::{AbortCode, AbortReason, BranchState},
    record::Record,
    transaction::Phase,
};

/// One participant process.
#[derive(Clone, Debug, PartialEq, Hash)]
pub(crate) struct Session {
    pub(crate) participant: ParticipantName,
    pub(crate) agent: String,
    pub(crate) resource: String,
    pub(crate) capacity: u32,
    pub(crate) one_phase: bool,
    pub(crate) settles_steps: bool,
    /// Branches that hold its slots.
    pub(crate) held: BTreeSet<BranchKey>,
    /// What its hello reported, until it is welcomed.
    in_doubt: Vec<Found>,
}

/// A participant as shown.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ParticipantView {
    /// Its name.
    pub name: ParticipantName,
    /// Its open sessions.
    pub sessions: Vec<SessionView>,
    /// Transactions that wait for it.
    pub waiting: u32,
}

/// A session as shown.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SessionView {
    /// The process, for people.
    pub agent: String,
    /// The database's identity.
    pub resource: String,
    /// Branches held open.
    pub used: u32,
    /// Branches that it can hold.
    pub capacity: u32,
}

impl Engine {
    pub(crate) fn session_opened(&mut self, opened: Opened) {
        if let Some(seen) = opened.seen.iter().find(|seen| self.lacks(seen)) {
            return self.push(Effect::Halt {
                participant: opened.participant,
                seen: *seen,
                found: self.found,
            });
        }
        let participant = self
            .participants
            .entry(opened.participant.clone())
            .or_default();
        // A decision must not go to another database than the one that voted.
        let owed = Some(&participant.resource)
            .filter(|r| !r.is_empty() && !participant.undelivered.is_empty());
        let peers = self.sessions.values();
        let peers = peers.filter(|s| s.participant == opened.participant);
        if let Some(held) = peers
            .map(|s| &s.resource)
            .chain(owed)
            .find(|r| **r != opened.resource)
            .cloned()
        {
            let (participant, given) = (opened.participant.to_string(), opened.resource);
            let refusal = Refusal::ResourceMismatch {
                participant,
                held,
                given,
            };
            return self.push(Effect::Close {
                session: opened.session,
                refusal,
            });
        }
        let known = participant.registered && (participant.one_phase || !opened.one_phase);
        let session = Session {
            participant: opened.participant.clone(),
            agent: opened.agent,
            resource: opened.resource,
            capacity: opened.capacity.max(1),
            one_phase: opened.one_phase,
            settles_steps: opened.settles_steps,
            held: BTreeSet::new(),
            in_doubt: opened.in_doubt,
        };
        self.sessions.insert(opened.session, session);
        if known {
            return self.welcome(opened.session);
        }
        let one_phase = participant.one_phase || opened.one_phase;
        participant.recorded = Some(one_phase);
        let record = Record::Participant {
            name: opened.participant,
            one_phase,
        };
        self.append_then(record, Pending::Welcome(opened.session));
    }

    /// Whether somebody was told that a record is on disk which this log does not have. A record is told of only once it is durable, and then every
    /// later incarnation finds it.
    fn lacks(&self, seen: &LogPosition) -> bool {
        let had = match seen.epoch.cmp(&self.epoch) {
            Ordering::Less => self.found,
            Ordering::Equal if seen.instance == self.incarnation().instance => self.durable(),
            Ordering::Equal | Ordering::Greater => Seq(0),
        };
        seen.log == self.log && seen.seq > had
    }

    /// It is in the log. From here on work may go to it.
    pub(crate) fn welcome(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        let (name, one_phase) = (session.participant.clone(), session.one_phase);
        let resource = session.resource.clone();
        let found = std::mem::take(&mut session.in_doubt);
        let participant = self.participants.entry(name.clone()).or_default();
        participant.registered = true;
        participant.resource = resource;
        participant.one_phase |= one_phase;
        participant.sessions.insert(id);
        let undelivered: Vec<_> = participant.undelivered.iter().copied().collect();
        self.send(id, Downward::Welcome(self.incarnation()));
        for key in undelivered {
            self.deliver(key);
        }
        self.in_doubt_report(id, found);
        self.queue.free(name);
    }

    pub(crate) fn session_closed(&mut self, id: SessionId) {
        let Some(session) = self.sessions.remove(&id) else {
            return;
        };
        let mut gone = false;
        if let Some(participant) = self.participants.get_mut(&session.participant) {
            participant.sessions.remove(&id);
            gone = participant.sessions.is_empty();
        }
        for key in session.held {
            self.branch_cut_off(key);
        }
        if gone {
            self.drop_waiting(&session.participant);
        }
        self.drop_inquiries(&session.participant);
    }

    fn branch_cut_off(&mut self, key: BranchKey) {
        let Some(transaction) = self.table.find_mut(&key.transaction) else {
            return;
        };
        if transaction.saga.is_some() {
            return self.step_cut_off(key);
        }
        let phase = transaction.phase.clone();
        let Some(branch) = transaction.branch_mut(key.branch) else {
            return;
        };
        branch.session = None;
        let (state, name) = (branch.state, branch.participant.clone());
        match phase {
            Phase::Preparing if state == BranchState::Prepared => {} // It can still commit: another session will carry the decision.
            Phase::Active | Phase::Preparing => {
                let message = "its session was lost before its vote".into();
                let code = AbortCode::ParticipantUnavailable;
                self.begin_abort(
                    key.transaction,
                    AbortReason {
                        code,
                        participant: name.to_string(),
                        message,
                    },
                );
            }
            Phase::Delegated { .. } if cfg!(unanimity_bug = "one-phase-presumed-aborted") => {
                let message = "its session was lost";
                let reason = AbortReason::own(AbortCode::ParticipantUnavailable, message);
                self.begin_abort(key.transaction, reason);
            }
            Phase::Delegated { .. } => self.ask_for_proof(key.transaction),
            Phase::Committing if cfg!(unanimity_bug = "lost-session-aborts") => {
                self.settle(key, BranchState::Aborted);
                self.end_if_settled(key.transaction);
            }
            Phase::Committing => self.deliver(key),
            // It voted yes, so it waits in its database: that it ended as decided is for it to tell, even if somebody ends it by hand.
            Phase::Aborting(_) if state == BranchState::Prepared => self.deliver(key),
            Phase::Aborting(_) => {
                self.settle(key, BranchState::Aborted);
                self.end_if_settled(key.transaction);
            }
            Phase::Waiting { .. } | Phase::Deciding | Phase::Saga | Phase::Ended(_) => {}
        }
    }

    /// Transactions that wait for a participant that is gone are given back untouched: the client may try again.
    fn drop_waiting(&mut self, name: &ParticipantName) {
        let transaction = |claim: &Claim| match claim {
            Claim::Transaction(id) => Some(*id),
            Claim::Step(..) => None, // A saga waits, for as long as its time allows.
        };
        let waiting = self.participants.get(name).map(|p| {
            p.waiting
                .values()
                .filter_map(transaction)
                .collect::<Vec<_>>()
        });
        for id in waiting.unwrap_or_default() {
            self.leave_queue(&id);
            let Some(transaction) = self.table.remove(&id) else {
                continue;
            };
            if let Some(parent) = transaction.parent {
                let message = "a participant is not connected";
                self.group_failed(
                    parent,
                    AbortReason::own(AbortCode::ParticipantUnavailable, message),
                );
            }
            self.timers
                .clear(transaction.deadline, crate::timer::Timer::Deadline(id));
            for ticket in transaction.waiters {
                self.refuse(ticket, Refusal::ParticipantUnavailable(name.to_string()));
            }
        }
    }

    /// Participants that have ever registered, by name.
    pub fn participants(&self) -> Vec<ParticipantView> {
        let registered = self.participants.iter().filter(|(_, p)| p.registered);
        registered
            .map(|(name, participant)| ParticipantView {
                name: name.clone(),
                sessions: participant
                    .sessions
                    .iter()
                    .filter_map(|id| self.sessions.get(id))
                    .map(Session::view)
                    .collect(),
                waiting: participant.waiting.len() as u32,
            })
            .collect()
    }
}

impl Session {
    fn view(&self) -> SessionView {
        SessionView {
            agent: self.agent.clone(),
            resource: self.resource.clone(),
            used: self.held.len() as u32,
            capacity: self.capacity,
        }
    }
}
