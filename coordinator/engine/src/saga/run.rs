//! Steps on their way: what may start starts, waits for a slot, is sent, and is sent again.

use crate::{
    admission::Claim,
    effect::{Compensates, Downward, Event},
    engine::Engine,
    id::{BranchKey, Moment, SessionId, TransactionId},
    outcome::{AbortCode, AbortReason},
    saga::{Activity, Fate, Kind, Saga, SagaPhase, StepWork, Task, reference::resolve},
    timer::Timer,
};

/// How much longer than its own time an attempt may take before it is given up: the participant speaks first.
const GRACE_MS: u64 = 2_000;

impl Engine {
    /// Starts whatever can start now, and takes the saga to its next phase where nothing is left to do in this one.
    pub(crate) fn advance(&mut self, id: TransactionId) {
        let Some(saga) = self.saga(&id) else { return };
        match saga.phase {
            SagaPhase::Forward => self.go_forward(id),
            SagaPhase::Settling(_) => self.settle_saga(id),
            SagaPhase::Back(_) => self.go_back(id),
            SagaPhase::Locking | SagaPhase::Beginning | SagaPhase::Turning(_) => {}
        }
    }

    fn go_forward(&mut self, id: TransactionId) {
        let Some(saga) = self.saga(&id) else { return };
        if saga.steps.iter().all(|step| step.is_done()) {
            return self.end_saga(id);
        }
        for step in saga.ready() {
            self.start_task(id, step, Task::Act);
        }
    }

    /// Takes a step up: it waits for a slot at its participant. While the coordinator drains nothing is taken up any more.
    pub(crate) fn start_task(&mut self, id: TransactionId, step: usize, task: Task) {
        let draining = self.draining;
        let Some(saga) = self.saga_mut(&id).filter(|_| !draining) else {
            return;
        };
        let Some(found) = saga.steps.get_mut(step) else {
            return;
        };
        if found.activity == Activity::Idle {
            found.failures = 0;
        }
        if found.participant().is_none() {
            return self.start_group(id, step);
        }
        let key = saga.key(id, step, task == Task::Undo);
        self.enqueue(Claim::Step(key, task));
    }

    /// Takes those that wait for a slot out of the queue: what was sent is still answered, nothing more is sent.
    pub(crate) fn freeze_steps(&mut self) {
        let waiting = self.participants.values().flat_map(|p| p.waiting.values());
        let steps = waiting.filter_map(|claim| match claim {
            Claim::Step(key, _) => Some(*key),
            Claim::Transaction(_) => None,
        });
        for key in steps.collect::<Vec<_>>() {
            self.release_step(key);
            if let Some(saga) = self.saga_mut(&key.transaction)
                && let Some((step, _)) = saga.position(key.branch)
            {
                saga.steps[step].activity = Activity::Idle;
            }
        }
    }

    /// It has a slot on this session, and is sent there.
    pub(crate) fn send_step(&mut self, key: BranchKey, task: Task, session: SessionId) {
        let id = key.transaction;
        let settles = self.sessions.get(&session).is_some_and(|s| s.settles_steps);
        let Some((step, saga)) = self
            .saga_mut(&id)
            .and_then(|s| Some((s.position(key.branch)?.0, s)))
        else {
            return;
        };
        let message = match task {
            Task::Settle if settles => self.settle_message(key, step),
            Task::Settle if !saga.must_know(step) => {
                return self.leave_unsettled(key, step, session);
            }
            Task::Act | Task::Settle => self.action_message(key, step),
            Task::Undo => self.compensation_message(key, step),
        };
        let overdue = self.now.after_ms(match &message {
            Some(Ok(Downward::RunStep { timeout_ms, .. })) => timeout_ms.saturating_add(GRACE_MS),
            _ => crate::deliver::UNANSWERED_MS,
        });
        let now = self.now;
        let Some(found) = self.saga_mut(&id).and_then(|s| s.steps.get_mut(step)) else {
            return;
        };
        found.activity = Activity::Running(task, session, overdue);
        match message {
            None => {}
            Some(Ok(message)) => {
                match task {
                    Task::Undo => {
                        found.compensation_attempts += 1;
                        found.compensation_first_sent.get_or_insert(now);
                    }
                    Task::Act | Task::Settle => {
                        found.attempts += 1;
                        found.first_sent.get_or_insert(now);
                    }
                }
                self.timers.set(overdue, Timer::Step(key));
                self.send(session, message);
            }
            Some(Err(problem)) => {
                let reason = AbortReason::own(AbortCode::InvalidOperation, problem);
                match task {
                    Task::Act | Task::Undo => self.step_refused(key, reason),
                    // It may have been sent before, so that it can't be sent now tells nothing.
                    Task::Settle => self.step_failed(key, reason, true),
                }
            }
        }
    }

