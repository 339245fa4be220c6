//! One life: a seed, a plan, and what came of it.

use std::{
    collections::BTreeSet,
    panic::{AssertUnwindSafe, catch_unwind},
};

use crate::{
    figures::Figures,
    invariants::{Checker, Violation},
    plan::{self, Workload},
    trace::Trace,
    world::{Lived, World},
};

/// What to live.
#[derive(Clone, Debug)]
pub(crate) struct Life {
    pub(crate) seed: u64,
    pub(crate) workload: Workload,
    /// Only these entries of the plan; all where there are none.
    pub(crate) only: Option<BTreeSet<usize>>,
}

impl Life {
    pub(crate) fn new(seed: u64, workload: Workload) -> Self {
        Life {
            seed,
            workload,
            only: None,
        }
    }

    pub(crate) fn plan(&self) -> plan::Plan {
        let mut plan = plan::draw(self.seed, self.workload);
        if let Some(only) = &self.only {
            plan.entries.retain(|entry| only.contains(&entry.number));
        }
        plan
    }

    /// Lives it. An assertion of the engine that fails is a broken promise too.
    pub(crate) fn live(&self, trace: bool) -> Lived {
        let plan = self.plan();
        let world = || World::new(self.seed, plan, trace, Checker::new()).live();
        catch_unwind(AssertUnwindSafe(world)).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
            let problem = text.unwrap_or_else(|| "it panicked".into());
            Lived {
                violation: Some(Violation::new("nothing_panics", problem)),
                figures: Figures::default(),
                trace: Trace::new(false),
            }
        })
    }
}
