//! What clients ask: submit, begin, execute, commit, abort.

use crate::{
    admission::Claim,
    effect::{Answer, Downward, Refusal},
    engine::Engine,
    id::{BranchKey, Moment, ParticipantName, RequestId, SessionId, Ticket, TransactionId},
    input::{Begin, Payload, Submit},
    outcome::{AbortCode, AbortReason, BranchState},
    timer::Timer,
    transaction::{Branch, Outcome, Phase, Transaction},
};

/// How much longer a repeated call may have been on its way than the first one.
const ARRIVAL_MS: u64 = 30_000;

/// How many calls may wait for one transaction.
pub(crate) const WAITERS_MAX: usize = 64;

impl Engine {
    pub(crate) fn submit(&mut self, submit: Submit) {
        let given = submit
            .branches
            .iter()
            .map(|(_, work)| work.len())
            .sum::<usize>();
        let names: Vec<_> = submit
            .branches
            .iter()
            .map(|(name, _)| name.clone())
            .collect();
        if names.is_empty() {
            let problem = "at least one branch is needed".into();
            return self.refuse(
                submit.ticket,
                Refusal::Invalid {
                    field: "branches".into(),
                    problem,
                },
            );
        }
        if given > self.settings.max_payload_bytes {
            let limit = self.settings.max_payload_bytes;
            return self.refuse(submit.ticket, Refusal::PayloadTooLarge { given, limit });
        }
        if self.repeats(
            submit.ticket,
            &submit.request_id,
            submit.fingerprint,
            submit.answer_decided,
        ) {
            return;
        }
        if let Some(refusal) = self.may_have_run(&submit.request_id, submit.unique, submit.age_ms) {
            return self.refuse(submit.ticket, refusal);
        }
        if let Err(refusal) = self.may_start("branches", &names) {
            return self.refuse(submit.ticket, refusal);
        }
        let may_have_committed = self.may_have_committed(&submit);
        let branches = submit.branches.into_iter().zip(1..);
        let transaction = Transaction {
            id: self.mint(submit.unique),
            request_id: submit.request_id,
            fingerprint: submit.fingerprint,
            traceparent: submit.traceparent,
            deadline: self.now.after_ms(submit.timeout_ms),
            interactive: false,
            may_have_committed,
            answer_decided: submit.answer_decided,
            waiters: vec![submit.ticket],
            cancels: Vec::new(),
            branches: branches
                .map(|((name, work), number)| Branch::new(number, name, Some(work)))
                .collect(),
            phase: Phase::Active,
            saga: None,
            parent: None,
        };
        self.take_on(transaction);
    }

    /// Whether it may have committed in one phase already, before this incarnation began.
    fn may_have_committed(&self, submit: &Submit) -> bool {
        let [(name, _)] = &submit.branches[..] else {
            return false;
        };
        let participant = self.participants.get(name);
        let here_ms = self.now.0 - self.began.0;
        submit.request_id.is_some()
            && submit.age_ms > 0
            && submit.age_ms + ARRIVAL_MS >= here_ms
            && participant.is_some_and(|participant| participant.one_phase)
    }

    pub(crate) fn begin(&mut self, begin: Begin) {
        if self.repeats(begin.ticket, &begin.request_id, 0, true) {
            return;
        }
        if let Some(refusal) = self.may_have_run(&begin.request_id, begin.unique, begin.age_ms) {
            return self.refuse(begin.ticket, refusal);
        }
        if let Err(refusal) = self.may_start("participants", &begin.participants) {
            return self.refuse(begin.ticket, refusal);
        }
        let transaction = Transaction {
            id: self.mint(begin.unique),
            request_id: begin.request_id,
            fingerprint: 0,
            traceparent: begin.traceparent,
            deadline: self.now.after_ms(begin.timeout_ms),
            interactive: true,
            may_have_committed: false,
            answer_decided: false,
            waiters: vec![begin.ticket],
            cancels: Vec::new(),
            branches: begin
                .participants
                .into_iter()
                .zip(1..)
                .map(|(name, n)| Branch::new(n, name, None))
                .collect(),
            phase: Phase::Active,
            saga: None,
            parent: None,
        };
        self.take_on(transaction);
    }

