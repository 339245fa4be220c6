//! Atomic groups: steps that are two-phase transactions of their own.
//!
//! Each attempt has a fresh id, because a branch that aborted is fenced for good. Its commit record names the saga, so that after a crash the log
//! says whether it committed; one that is not there was presumed aborted.

use crate::{
    admission::Claim,
    client::NEVER,
    engine::{Engine, Pending},
    id::TransactionId,
    outcome::{AbortCode, AbortReason, BranchState},
    record::Record,
    saga::{Activity, DoneStep, Fate, Kind, Parent, Saga, SagaPhase, SagaRecord, StepWork},
    timer::Timer,
    transaction::{Branch, Outcome, Phase, Transaction},
};

impl Engine {
    pub(crate) fn start_group(&mut self, id: TransactionId, step: usize) {
        let branches = match self.saga(&id).map(|saga| saga.group_branches(id, step)) {
            Some(Ok(branches)) => branches,
            Some(Err(problem)) => {
                self.group_at_work(id, step, None);
                let reason = AbortReason::own(AbortCode::InvalidOperation, problem);
                return self.group_failed(Parent { saga: id, step }, reason);
            }
            None => return,
        };
        let mut names = branches.iter().map(|b| &b.participant);
        if let Some(away) = names.find_map(|name| self.reachable(name).err()) {
            self.group_at_work(id, step, None);
            let code = AbortCode::ParticipantUnavailable;
            let reason = AbortReason::own(code, away.to_string());
            return self.group_failed(Parent { saga: id, step }, reason);
        }
        let traceparent = self
            .table
            .find(&id)
            .map(|t| t.traceparent.clone())
            .unwrap_or_default();
        let unique = self.fresh_unique();
        let child = self.mint(unique);
        self.group_at_work(id, step, Some(child));
        self.table.insert(Transaction {
            id: child,
            request_id: None,
            fingerprint: 0,
            traceparent,
            deadline: NEVER,
            interactive: false,
            may_have_committed: false,
            answer_decided: false,
            waiters: Vec::new(),
            cancels: Vec::new(),
            branches,
            phase: Phase::Active,
            saga: None,
            parent: Some(Parent { saga: id, step }),
        });
        self.enqueue(Claim::Transaction(child));
    }

    /// It has its slots. Only now does its time begin: like any step it waits for them as long as its saga's time allows.
    pub(crate) fn group_starts(&mut self, parent: Parent, child: TransactionId) {
        let step = self
            .saga(&parent.saga)
            .and_then(|s| s.steps.get(parent.step));
        let Some(timeout_ms) = step.map(|s| s.definition.retry.attempt_timeout_ms) else {
            return;
        };
        let deadline = self.now.after_ms(timeout_ms);
        if let Some(transaction) = self.table.find_mut(&child) {
            transaction.deadline = deadline;
            self.timers.set(deadline, Timer::Deadline(child));
        }
    }

    fn group_at_work(&mut self, id: TransactionId, step: usize, child: Option<TransactionId>) {
        if let Some(found) = self.saga_mut(&id).and_then(|s| s.steps.get_mut(step)) {
            found.activity = Activity::Grouped;
            found.attempts += 1;
            found.group = child.or(found.group);
        }
    }

    /// Aborts the attempt, unless it is decided: then its end is waited for.
    pub(crate) fn abort_group(&mut self, id: TransactionId, step: usize) {
        let child = self.saga(&id).and_then(|s| s.steps.get(step)?.group);
        if let Some(child) = child {
            self.begin_abort(
                child,
                AbortReason::own(AbortCode::Client, "its saga turns back"),
            );
        }
    }