    fn action_message(&self, key: BranchKey, step: usize) -> Option<Result<Downward, String>> {
        let saga = self.saga(&key.transaction)?;
        let found = saga.steps.get(step)?;
        let StepWork::Single { action, .. } = &found.definition.work else {
            return None;
        };
        let values = match saga.values(key.transaction, &action.bindings) {
            Ok(values) => values,
            Err(problem) => return Some(Err(problem)),
        };
        Some(Ok(Downward::RunStep {
            key,
            step: found.definition.name.to_string(),
            operation: action.payload.clone(),
            values,
            compensates: None,
            keep_result: found.wanted,
            locks: saga.locks.clone(),
            token: saga.token,
            timeout_ms: found.definition.retry.attempt_timeout_ms,
            attempt: found.attempts + 1,
            age_ms: self.step_age_ms(key.transaction, step),
            traceparent: self.table.find(&key.transaction)?.traceparent.clone(),
        }))
    }

    fn compensation_message(
        &self,
        key: BranchKey,
        step: usize,
    ) -> Option<Result<Downward, String>> {
        let saga = self.saga(&key.transaction)?;
        let found = saga.steps.get(step)?;
        let compensation = found.compensation()?;
        let values = match saga.values(key.transaction, &compensation.bindings) {
            Ok(values) => values,
            Err(problem) => return Some(Err(problem)),
        };
        Some(Ok(Downward::RunStep {
            key,
            step: found.definition.name.to_string(),
            operation: compensation.payload.clone(),
            values,
            compensates: Some(Compensates {
                branch: saga.key(key.transaction, step, false).branch,
                unsettled: found.fate == Fate::Open,
                result: found.result.clone(),
            }),
            keep_result: false,
            locks: saga.locks.clone(),
            token: saga.token,
            timeout_ms: found.definition.retry.attempt_timeout_ms,
            attempt: found.compensation_attempts + 1,
            age_ms: self.compensation_age_ms(key.transaction, step),
            traceparent: self.table.find(&key.transaction)?.traceparent.clone(),
        }))
    }

    /// How long ago it may have been sent for the first time; what an earlier incarnation sent may be as old as the saga.
    pub(crate) fn step_age_ms(&self, id: TransactionId, step: usize) -> u64 {
        let Some(saga) = self.saga(&id) else { return 0 };
        let first = saga.steps.get(step).and_then(|s| s.first_sent);
        self.age_ms(id, saga.replayed, first)
    }

    /// The same of its compensation. Whether there is anything to undo is told by the action's marker, where that is not known; so then it is
    /// as old as the action.
    fn compensation_age_ms(&self, id: TransactionId, step: usize) -> u64 {
        let Some((saga, found)) = self.saga(&id).and_then(|s| Some((s, s.steps.get(step)?))) else {
            return 0;
        };
        match found.fate {
            Fate::Open => self.step_age_ms(id, step),
            Fate::Done | Fate::Never => {
                self.age_ms(id, saga.turn_replayed, found.compensation_first_sent)
            }
        }
    }

    fn age_ms(&self, id: TransactionId, replayed: bool, first: Option<Moment>) -> u64 {
        if replayed {
            self.unix_ms().saturating_sub(id.unix_ms()).max(1)
        } else {
            first.map_or(0, |first| self.now.0.saturating_sub(first.0).max(1))
        }
    }

    /// An attempt was in vain. `counts`: it uses up one of those that the policy allows.
    pub(crate) fn step_failed(&mut self, key: BranchKey, reason: AbortReason, counts: bool) {
        let id = key.transaction;
        self.release_step(key);
        let Some((step, saga)) = self
            .saga_mut(&id)
            .and_then(|s| Some((s.position(key.branch)?.0, s)))
        else {
            return;
        };
        let forward = saga.phase == SagaPhase::Forward;
        let found = &mut saga.steps[step];
        let Some(task) = found.activity.task() else {
            return;
        };
        found.last_error.clone_from(&reason.message);
        found.failures += u32::from(counts);
        let limit = found.definition.retry.max_attempts;
        if task == Task::Act
            && (!forward || found.kind() != Kind::Retriable && found.failures >= limit)
        {
            found.activity = Activity::Idle;
            return if forward {
                self.want_turn(id, reason)
            } else {
                self.advance(id)
            };
        }
        let stuck = counts && found.failures == limit;
        self.pause_step(key, task);
        if stuck {
            self.report_stuck(id, step, task, reason.message);
        }
    }

    fn report_stuck(&mut self, id: TransactionId, step: usize, task: Task, message: String) {
        let Some(name) = self
            .saga(&id)
            .and_then(|s| Some(s.steps.get(step)?.definition.name.to_string()))
        else {
            return;
        };
        self.report(Event::Stuck {
            transaction: id,
            step: name,
            compensation: task == Task::Undo,
            message,
        });
    }

