//! An operator: ends by hand what hangs, and tells the coordinator the truth about it.

use unanimity_engine::{
    BranchKey, InDoubtKind, Input, Resolution, StepState, StepView, StepWork, TransactionId,
};

use super::{World, client::Purpose, event::Event};
use crate::{
    database::Step,
    fact::Fact,
    plan::{Act, Ask},
    work::Work,
};

impl World {
    /// Ends a branch whose decision can't be delivered, at its database, and says so.
    pub(super) fn operator_resolves(&mut self, commit: bool) {
        let Some(engine) = &self.engine else { return };
        let hangs =
            |kind: InDoubtKind| matches!(kind, InDoubtKind::Committing | InDoubtKind::Aborting);
        let listed = engine
            .in_doubt()
            .into_iter()
            .filter(|view| hangs(view.kind));
        let found = listed.into_iter().find_map(|view| {
            let site = self.sites.iter().position(|s| s.name == view.participant)?;
            let prepared = self.sites[site].database.prepared();
            let key = prepared
                .into_iter()
                .find(|key| key.to_string() == view.identifier)?;
            Some((site, key))
        });
        let Some((site, branch)) = found else { return };
        self.figures.landed("operator_resolves");
        self.sites[site].database.by_hand(branch, commit);
        self.note_changes(site);
        let resolution = if commit {
            Resolution::Committed
        } else {
            Resolution::Aborted
        };
        let ticket = self.ticket(Purpose::Bystander);
        self.send_call(
            ticket,
            Input::Resolve {
                ticket,
                branch,
                resolution,
                reason: "ended at the console".into(),
            },
        );
    }

    /// Looks after sagas that are stuck, now and then: that is what a human is for. What an operator did by hand has no result, and a step that
    /// refers to it can't be sent again.
    pub(super) fn operate(&mut self) {
        self.events.at(self.now + 1_000, Event::Operates);
        self.resolve_step(|step| step.stuck);
    }

    /// Does a step that is being tried, whether it needs that or not.
    pub(super) fn operator_resolves_step(&mut self) {
        if self.resolve_step(|_| true) {
            self.figures.landed("operator_resolves_step");
        }
    }

    /// Does a step, or its compensation, under its own marker, and says so.
    fn resolve_step(&mut self, chosen: impl Fn(&StepView) -> bool) -> bool {
        let found = self.step_in_vain(chosen).filter(|_| self.serving);
        let Some((transaction, position, undo)) = found else {
            return false;
        };
        let Some((name, participant, work, count)) = self.work_of_step(transaction, position, undo)
        else {
            return false;
        };
        let Some(site) = self
            .sites
            .iter()
            .position(|s| s.name.as_str() == participant)
        else {
            return false;
        };
        let action = BranchKey {
            transaction,
            branch: position as u32 + 1,
        };
        let number = position as u32 + 1 + if undo { count as u32 } else { 0 };
        let step = Step {
            key: BranchKey {
                transaction,
                branch: number,
            },
            work,
            locks: &[],
            token: 0,
            bound: false,
        };
        let database = &mut self.sites[site].database;
        let done = if undo {
            database.compensate(step, action, true)
        } else {
            database.execute_step(step)
        };
        self.note_changes(site);
        if !matches!(done, unanimity_engine::StepOutcome::Done(_)) {
            return false;
        }
        // At once: the call does not say whether the action or the compensation was done, so the saga must not have turned in between.
        let ticket = self.ticket(Purpose::Bystander);
        self.fact(&Fact::Called(ticket));
        self.feed(Input::ResolveStep {
            ticket,
            transaction,
            step: name,
            reason: "done at the console".into(),
        });
        true
    }

    /// A step that is being tried: its saga, its position, and whether it is undone.
    fn step_in_vain(
        &self,
        chosen: impl Fn(&StepView) -> bool,
    ) -> Option<(TransactionId, usize, bool)> {
        let engine = self.engine.as_ref()?;
        engine.transactions(None).find_map(|view| {
            let saga = view.saga?;
            let tried = |state: StepState| {
                matches!(
                    state,
                    StepState::Running
                        | StepState::Settling
                        | StepState::Retrying
                        | StepState::Compensating
                )
            };
            let single = |at: &usize| saga.steps[*at].participants.len() == 1;
            let at = (0..saga.steps.len())
                .filter(single)
                .find(|at| tried(saga.steps[*at].state) && chosen(&saga.steps[*at]))?;
            Some((view.id, at, saga.steps[at].state == StepState::Compensating))
        })
    }

    /// As its client defined it: its name, its participant, what is to be done, and how many steps its saga has.
    fn work_of_step(
        &self,
        saga: TransactionId,
        position: usize,
        undo: bool,
    ) -> Option<(String, String, Work, usize)> {
        let view = self.engine.as_ref()?.transaction(&saga)?;
        let number: usize = view.request_id.strip_prefix("request-")?.parse().ok()?;
        let entry = self.plan.entries.iter().find(|e| e.number == number)?;
        let Act::Ask(request) = &entry.act else {
            return None;
        };
        let Ask::Saga { steps, .. } = &request.ask else {
            return None;
        };
        let StepWork::Single {
            participant,
            action,
            compensation,
        } = &steps.get(position)?.work
        else {
            return None;
        };
        let work = if undo { compensation.as_ref()? } else { action };
        // He is bound by no rule of the business: what hangs must come to an end.
        let work = Work {
            checked: false,
            refused: false,
            ..Work::decode(&work.payload)
        };
        let (name, participant) = (steps[position].name.to_string(), participant.to_string());
        Some((name, participant, work, steps.len()))
    }
}
