//! A saga's beginning: checked, locked, made durable. Nothing is sent before that.

use crate::{
    client::WAITERS_MAX,
    effect::Refusal,
    engine::{Engine, Pending},
    id::{ParticipantName, Ticket, TransactionId},
    input::SubmitSaga,
    outcome::{AbortCode, AbortReason},
    record::Record,
    saga::{Fate, RESULT_BYTES, Saga, SagaPhase, SagaRecord, Step, StepWork, definition},
    timer::Timer,
    transaction::{Outcome, Phase, Transaction},
};

/// How many locks a saga may name.
const LOCKS_MAX: usize = 64;

/// How large the record of these steps may become that a checkpoint carries: with all results that are kept.
fn log_bytes(steps: &[Step]) -> usize {
    let kept = steps.iter().filter(|step| step.wanted).count();
    let definitions = steps.iter().map(|step| step.definition.log_bytes());
    definitions.sum::<usize>() + kept * RESULT_BYTES
}

impl Engine {
    pub(crate) fn submit_saga(&mut self, submit: SubmitSaga) {
        let (ticket, request) = (submit.ticket, &submit.request_id);
        if self.repeats(ticket, request, submit.fingerprint, submit.answer_accepted) {
            return;
        }
        if let Some(refusal) = self.may_have_run(request, submit.unique, submit.age_ms) {
            return self.refuse(ticket, refusal);
        }
        let steps = match self.check_saga(&submit) {
            Ok(steps) => steps,
            Err(refusal) => return self.refuse(ticket, refusal),
        };
        let saga = Saga {
            steps,
            locks: submit.locks,
            phase: SagaPhase::Locking,
            token: 0,
            timeout_ms: submit.timeout_ms,
            deadline_unix_ms: 0,
            replayed: false,
            turn_replayed: false,
            wanted: None,
            promised: Vec::new(),
            early: submit
                .answer_accepted
                .then_some(ticket)
                .into_iter()
                .collect(),
            cancels: Vec::new(),
            heuristic: false,
        };
        let id = self.mint(submit.unique);
        let deadline = self.now.after_ms(submit.lock_timeout_ms);
        self.table.insert(Transaction {
            id,
            request_id: submit.request_id,
            fingerprint: submit.fingerprint,
            traceparent: submit.traceparent,
            deadline,
            interactive: false,
            may_have_committed: false,
            answer_decided: false,
            waiters: vec![ticket],
            cancels: Vec::new(),
            branches: Vec::new(),
            phase: Phase::Saga,
            saga: Some(Box::new(saga)),
            parent: None,
        });
        self.timers.set(deadline, Timer::Deadline(id));
        self.lock(id);
    }

    fn check_saga(&self, submit: &SubmitSaga) -> Result<Vec<Step>, Refusal> {
        let invalid = |field: String, problem: String| Err(Refusal::Invalid { field, problem });
        self.may_take_on()?;
        let (given, limit) = (submit.steps.len(), self.settings.max_branches);
        if given == 0 {
            return invalid("steps".into(), "at least one is needed".into());
        }
        if given > limit {
            return invalid(
                "steps".into(),
                format!("{given} given, at most {limit} allowed"),
            );
        }
        let bytes: usize = submit.steps.iter().map(|step| step.bytes()).sum();
        if bytes > self.settings.max_payload_bytes {
            let limit = self.settings.max_payload_bytes;
            return invalid(
                "steps".into(),
                format!("{bytes} bytes of operations given, at most {limit} allowed"),
            );
        }
        if submit.locks.len() > LOCKS_MAX {
            let problem = format!("{} given, at most {LOCKS_MAX} allowed", submit.locks.len());
            return invalid("locks".into(), problem);
        }
        for (at, key) in submit.locks.iter().enumerate() {
            if submit.locks[..at].contains(key) {
                return invalid(
                    format!("locks[{at}]"),
                    format!("{:?} stands there twice", key.as_str()),
                );
            }
        }
        for (at, step) in submit.steps.iter().enumerate() {
            if step.after.len() > given {
                let problem = format!(
                    "{} given, but there are {} other steps",
                    step.after.len(),
                    given - 1
                );
                return invalid(format!("steps[{at}].after"), problem);
            }
            if let StepWork::Group(branches) = &step.work
                && branches.len() > limit
            {
                let problem = format!("{} given, at most {limit} allowed", branches.len());
                return invalid(format!("steps[{at}].group.branches"), problem);
            }
            self.check_participants(at, &step.participants())?;
        }
        let steps = definition::check(submit.steps.clone())?;
        let (bytes, limit) = (log_bytes(&steps), self.settings.max_saga_bytes);
        if bytes > limit {
            return invalid(
                "steps".into(),
                format!(
                    "with the results that others refer to they may take {bytes} bytes of the log, at most {limit} allowed"
                ),
            );
        }
        Ok(steps)
    }