    /// A transaction that is the group of a saga's step has ended.
    pub(crate) fn group_ended(&mut self, parent: Parent, child: TransactionId, outcome: &Outcome) {
        let at_work = |saga: &Saga| {
            let step = saga.steps.get(parent.step)?;
            (step.activity == Activity::Grouped && step.group == Some(child)).then_some(())
        };
        if self.saga(&parent.saga).and_then(at_work).is_none() {
            return;
        }
        match outcome {
            Outcome::Committed => self.group_committed(parent, child),
            Outcome::Heuristic(None) => {
                self.note_heuristic(parent);
                self.group_committed(parent, child);
            }
            Outcome::Heuristic(Some(reason)) => {
                self.note_heuristic(parent);
                self.group_failed(parent, reason.clone());
            }
            Outcome::Aborted(reason) | Outcome::Compensated(reason) => {
                self.group_failed(parent, reason.clone())
            }
        }
    }

    fn note_heuristic(&mut self, parent: Parent) {
        if let Some(saga) = self.saga_mut(&parent.saga) {
            saga.heuristic = true;
        }
    }

    fn group_committed(&mut self, parent: Parent, child: TransactionId) {
        let read_only = self
            .table
            .find(&child)
            .is_some_and(|t| t.branches.iter().all(|b| b.state == BranchState::ReadOnly));
        if !read_only {
            self.mark_done(parent.saga, parent.step, None, String::new());
            return self.advance(parent.saga);
        }
        // Nothing in the log, and no marker anywhere, would tell after a crash that it was done; and a second time it might be refused.
        let step = DoneStep {
            position: parent.step as u32,
            compensation: false,
            result: None,
            resolution: String::new(),
        };
        self.promise(parent.saga, &step);
        let record = SagaRecord::Step {
            transaction: parent.saga,
            step: step.clone(),
        };
        self.append_then(Record::Saga(record), Pending::GroupDone(parent, step));
    }

    pub(crate) fn promise(&mut self, id: TransactionId, step: &DoneStep) {
        if let Some(saga) = self.saga_mut(&id) {
            saga.promised.push(step.clone());
        }
    }

    /// It is durable.
    pub(crate) fn keep_promise(&mut self, id: TransactionId, step: &DoneStep) {
        if let Some(saga) = self.saga_mut(&id)
            && let Some(at) = saga.promised.iter().position(|promised| promised == step)
        {
            saga.promised.swap_remove(at);
        }
    }

    /// The record of a group that changed nothing is durable.
    pub(crate) fn group_done(&mut self, parent: Parent, step: &DoneStep) {
        self.keep_promise(parent.saga, step);
        if let Some(found) = self
            .saga_mut(&parent.saga)
            .and_then(|s| s.steps.get_mut(parent.step))
        {
            found.fate = Fate::Done;
            found.activity = Activity::Idle;
            found.last_error.clear();
        }
        self.advance(parent.saga);
    }

    /// The attempt committed nothing.
    pub(crate) fn group_failed(&mut self, parent: Parent, reason: AbortReason) {
        let Some(saga) = self.saga(&parent.saga) else {
            return;
        };
        let key = saga.key(parent.saga, parent.step, false);
        let refusal = matches!(
            reason.code,
            AbortCode::Refused | AbortCode::InvalidOperation
        );
        if refusal
            && saga.steps[parent.step].kind() != Kind::Retriable
            && saga.phase == SagaPhase::Forward
        {
            return self.step_refused(key, reason);
        }
        // A participant that is away is waited for until the saga's time is up; and what a drain ends goes on after it.
        let counts = !matches!(
            reason.code,
            AbortCode::ParticipantUnavailable | AbortCode::CoordinatorRestart
        );
        self.step_failed(key, reason, counts);
    }
}

impl Saga {
    fn group_branches(&self, id: TransactionId, step: usize) -> Result<Vec<Branch>, String> {
        let StepWork::Group(branches) = &self.steps[step].definition.work else {
            return Ok(Vec::new());
        };
        let branch = |(number, (name, work)): (u32, &(crate::id::ParticipantName, super::Work))| {
            let mut branch = Branch::new(number, name.clone(), Some(work.payload.clone()));
            branch.values = self.values(id, &work.bindings)?;
            Ok(branch)
        };
        (1..).zip(branches).map(branch).collect()
    }
}
