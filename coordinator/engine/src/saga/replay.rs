//! Sagas in the fold of the log.

use crate::{
    client::NEVER,
    engine::Engine,
    id::TransactionId,
    outcome::AbortReason,
    replay::Replay,
    saga::{
        Activity, DoneStep, Fate, Parent, Saga, SagaBegin, SagaPhase, SagaRecord, Step, definition,
    },
    timer::Timer,
    transaction::{Outcome, Phase, Transaction},
};

impl Replay {
    pub(crate) fn apply_saga(&mut self, record: SagaRecord) {
        match record {
            SagaRecord::Begin(begin) => self.saga_begins(begin),
            SagaRecord::Step { transaction, step } | SagaRecord::Resolve { transaction, step } => {
                self.step_is_done(transaction, step);
            }
            SagaRecord::Turn {
                transaction,
                reason,
                unsettled,
            } => self.saga_turns(transaction, reason, unsettled),
            SagaRecord::End {
                transaction,
                heuristic,
            } => self.saga_ends(transaction, heuristic),
            SagaRecord::Checkpoint {
                begin,
                turn,
                done,
                ended,
                heuristic,
            } => {
                let id = begin.transaction;
                self.saga_begins(begin);
                if let Some((reason, unsettled)) = turn {
                    self.saga_turns(id, reason, unsettled);
                }
                for step in done {
                    self.step_is_done(id, step);
                }
                if ended {
                    self.saga_ends(id, heuristic);
                } else if let Some(saga) = self.saga_mut(&id) {
                    saga.heuristic |= heuristic;
                }
            }
        }
    }

    fn saga_begins(&mut self, begin: SagaBegin) {
        let id = begin.transaction;
        if self.transactions.contains_key(&id) {
            return;
        }
        let saga = Saga {
            steps: definition::restore(begin.steps),
            locks: begin.locks,
            phase: SagaPhase::Forward,
            token: begin.token,
            timeout_ms: 0,
            deadline_unix_ms: begin.deadline_unix_ms,
            replayed: true,
            turn_replayed: false,
            wanted: None,
            promised: Vec::new(),
            early: Vec::new(),
            cancels: Vec::new(),
            heuristic: false,
        };
        self.transactions.insert(
            id,
            Transaction {
                id,
                request_id: begin.request_id,
                fingerprint: begin.fingerprint,
                traceparent: begin.traceparent,
                deadline: NEVER,
                interactive: false,
                may_have_committed: false,
                answer_decided: false,
                waiters: Vec::new(),
                cancels: Vec::new(),
                branches: Vec::new(),
                phase: Phase::Saga,
                saga: Some(Box::new(saga)),
                parent: None,
            },
        );
    }

    fn saga_mut(&mut self, id: &TransactionId) -> Option<&mut Saga> {
        let transaction = self.transactions.get_mut(id)?;
        let live = transaction.phase == Phase::Saga;
        transaction.saga.as_deref_mut().filter(|_| live)
    }

    fn step_is_done(&mut self, id: TransactionId, done: DoneStep) {
        let step = self
            .saga_mut(&id)
            .and_then(|saga| saga.steps.get_mut(done.position as usize));
        let Some(step) = step else { return };
        if !done.resolution.is_empty() {
            step.resolution = done.resolution;
        }
        if done.compensation {
            step.undone = true;
        } else {
            step.fate = Fate::Done;
            step.result = done.result.or(step.result.take());
        }
    }

    fn saga_turns(&mut self, id: TransactionId, reason: AbortReason, unsettled: Vec<u32>) {
        let Some(saga) = self.saga_mut(&id) else {
            return;
        };
        saga.phase = SagaPhase::Back(reason);
        saga.turn_replayed = true;
        for position in unsettled {
            if let Some(step) = saga.steps.get_mut(position as usize) {
                step.unsettled = true;
            }
        }
    }

    fn saga_ends(&mut self, id: TransactionId, heuristic: bool) {
        let Some(saga) = self.saga_mut(&id) else {
            return;
        };
        let outcome = match saga.phase.clone() {
            SagaPhase::Back(reason) if heuristic => Outcome::Heuristic(Some(reason)),
            SagaPhase::Back(reason) => Outcome::Compensated(reason),
            _ if heuristic => Outcome::Heuristic(None),
            _ => Outcome::Committed,
        };
        let forward = matches!(outcome, Outcome::Committed | Outcome::Heuristic(None));
        for step in &mut saga.steps {
            step.become_final(forward);
        }
        saga.strip();
        if let Some(transaction) = self.transactions.get_mut(&id) {
            transaction.phase = Phase::Ended(outcome);
        }
    }
}

impl Step {
    /// The saga's end says what became of it, though its own record may be lost.
    fn become_final(&mut self, forward: bool) {
        if forward {
            self.fate = Fate::Done;
        } else if self.fate == Fate::Done || self.unsettled {
            self.undone = true;
        } else {
            self.fate = Fate::Never;
        }
    }

    /// A step of which an earlier incarnation says nothing may have been sent; and in a saga that goes back, it wasn't.
    fn resume(&mut self, back: bool) {
        if self.fate != Fate::Open || self.unsettled || self.activity == Activity::Grouped {
            return;
        }
        if back {
            self.fate = Fate::Never;
        } else {
            // A group that is not in the log was presumed aborted.
            self.doubt = self.participant().is_some();
        }
    }
}

impl Engine {
    /// Links the groups to their sagas, takes the locks, and lets the sagas go on. Nobody is connected yet, so what they want to send waits.
    pub(crate) fn resume_sagas(&mut self) {
        let groups: Vec<_> = self
            .table
            .after(None)
            .filter_map(|t| Some((t.parent?, t.id, t.phase.clone())))
            .collect();
        for (parent, child, phase) in groups {
            self.link_group(parent, child, &phase);
        }
        let live: Vec<_> = self
            .table
            .after(None)
            .filter(|t| t.phase == Phase::Saga)
            .map(|t| t.id)
            .collect();
        for id in live {
            self.resume_saga(id);
        }
    }

    fn link_group(&mut self, parent: Parent, child: TransactionId, phase: &Phase) {
        let Some(saga) = self.saga_mut(&parent.saga) else {
            return;
        };
        saga.heuristic |= matches!(phase, Phase::Ended(Outcome::Heuristic(_)));
        let Some(step) = saga.steps.get_mut(parent.step) else {
            return;
        };
        step.group = Some(child);
        if matches!(phase, Phase::Ended(_)) {
            step.fate = Fate::Done;
        } else if step.fate == Fate::Open {
            step.activity = Activity::Grouped;
        }
    }

    fn resume_saga(&mut self, id: TransactionId) {
        let (now, unix_ms) = (self.now, self.unix_ms());
        let Some(saga) = self.saga_mut(&id) else {
            return;
        };
        let back = matches!(saga.phase, SagaPhase::Back(_));
        for step in &mut saga.steps {
            step.resume(back);
        }
        let deadline = now.after_ms(saga.deadline_unix_ms.saturating_sub(unix_ms));
        let keys = saga.locks.clone();
        self.locks.hold(id, &keys);
        if let Some(transaction) = self.table.find_mut(&id) {
            transaction.deadline = deadline;
        }
        self.timers.set(deadline, Timer::Deadline(id));
        self.advance(id);
    }
}