    pub(crate) fn take_on(&mut self, transaction: Transaction) {
        let (id, deadline) = (transaction.id, transaction.deadline);
        self.table.insert(transaction);
        self.timers.set(deadline, Timer::Deadline(id));
        self.enqueue(Claim::Transaction(id));
    }

    pub(crate) fn mint(&self, unique: u128) -> TransactionId {
        TransactionId {
            log: self.log,
            epoch: self.epoch,
            unique,
        }
    }

    /// A request id that came before gets the first one's answer. True where that settled the call.
    pub(crate) fn repeats(
        &mut self,
        ticket: Ticket,
        request: &Option<RequestId>,
        fingerprint: u64,
        decided: bool,
    ) -> bool {
        let Some(request) = request else { return false };
        let Some(first) = self.table.by_request(request) else {
            return false;
        };
        let (id, same) = (
            first.id,
            first.fingerprint == fingerprint || first.fingerprint == UNKNOWN_FINGERPRINT,
        );
        let begun = first.saga.as_ref().is_some_and(|saga| saga.has_begun());
        let answerable = match first.phase {
            Phase::Ended(_) | Phase::Aborting(_) => true,
            Phase::Saga => decided && begun,
            Phase::Active => first.interactive,
            _ => false,
        };
        let answerable = answerable || decided && matches!(first.phase, Phase::Committing);
        let interrupted = self.draining && first.phase == Phase::Saga;
        if !same {
            self.refuse(ticket, Refusal::RequestIdReused(request.as_str().into()));
        } else if answerable {
            self.answer_view(ticket, &id);
        } else if interrupted {
            self.refuse(ticket, Refusal::Interrupted(id));
        } else {
            self.wait(ticket, &id);
            if let Some(saga) = self.saga_mut(&id).filter(|_| decided) {
                saga.early.push(ticket);
                let left_behind = saga.early.len().saturating_sub(WAITERS_MAX);
                saga.early.drain(..left_behind);
            }
        }
        true
    }

    /// Lets a call wait for a transaction's end. Those who have waited longest are told to ask again where there are too many: a client that
    /// repeats its call has left the earlier ones behind.
    fn wait(&mut self, ticket: Ticket, id: &TransactionId) {
        let Some(transaction) = self.table.find_mut(id) else {
            return;
        };
        transaction.waiters.push(ticket);
        if transaction.waiters.len() <= WAITERS_MAX {
            return;
        }
        let oldest = transaction.waiters.remove(0);
        self.put_off(oldest, *id);
    }

    /// Too late to abort, and too early to say that it commits: the record may not reach the disk, or the branch may refuse.
    fn wait_for_decision(&mut self, ticket: Ticket, id: TransactionId) {
        let Some(transaction) = self.table.find_mut(&id) else {
            return;
        };
        transaction.cancels.push(ticket);
        if transaction.cancels.len() <= WAITERS_MAX {
            return;
        }
        let oldest = transaction.cancels.remove(0);
        self.put_off(oldest, id);
    }

    /// Whoever has waited longest is told to ask again.
    fn put_off(&mut self, ticket: Ticket, id: TransactionId) {
        let unsettled = self
            .table
            .find(&id)
            .and_then(|t| t.branches.iter().find(|b| !b.state.is_settled()));
        let participant = unsettled
            .map(|b| b.participant.to_string())
            .unwrap_or_default();
        let refusal = Refusal::OutcomePending {
            transaction: id,
            participant,
        };
        self.refuse(ticket, refusal);
    }

    /// It is decided: those who wanted it aborted learn whether they came too late.
    pub(crate) fn answer_cancels(&mut self, id: &TransactionId) {
        let Some(transaction) = self.table.find_mut(id) else {
            return;
        };
        let commits = matches!(
            transaction.phase,
            Phase::Committing | Phase::Ended(Outcome::Committed | Outcome::Heuristic(None))
        );
        for ticket in std::mem::take(&mut transaction.cancels) {
            if commits {
                self.refuse(ticket, Refusal::TransactionDecided(*id));
            } else {
                self.answer_view(ticket, id);
            }
        }
    }