    /// Waits before the next attempt: twice as long after each, spread by up to a half so that many do not come back at once.
    fn pause_step(&mut self, key: BranchKey, task: Task) {
        let now = self.now;
        let Some((step, saga)) = self
            .saga_mut(&key.transaction)
            .and_then(|s| Some((s.position(key.branch)?.0, s)))
        else {
            return;
        };
        let found = &mut saga.steps[step];
        let retry = &found.definition.retry;
        let tries = match task {
            Task::Act | Task::Settle => found.attempts,
            Task::Undo => found.compensation_attempts,
        };
        let doublings = tries.saturating_sub(1).min(20);
        let pause = retry
            .first_backoff_ms
            .saturating_mul(1 << doublings)
            .clamp(1, retry.max_backoff_ms.max(1));
        let mixed = key.transaction.unique as u64
            ^ u64::from(key.branch) << 32
            ^ u64::from(tries).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let until = now.after_ms(pause - mixed % (pause / 2 + 1));
        found.activity = Activity::Paused(task, until);
        self.timers.set(until, Timer::Step(key));
    }

    /// The attempt is overdue, or the pause over.
    pub(crate) fn step_is_due(&mut self, at: Moment, key: BranchKey) {
        let Some((step, saga)) = self
            .saga(&key.transaction)
            .and_then(|s| Some((s.position(key.branch)?.0, s)))
        else {
            return;
        };
        match saga.steps[step].activity {
            Activity::Running(_, _, overdue) if overdue == at => {
                let message = "no answer came in time".to_owned();
                self.step_unknown(key, AbortReason::own(AbortCode::Timeout, message), true);
            }
            Activity::Paused(task, until) if until == at => {
                self.start_task(key.transaction, step, task)
            }
            Activity::Idle
            | Activity::Queued(..)
            | Activity::Running(..)
            | Activity::Paused(..)
            | Activity::Grouped => {}
        }
    }

    /// Gives its slot back, or its place in the queue.
    pub(crate) fn release_step(&mut self, key: BranchKey) {
        let Some((step, saga)) = self
            .saga(&key.transaction)
            .and_then(|s| Some((s.position(key.branch)?.0, s)))
        else {
            return;
        };
        let activity = saga.steps[step].activity;
        let name = saga.steps[step].participant().cloned();
        match activity {
            Activity::Running(_, session, overdue) => {
                self.timers.clear(overdue, Timer::Step(key));
                if let Some(session) = self.sessions.get_mut(&session) {
                    session.held.remove(&key);
                }
                if let Some(name) = name {
                    self.queue.free(name);
                }
            }
            Activity::Queued(task, place) => self.leave_place(place, &Claim::Step(key, task)),
            Activity::Paused(_, until) => self.timers.clear(until, Timer::Step(key)),
            Activity::Idle | Activity::Grouped => {}
        }
    }

    /// An operator wants everything tried now.
    pub(crate) fn retry_saga(&mut self, id: TransactionId) {
        let Some(saga) = self.saga(&id) else { return };
        let paused: Vec<_> = saga
            .steps
            .iter()
            .enumerate()
            .filter_map(|(step, found)| match found.activity {
                Activity::Paused(task, until) => Some((step, task, until)),
                Activity::Idle
                | Activity::Queued(..)
                | Activity::Running(..)
                | Activity::Grouped => None,
            })
            .collect();
        for (step, task, until) in paused {
            if let Some(key) = self.saga(&id).map(|s| s.key(id, step, task == Task::Undo)) {
                self.timers.clear(until, Timer::Step(key));
            }
            self.start_task(id, step, task);
        }
    }
}

impl Saga {
    /// Steps that may start.
    fn ready(&self) -> Vec<usize> {
        let may_start = |step: &usize| {
            let found = &self.steps[*step];
            found.fate == Fate::Open
                && found.is_idle()
                && self.is_open(found.kind())
                && found
                    .after
                    .iter()
                    .all(|before| self.steps[*before].is_done())
        };
        (0..self.steps.len()).filter(may_start).collect()
    }

    /// The values that go in the places of references.
    pub(crate) fn values(
        &self,
        id: TransactionId,
        bindings: &[super::Binding],
    ) -> Result<Vec<crate::effect::Bound>, String> {
        resolve(bindings, id, |name| {
            let step = self.steps.iter().find(|s| s.definition.name == *name)?;
            step.result.as_deref()
        })
    }
}

impl Activity {
    /// What for.
    pub(crate) fn task(self) -> Option<Task> {
        match self {
            Activity::Queued(task, _) | Activity::Running(task, ..) | Activity::Paused(task, _) => {
                Some(task)
            }
            Activity::Grouped => Some(Task::Act),
            Activity::Idle => None,
        }
    }
}