    fn check_participants(&self, at: usize, names: &[&ParticipantName]) -> Result<(), Refusal> {
        for (index, name) in names.iter().enumerate() {
            if names[..index].contains(name) {
                return Err(Refusal::Invalid {
                    field: format!("steps[{at}].group.branches[{index}]"),
                    problem: format!(
                        "participant {name} is named twice; put its operations into one branch"
                    ),
                });
            }
            if !self.participants.get(*name).is_some_and(|p| p.registered) {
                return Err(Refusal::ParticipantUnknown(name.to_string()));
            }
        }
        Ok(())
    }

    /// It has its locks.
    pub(crate) fn begin_saga(&mut self, id: TransactionId) {
        let (token, unix_ms) = (self.next_seq().0, self.unix_ms());
        let Some(transaction) = self.table.find_mut(&id) else {
            return;
        };
        let Some(saga) = transaction.saga.as_mut() else {
            return;
        };
        saga.phase = SagaPhase::Beginning;
        saga.token = token;
        saga.deadline_unix_ms = unix_ms.saturating_add(saga.timeout_ms);
        let deadline = self.now.after_ms(saga.timeout_ms);
        let before = std::mem::replace(&mut transaction.deadline, deadline);
        let begin = transaction.begin_record();
        self.timers.clear(before, Timer::Deadline(id));
        self.timers.set(deadline, Timer::Deadline(id));
        if let Some(begin) = begin {
            self.append_then(
                Record::Saga(SagaRecord::Begin(begin)),
                Pending::SagaBegun(id),
            );
        }
        self.report_changed(&id);
    }

    /// Its beginning is durable.
    pub(crate) fn saga_begun(&mut self, id: TransactionId) {
        let Some(saga) = self.saga_mut(&id) else {
            return;
        };
        saga.phase = SagaPhase::Forward;
        // One of retriable steps alone can't turn.
        let wanted = saga.wanted.take().filter(|_| !saga.is_past_pivot());
        let too_late = match wanted {
            Some(_) => Vec::new(),
            None => std::mem::take(&mut saga.cancels),
        };
        for ticket in too_late {
            self.refuse(ticket, Refusal::TransactionDecided(id));
        }
        self.answer_early(id);
        match wanted {
            Some(reason) => self.want_turn(id, reason),
            None => self.advance(id),
        }
    }

    /// Answers those who wait for its beginning alone.
    fn answer_early(&mut self, id: TransactionId) {
        let Some(saga) = self.saga_mut(&id) else {
            return;
        };
        let early = std::mem::take(&mut saga.early);
        let Some(transaction) = self.table.find_mut(&id) else {
            return;
        };
        let is_early = |ticket: &Ticket| early.contains(ticket);
        let (now, later) = std::mem::take(&mut transaction.waiters)
            .into_iter()
            .partition(is_early);
        transaction.waiters = later;
        let now: Vec<Ticket> = now;
        for ticket in now {
            self.answer_view(ticket, &id);
        }
    }