    /// A request that comes again, and whose first outcome may be forgotten, must not run again.
    pub(crate) fn may_have_run(
        &self,
        request: &Option<RequestId>,
        unique: u128,
        age_ms: u64,
    ) -> Option<Refusal> {
        let request = request.as_ref().filter(|_| age_ms > 0)?;
        let now = self.mint(unique).unix_ms();
        let first_sent = now.saturating_sub(age_ms.saturating_add(ARRIVAL_MS));
        self.table
            .may_have_forgotten(first_sent)
            .then(|| Refusal::RequestIdForgotten(request.as_str().into()))
    }

    pub(crate) fn may_take_on(&self) -> Result<(), Refusal> {
        if self.draining {
            return Err(Refusal::Draining);
        }
        if self.in_flight() >= self.settings.max_in_flight {
            return Err(Refusal::TooManyTransactions(self.settings.max_in_flight));
        }
        Ok(())
    }

    fn may_start(&self, field: &str, names: &[ParticipantName]) -> Result<(), Refusal> {
        self.may_take_on()?;
        if names.len() > self.settings.max_branches {
            return Err(Refusal::TooManyBranches {
                given: names.len(),
                limit: self.settings.max_branches,
            });
        }
        for (index, name) in names.iter().enumerate() {
            if names[..index].contains(name) {
                let problem = format!(
                    "participant {name} is named twice; put its operations into one branch"
                );
                return Err(Refusal::Invalid {
                    field: format!("{field}[{index}]"),
                    problem,
                });
            }
            self.reachable(name)?;
        }
        Ok(())
    }

    pub(crate) fn reachable(&self, name: &ParticipantName) -> Result<(), Refusal> {
        match self.participants.get(name) {
            Some(participant) if !participant.sessions.is_empty() => Ok(()),
            Some(participant) if participant.registered => {
                Err(Refusal::ParticipantUnavailable(name.as_str().into()))
            }
            Some(_) | None => Err(Refusal::ParticipantUnknown(name.as_str().into())),
        }
    }

    pub(crate) fn execute(
        &mut self,
        ticket: Ticket,
        id: TransactionId,
        name: ParticipantName,
        operation: Payload,
    ) {
        let (number, session) = match self.open_branch(&id, &name, None) {
            Ok(found) => found,
            Err(refusal) => return self.refuse(ticket, refusal),
        };
        if operation.len() > self.settings.max_payload_bytes {
            let (given, limit) = (operation.len(), self.settings.max_payload_bytes);
            return self.refuse(ticket, Refusal::PayloadTooLarge { given, limit });
        }
        let Some(transaction) = self.table.find_mut(&id) else {
            return;
        };
        let timeout_ms = transaction.deadline.0.saturating_sub(self.now.0).max(1);
        let Some(branch) = transaction.branch_mut(number) else {
            return;
        };
        let open = branch.state == BranchState::Waiting;
        branch.state = BranchState::Active;
        branch.executes += 1;
        let sequence = branch.executes;
        branch.executing.push((sequence, ticket));
        let key = BranchKey {
            transaction: id,
            branch: number,
        };
        self.send(
            session,
            Downward::Execute {
                key,
                sequence,
                open,
                operation,
                timeout_ms,
            },
        );
    }

    /// The branch of an open transaction at a participant, made now if need be, with its session. `only`: the session it must be on.
    fn open_branch(
        &mut self,
        id: &TransactionId,
        name: &ParticipantName,
        only: Option<SessionId>,
    ) -> Result<(u32, SessionId), Refusal> {
        let transaction = self
            .table
            .find(id)
            .ok_or_else(|| Refusal::TransactionUnknown(id.to_string()))?;
        if let Some(reason) = transaction.abort_reason() {
            return Err(Refusal::TransactionAborted {
                transaction: *id,
                reason: reason.clone(),
            });
        }
        if transaction.phase != Phase::Active {
            return Err(Refusal::TransactionNotOpen(*id));
        }
        let found = transaction.branches.iter().find(|b| b.participant == *name);
        if let Some((number, Some(session))) = found.map(|b| (b.number, b.session)) {
            return if only.is_none_or(|only| only == session) {
                Ok((number, session))
            } else {
                self.move_unused(id, number, only)
            };
        }
        self.reachable(name)?;
        if transaction.branches.len() >= self.settings.max_branches {
            let limit = self.settings.max_branches;
            return Err(Refusal::TooManyBranches {
                given: limit + 1,
                limit,
            });
        }
        let free = |s: &SessionId| {
            self.sessions
                .get(s)
                .is_some_and(|s| s.held.len() < s.capacity as usize)
        };
        let session = only
            .filter(free)
            .or_else(|| self.free_session(name).filter(|_| only.is_none()));
        let session = session.ok_or_else(|| Refusal::ParticipantBusy(name.as_str().into()))?;
        let transaction = self.table.find_mut(id).expect("found above");
        let number = transaction.branches.len() as u32 + 1;
        transaction
            .branches
            .push(Branch::new(number, name.clone(), None));
        self.take_slot(
            BranchKey {
                transaction: *id,
                branch: number,
            },
            session,
        );
        Ok((number, session))
    }

