//! Going back: what took effect is undone, in the reverse of the order in which it was done.

use crate::{
    effect::Refusal,
    engine::{Engine, Pending},
    id::{BranchKey, Ticket, TransactionId},
    record::Record,
    saga::{Activity, DoneStep, Fate, Saga, SagaPhase, SagaRecord, Task},
};

impl Engine {
    pub(crate) fn go_back(&mut self, id: TransactionId) {
        let Some(saga) = self.saga_mut(&id) else {
            return;
        };
        while saga.skip_one() {}
        if saga.steps.iter().all(|step| !step.is_owed()) {
            return self.end_saga(id);
        }
        for step in saga.to_be_undone() {
            self.start_task(id, step, Task::Undo);
        }
    }

    pub(crate) fn compensation_done(&mut self, key: BranchKey, step: usize) {
        let id = key.transaction;
        let back = self
            .saga(&id)
            .is_some_and(|s| matches!(s.phase, SagaPhase::Back(_)));
        let owed = self
            .saga(&id)
            .and_then(|s| s.steps.get(step))
            .is_some_and(|s| s.is_owed());
        if !(back && owed) {
            return;
        }
        self.release_step(key);
        self.mark_undone(id, step, String::new());
        self.advance(id);
    }

    fn mark_undone(&mut self, id: TransactionId, step: usize, resolution: String) {
        let Some(found) = self.saga_mut(&id).and_then(|s| s.steps.get_mut(step)) else {
            return;
        };
        found.undone = true;
        found.activity = Activity::Idle;
        found.last_error.clear();
        found.resolution.clone_from(&resolution);
        self.append(Record::Saga(SagaRecord::Step {
            transaction: id,
            step: DoneStep {
                position: step as u32,
                compensation: true,
                result: None,
                resolution,
            },
        }));
    }

    /// An operator did by hand what is being tried in vain.
    pub(crate) fn resolve_step(
        &mut self,
        ticket: Ticket,
        id: TransactionId,
        name: String,
        reason: String,
    ) {
        if self.table.find(&id).is_none() {
            return self.refuse(ticket, Refusal::TransactionUnknown(id.to_string()));
        }
        let tried = self.saga(&id).and_then(|saga| saga.tried(&name));
        let Some((position, task)) = tried else {
            let refusal = Refusal::StepNotTried {
                transaction: id,
                step: name,
            };
            return self.refuse(ticket, refusal);
        };
        let step = DoneStep {
            position: position as u32,
            compensation: task == Task::Undo,
            result: None,
            resolution: reason,
        };
        let record = SagaRecord::Resolve {
            transaction: id,
            step: step.clone(),
        };
        self.promise(id, &step);
        self.append_then(
            Record::Saga(record),
            Pending::StepResolved { ticket, id, step },
        );
    }

    /// The operator's word is durable. Where the participant was quicker, its answer counts: both say done.
    pub(crate) fn step_resolved(&mut self, ticket: Ticket, id: TransactionId, done: DoneStep) {
        let step = done.position as usize;
        self.keep_promise(id, &done);
        if let Some(saga) = self.saga(&id) {
            let key = saga.key(id, step, done.compensation);
            let found = &saga.steps[step];
            let open = if done.compensation {
                found.is_owed()
            } else {
                found.fate == Fate::Open
            };
            if open {
                self.release_step(key);
                if done.compensation {
                    self.mark_undone(id, step, done.resolution);
                } else {
                    self.mark_done(id, step, None, done.resolution);
                }
                self.advance(id);
            }
        }
        self.answer_view(ticket, &id);
    }
}

impl super::Step {
    /// It took effect, or may have, and is not undone.
    pub(crate) fn is_owed(&self) -> bool {
        !self.undone && (self.is_done() || self.unsettled)
    }
}

impl Saga {
    /// A step without compensation has nothing to undo, once its turn comes. True where there was one.
    fn skip_one(&mut self) -> bool {
        let plain = |step: &usize| self.steps[*step].compensation().is_none();
        let step = self.to_be_undone().into_iter().find(plain);
        step.map(|step| self.steps[step].undone = true).is_some()
    }

    /// Owed, and everything that came after it is undone.
    fn to_be_undone(&self) -> Vec<usize> {
        let ready = |step: &usize| {
            let found = &self.steps[*step];
            let mut later = self.steps.iter().filter(|s| s.after.contains(step));
            let later = later.all(|s| !s.is_owed()) || cfg!(unanimity_bug = "undone-out-of-order");
            found.is_owed() && found.is_idle() && later
        };
        (0..self.steps.len()).filter(ready).collect()
    }

    /// The step of this name, where it is being tried, or waits to be; a group is settled by its branches.
    fn tried(&self, name: &str) -> Option<(usize, Task)> {
        let step = self
            .steps
            .iter()
            .position(|s| s.definition.name.as_str() == name)?;
        let found = &self.steps[step];
        let task = found.activity.task()?;
        let single = found.participant().is_some();
        single.then_some((
            step,
            if task == Task::Undo {
                Task::Undo
            } else {
                Task::Act
            },
        ))
    }
}
