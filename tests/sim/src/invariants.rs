//! What must hold in every life. Each invariant is a file by its name, and sees the facts alone: so it can be shown a forged history.

mod admission;
mod agreement;
mod answered_once;
mod boundedness;
mod conservation;
mod decision_stable;
mod durable_before_told;
mod exactly_once;
mod heuristics_reported;
mod ledger;
mod liveness;
mod lock_exclusion;
mod no_late_prepare_survives;
mod no_peer_is_blamed;
mod presume_abort_only_for_ours;
mod read_only_leaves;
mod record_reads_back;
mod replay_idempotent;
mod saga_order;
mod unanimity;
mod unknown_is_not_done;

use crate::fact::{End, Fact};

pub(crate) use ledger::Ledger;

/// What an invariant says: where it does not hold, what is wrong.
pub(crate) type Verdict = Result<(), String>;

/// One promise.
pub(crate) trait Invariant {
    /// The name of its file.
    fn name(&self) -> &'static str;

    /// Looks at one fact. The ledger has taken it in before.
    fn observe(&mut self, now: u64, fact: &Fact<'_>, ledger: &Ledger) -> Verdict;

    /// Looks at what is left when all has come to rest.
    fn at_end(&mut self, _end: &End, _ledger: &Ledger) -> Verdict {
        Ok(())
    }
}

/// A broken promise.
#[derive(Clone, Debug)]
pub(crate) struct Violation {
    pub(crate) invariant: &'static str,
    pub(crate) problem: String,
}

impl Violation {
    pub(crate) fn new(invariant: &'static str, problem: impl Into<String>) -> Self {
        Violation {
            invariant,
            problem: problem.into(),
        }
    }
}

/// All of them, and what the log holds.
pub(crate) struct Checker {
    ledger: Ledger,
    invariants: Vec<Box<dyn Invariant>>,
}

impl Checker {
    pub(crate) fn new() -> Self {
        Checker {
            ledger: Ledger::default(),
            invariants: vec![
                Box::<admission::Admission>::default(),
                Box::<agreement::Agreement>::default(),
                Box::<answered_once::AnsweredOnce>::default(),
                Box::<boundedness::Boundedness>::default(),
                Box::<conservation::Conservation>::default(),
                Box::<decision_stable::DecisionStable>::default(),
                Box::<durable_before_told::DurableBeforeTold>::default(),
                Box::<exactly_once::ExactlyOnce>::default(),
                Box::<heuristics_reported::HeuristicsReported>::default(),
                Box::<liveness::Liveness>::default(),
                Box::<lock_exclusion::LockExclusion>::default(),
                Box::<no_late_prepare_survives::NoLatePrepareSurvives>::default(),
                Box::<no_peer_is_blamed::NoPeerIsBlamed>::default(),
                Box::<presume_abort_only_for_ours::PresumeAbortOnlyForOurs>::default(),
                Box::<read_only_leaves::ReadOnlyLeaves>::default(),
                Box::<record_reads_back::RecordReadsBack>::default(),
                Box::<replay_idempotent::ReplayIdempotent>::default(),
                Box::<saga_order::SagaOrder>::default(),
                Box::<unanimity::Unanimity>::default(),
                Box::<unknown_is_not_done::UnknownIsNotDone>::default(),
            ],
        }
    }

    /// The first promise that this fact breaks.
    pub(crate) fn observe(&mut self, now: u64, fact: &Fact<'_>) -> Option<Violation> {
        self.ledger.observe(fact);
        let ledger = &self.ledger;
        let broken = |invariant: &mut Box<dyn Invariant>| {
            let problem = invariant.observe(now, fact, ledger).err()?;
            Some(Violation::new(invariant.name(), problem))
        };
        self.invariants.iter_mut().find_map(broken)
    }

    /// The first promise that is found broken at the end.
    pub(crate) fn at_end(&mut self, end: &End) -> Option<Violation> {
        let ledger = &self.ledger;
        let broken = |invariant: &mut Box<dyn Invariant>| {
            let problem = invariant.at_end(end, ledger).err()?;
            Some(Violation::new(invariant.name(), problem))
        };
        self.invariants.iter_mut().find_map(broken)
    }
}