    /// A service enlists on its own session, while the slot was granted on another of the same participant: moves the slot.
    fn move_unused(
        &mut self,
        id: &TransactionId,
        number: u32,
        only: Option<SessionId>,
    ) -> Result<(u32, SessionId), Refusal> {
        let unused = self
            .table
            .find(id)
            .and_then(|t| t.branch(number))
            .is_some_and(|b| b.state == BranchState::Waiting);
        let (Some(session), true) = (only, unused) else {
            return Err(Refusal::TransactionNotOpen(*id));
        };
        if let Some(full) = self
            .sessions
            .get(&session)
            .filter(|s| s.held.len() >= s.capacity as usize)
        {
            return Err(Refusal::ParticipantBusy(full.participant.as_str().into()));
        }
        let key = BranchKey {
            transaction: *id,
            branch: number,
        };
        self.release(key);
        self.take_slot(key, session);
        Ok((number, session))
    }

    pub(crate) fn enlist(
        &mut self,
        session: SessionId,
        correlation: u64,
        id: Option<TransactionId>,
    ) {
        let result = self.enlisted(session, id);
        self.send(
            session,
            Downward::Enlisted {
                correlation,
                result,
            },
        );
    }

    fn enlisted(
        &mut self,
        session: SessionId,
        id: Option<TransactionId>,
    ) -> Result<BranchKey, String> {
        let id = id.ok_or_else(|| crate::id::MalformedId.to_string())?;
        let name = self
            .sessions
            .get(&session)
            .map(|s| s.participant.clone())
            .ok_or("the session is closed")?;
        let (number, _) = self
            .open_branch(&id, &name, Some(session))
            .map_err(|refusal| refusal.to_string())?;
        let branch = self
            .table
            .find_mut(&id)
            .and_then(|t| t.branch_mut(number))
            .ok_or("the branch is gone")?;
        if branch.state != BranchState::Waiting {
            return Err(format!(
                "participant {name} already takes part in transaction {id}"
            ));
        }
        branch.state = BranchState::Active;
        Ok(BranchKey {
            transaction: id,
            branch: number,
        })
    }

    pub(crate) fn executed(
        &mut self,
        session: SessionId,
        key: BranchKey,
        sequence: u64,
        result: Result<Payload, AbortReason>,
    ) {
        let Some(branch) = self
            .table
            .find_mut(&key.transaction)
            .and_then(|t| t.branch_mut(key.branch))
        else {
            return;
        };
        if branch.session != Some(session) {
            return;
        }
        let Some(index) = branch.executing.iter().position(|(s, _)| *s == sequence) else {
            return;
        };
        let (_, ticket) = branch.executing.swap_remove(index);
        // After its vote nothing of the branch can fail any more.
        let active = branch.state == BranchState::Active;
        match result {
            Ok(rows) => self.answer(ticket, Ok(Answer::Executed(rows))),
            Err(mut reason) => {
                reason.participant = branch.participant.as_str().into();
                let transaction = key.transaction;
                self.refuse(
                    ticket,
                    Refusal::TransactionAborted {
                        transaction,
                        reason: reason.clone(),
                    },
                );
                if active {
                    self.settle(key, BranchState::Aborted);
                    self.begin_abort(transaction, reason);
                }
            }
        }
    }

