//! Sagas while the coordinator drains. They may have hours to go, and lose nothing by a restart: nobody waits for their end.

use crate::{
    effect::Refusal,
    engine::Engine,
    id::TransactionId,
    saga::{Activity, Saga},
    transaction::{Phase, Transaction},
};

impl Engine {
    /// It was told to drain, and nothing is left to wait for: of sagas only the steps that are on their way.
    pub fn is_drained(&self) -> bool {
        let at_rest = |t: &Transaction| match (&t.phase, &t.saga) {
            (Phase::Ended(_), _) => true,
            (Phase::Saga, Some(saga)) => saga.is_at_rest(),
            _ => false,
        };
        self.draining && (self.in_flight() == 0 || self.table.after(None).all(at_rest))
    }

    /// Sagas that have begun and not ended.
    pub fn live_sagas(&self) -> usize {
        let live = |t: &&Transaction| t.phase == Phase::Saga;
        self.table.after(None).filter(live).count()
    }

    /// Tells everybody who waits for a saga to ask again after the restart.
    pub(crate) fn interrupt_sagas(&mut self) {
        let live = |t: &&Transaction| t.phase == Phase::Saga;
        let ids: Vec<TransactionId> = self.table.after(None).filter(live).map(|t| t.id).collect();
        for id in ids {
            let Some(transaction) = self.table.find_mut(&id) else {
                continue;
            };
            let mut tickets = std::mem::take(&mut transaction.waiters);
            if let Some(saga) = &mut transaction.saga {
                tickets.append(&mut saga.cancels);
            }
            for ticket in tickets {
                self.refuse(ticket, Refusal::Interrupted(id));
            }
        }
    }
}

impl Saga {
    fn is_at_rest(&self) -> bool {
        let on_its_way = |activity| matches!(activity, Activity::Running(..));
        !self.steps.iter().any(|step| on_its_way(step.activity))
    }
}
