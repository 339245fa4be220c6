//! A saga's end. It is not forced: a saga that ends again after a crash ends the same way, for everything that led there is durable, or
//! settled by the participants' markers.

use crate::{
    engine::Engine,
    id::TransactionId,
    record::Record,
    saga::{DoneStep, Saga, SagaBegin, SagaPhase, SagaRecord, StepWork},
    transaction::{Outcome, Transaction},
};

impl Engine {
    pub(crate) fn end_saga(&mut self, id: TransactionId) {
        let Some(saga) = self.saga_mut(&id) else {
            return;
        };
        let heuristic = saga.heuristic;
        let outcome = match &saga.phase {
            SagaPhase::Back(reason) if heuristic => Outcome::Heuristic(Some(reason.clone())),
            SagaPhase::Back(reason) => Outcome::Compensated(reason.clone()),
            _ if heuristic => Outcome::Heuristic(None),
            _ => Outcome::Committed,
        };
        saga.strip();
        // The locks' next holder begins with a forced record after this one, so no recovery sees two holders.
        self.append(Record::Saga(SagaRecord::End {
            transaction: id,
            heuristic,
        }));
        self.end(id, outcome);
        self.unlock(id);
    }
}

impl Saga {
    /// What was to be sent is not kept: nothing is sent any more.
    pub(crate) fn strip(&mut self) {
        for step in &mut self.steps {
            step.definition.strip();
            step.result = None;
        }
    }
}

impl super::StepDefinition {
    fn strip(&mut self) {
        let strip = |work: &mut super::Work| {
            work.payload = [].into();
            work.bindings = Vec::new();
        };
        match &mut self.work {
            StepWork::Single {
                action,
                compensation,
                ..
            } => std::iter::once(action).chain(compensation).for_each(strip),
            StepWork::Group(branches) => branches.iter_mut().map(|(_, work)| work).for_each(strip),
        }
    }
}

impl Transaction {
    /// What is in the log of a saga's beginning; `None` where this is none.
    pub(crate) fn begin_record(&self) -> Option<SagaBegin> {
        let saga = self.saga.as_ref()?;
        Some(SagaBegin {
            transaction: self.id,
            request_id: self.request_id.clone(),
            fingerprint: self.fingerprint,
            traceparent: self.traceparent.clone(),
            token: saga.token,
            deadline_unix_ms: saga.deadline_unix_ms,
            steps: saga
                .steps
                .iter()
                .map(|step| step.definition.clone())
                .collect(),
            locks: saga.locks.clone(),
        })
    }
}

impl Transaction {
    /// What a checkpoint carries of a saga; `None` where this is none, or nothing of it is in the log.
    pub(crate) fn saga_checkpoint(&self) -> Option<SagaRecord> {
        let saga = self.saga.as_ref().filter(|saga| saga.token > 0)?;
        let turn = match &saga.phase {
            SagaPhase::Turning(reason) | SagaPhase::Back(reason) => {
                Some((reason.clone(), saga.unsettled()))
            }
            SagaPhase::Locking
            | SagaPhase::Beginning
            | SagaPhase::Forward
            | SagaPhase::Settling(_) => None,
        };
        Some(SagaRecord::Checkpoint {
            begin: self.begin_record()?,
            turn,
            done: saga.done_steps(),
            ended: self.is_ended(),
            heuristic: saga.heuristic,
        })
    }
}

impl Saga {
    fn done_steps(&self) -> Vec<DoneStep> {
        let mut done = self.promised.clone();
        for (position, step) in (0..).zip(&self.steps) {
            let entry = |compensation, result| DoneStep {
                position,
                compensation,
                result,
                resolution: step.resolution.clone(),
            };
            if step.is_done() {
                done.push(entry(false, step.result.clone().filter(|_| step.wanted)));
            }
            if step.undone {
                done.push(entry(true, None));
            }
        }
        done
    }
}