    pub(crate) fn commit(&mut self, ticket: Ticket, id: TransactionId, answer_decided: bool) {
        let Some(transaction) = self.table.find_mut(&id) else {
            return self.lookup(ticket, id); // From before a restart: what became of it is the answer.
        };
        match transaction.phase {
            Phase::Active if transaction.interactive => {
                transaction.answer_decided = answer_decided;
                transaction.waiters.push(ticket);
                self.commit_active(id);
            }
            Phase::Waiting { .. } | Phase::Saga => {
                self.refuse(ticket, Refusal::TransactionNotOpen(id));
            }
            Phase::Ended(_) | Phase::Aborting(_) => self.answer_view(ticket, &id),
            Phase::Committing if answer_decided => self.answer_view(ticket, &id),
            Phase::Active
            | Phase::Preparing
            | Phase::Delegated { .. }
            | Phase::Deciding
            | Phase::Committing => self.wait(ticket, &id),
        }
    }

    pub(crate) fn abort_call(&mut self, ticket: Ticket, id: TransactionId, reason: AbortReason) {
        let Some(transaction) = self.table.find(&id) else {
            return self.lookup(ticket, id);
        };
        match transaction.phase {
            Phase::Waiting { .. } | Phase::Active | Phase::Preparing => {
                self.begin_abort(id, reason);
                self.answer_view(ticket, &id);
            }
            Phase::Aborting(_)
            | Phase::Ended(
                Outcome::Aborted(_) | Outcome::Compensated(_) | Outcome::Heuristic(Some(_)),
            ) => {
                self.answer_view(ticket, &id);
            }
            Phase::Saga => self.cancel_saga(ticket, id, reason),
            Phase::Delegated { .. } | Phase::Deciding => self.wait_for_decision(ticket, id),
            Phase::Committing | Phase::Ended(Outcome::Committed | Outcome::Heuristic(None)) => {
                self.refuse(ticket, Refusal::TransactionDecided(id));
            }
        }
    }

    pub(crate) fn drain(&mut self) {
        self.draining = true;
        self.freeze_steps();
        let reason = AbortReason::own(
            AbortCode::CoordinatorRestart,
            "the coordinator is shutting down",
        );
        for id in self.sagas_without_locks() {
            self.give_up_locks(id, reason.clone());
        }
        self.interrupt_sagas();
        let open = |t: &&Transaction| matches!(t.phase, Phase::Waiting { .. } | Phase::Active);
        let undecided: Vec<_> = self.table.after(None).filter(open).map(|t| t.id).collect();
        for id in undecided {
            self.begin_abort(id, reason.clone());
        }
    }

    pub(crate) fn time_is_up(&mut self, id: TransactionId) {
        let Some(transaction) = self.table.find(&id) else {
            return;
        };
        match transaction.phase {
            Phase::Waiting { .. } | Phase::Active | Phase::Preparing => {
                let late: Vec<_> = transaction
                    .branches
                    .iter()
                    .filter(|b| !b.state.is_settled() && b.state != BranchState::Prepared)
                    .collect();
                let waiting_for = late
                    .iter()
                    .map(|b| b.participant.as_str())
                    .collect::<Vec<_>>()
                    .join(", ");
                let message = match (&transaction.phase, transaction.interactive) {
                    (Phase::Waiting { .. }, _) => {
                        format!("time was up while waiting for a slot at: {waiting_for}")
                    }
                    (Phase::Active, _) => "time was up before the client committed".to_owned(),
                    _ => format!("time was up while waiting for the vote of: {waiting_for}"),
                };
                self.begin_abort(id, AbortReason::own(AbortCode::Timeout, message));
            }
            Phase::Delegated { .. } => self.ask_for_proof(id),
            Phase::Saga => self.saga_is_late(id),
            Phase::Deciding if cfg!(unanimity_bug = "deadline-aborts-decided") => {
                if let Some(transaction) = self.table.find_mut(&id) {
                    transaction.phase = Phase::Preparing;
                }
                let message = "time was up before the decision was durable";
                self.begin_abort(id, AbortReason::own(AbortCode::Timeout, message));
            }
            Phase::Deciding | Phase::Committing | Phase::Aborting(_) | Phase::Ended(_) => {}
        }
    }
}

/// Of a transaction whose content this incarnation never saw.
pub(crate) const UNKNOWN_FINGERPRINT: u64 = u64::MAX;

/// A deadline that never comes.
pub(crate) const NEVER: Moment = Moment(u64::MAX);