    /// A client, or an operator, wants it undone.
    pub(crate) fn cancel_saga(&mut self, ticket: Ticket, id: TransactionId, reason: AbortReason) {
        let draining = self.draining;
        let Some(saga) = self.saga_mut(&id) else {
            return;
        };
        match &saga.phase {
            // It is not turned any more before the restart, so nothing true can be answered.
            SagaPhase::Beginning
            | SagaPhase::Forward
            | SagaPhase::Settling(_)
            | SagaPhase::Turning(_)
                if draining =>
            {
                self.refuse(ticket, Refusal::Interrupted(id));
            }
            SagaPhase::Locking => {
                self.give_up_locks(id, reason);
                self.answer_view(ticket, &id);
            }
            SagaPhase::Beginning => {
                saga.wanted.get_or_insert(reason);
                self.wait_for_turn(ticket, id);
            }
            SagaPhase::Forward if saga.is_past_pivot() => {
                self.refuse(ticket, Refusal::TransactionDecided(id));
            }
            SagaPhase::Forward => {
                self.wait_for_turn(ticket, id);
                self.want_turn(id, reason);
            }
            SagaPhase::Settling(_) | SagaPhase::Turning(_) => self.wait_for_turn(ticket, id),
            SagaPhase::Back(_) => self.answer_view(ticket, &id),
        }
    }

    /// Whoever has waited longest is told to ask again where there are too many.
    fn wait_for_turn(&mut self, ticket: Ticket, id: TransactionId) {
        let Some(saga) = self.saga_mut(&id) else {
            return;
        };
        saga.cancels.push(ticket);
        if saga.cancels.len() <= WAITERS_MAX {
            return;
        }
        let oldest = saga.cancels.remove(0);
        let open = |step: &&Step| step.fate == Fate::Open && !step.is_idle();
        let asked = saga.steps.iter().find(open).and_then(|s| s.participant());
        let participant = asked.map(|name| name.to_string()).unwrap_or_default();
        self.refuse(
            oldest,
            Refusal::OutcomePending {
                transaction: id,
                participant,
            },
        );
    }

    /// Its time is up.
    pub(crate) fn saga_is_late(&mut self, id: TransactionId) {
        let in_the_way = self.locks_in_the_way(&id);
        let Some(saga) = self.saga_mut(&id) else {
            return;
        };
        let reason = |message: String| AbortReason::own(AbortCode::Timeout, message);
        match saga.phase {
            SagaPhase::Locking => {
                let keys: Vec<_> = in_the_way.iter().map(|key| key.as_str()).collect();
                let message = format!(
                    "time was up while waiting for the locks: {}",
                    keys.join(", ")
                );
                self.give_up_locks(id, reason(message));
            }
            SagaPhase::Beginning => {
                saga.wanted
                    .get_or_insert(reason("the saga's time was up".into()));
            }
            SagaPhase::Forward => self.want_turn(id, reason("the saga's time was up".into())),
            SagaPhase::Settling(_) | SagaPhase::Turning(_) | SagaPhase::Back(_) => {}
        }
    }

    /// One that never began: nothing of it is in the log.
    pub(crate) fn give_up_locks(&mut self, id: TransactionId, reason: AbortReason) {
        self.leave_locks(id);
        self.end(id, Outcome::Aborted(reason));
    }

    /// Those that have not begun.
    pub(crate) fn sagas_without_locks(&self) -> Vec<TransactionId> {
        let locking = |t: &&Transaction| {
            t.phase == Phase::Saga
                && t.saga
                    .as_ref()
                    .is_some_and(|s| s.phase == SagaPhase::Locking)
        };
        self.table
            .after(None)
            .filter(locking)
            .map(|t| t.id)
            .collect()
    }

    /// A saga that has not ended.
    pub(crate) fn saga_mut(&mut self, id: &TransactionId) -> Option<&mut Saga> {
        let transaction = self.table.find_mut(id)?;
        let live = transaction.phase == Phase::Saga;
        transaction.saga.as_deref_mut().filter(|_| live)
    }

    /// The same, to look at.
    pub(crate) fn saga(&self, id: &TransactionId) -> Option<&Saga> {
        let transaction = self.table.find(id)?;
        let live = transaction.phase == Phase::Saga;
        transaction.saga.as_deref().filter(|_| live)
    }
}
