//! What all parts of a run share: the system, what was written down, and what was done to whom.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::{
    check::Violation,
    fault::{Kind, Landing},
    history::History,
    recovery::Recovery,
    system::{InFlight, System},
    unit::{Unit, UnitRole},
};

/// All of it.
pub(crate) struct Trial {
    pub(crate) system: System,
    pub(crate) history: History,
    pub(crate) recovery: Recovery,
    pub(crate) in_flight: Arc<InFlight>,
    /// Processes that end at a failpoint may be armed with another one.
    arming: AtomicBool,
    pub(crate) done: Mutex<Done>,
    /// Whoever hurts the disk holds this.
    pub(crate) disk: tokio::sync::Mutex<()>,
}

/// What was done, and what came of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Done {
    pub(crate) faults: BTreeMap<Kind, Landings>,
    /// By the process.
    pub(crate) kills: BTreeMap<String, u64>,
    pub(crate) failpoints: BTreeMap<&'static str, u64>,
    pub(crate) in_flight_at_kill: Vec<u64>,
    /// Transactions of which a branch was ended by hand.
    pub(crate) by_hand: BTreeSet<String>,
    /// After healing, the longest that a branch stayed in doubt.
    pub(crate) longest_in_doubt: Duration,
    /// Found while the round ran.
    pub(crate) violations: Vec<Violation>,
}

/// How faults of a kind landed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Landings {
    pub(crate) installed: u64,
    pub(crate) skipped: u64,
    pub(crate) indeterminate: u64,
}

impl Trial {
    pub(crate) fn new(system: System) -> Self {
        Self {
            system,
            history: History::new(),
            recovery: Recovery::default(),
            in_flight: Arc::default(),
            arming: AtomicBool::new(false),
            done: Mutex::default(),
            disk: tokio::sync::Mutex::default(),
        }
    }

    /// One of our own processes is killed, perhaps at a failpoint.
    pub(crate) fn killed(&self, unit: &Unit, point: Option<&'static str>) {
        let bank = match unit.role {
            UnitRole::Coordinator => None,
            UnitRole::Agent(bank) => Some(bank),
        };
        let name = match unit.role {
            UnitRole::Coordinator => "coordinator",
            UnitRole::Agent(_) => "agents",
        };
        self.process_killed(name, bank, Instant::now());
        if let Some(point) = point {
            *self.done.lock().failpoints.entry(point).or_default() += 1;
        }
        self.history
            .event("killed", &format!("{} at {point:?}", unit.name));
    }

    /// A process is killed, on which this bank hangs, or all do.
    pub(crate) fn process_killed(&self, name: &str, bank: Option<usize>, killed: Instant) {
        self.recovery.killed(killed, bank);
        let mut done = self.done.lock();
        *done.kills.entry(name.to_owned()).or_default() += 1;
        done.in_flight_at_kill.push(self.in_flight.number());
    }

    /// A fault came to this.
    pub(crate) fn landed(&self, kind: Kind, landing: Landing, what: &str) {
        let mut done = self.done.lock();
        let landings = done.faults.entry(kind).or_default();
        match landing {
            Landing::Installed => landings.installed += 1,
            Landing::Skipped => landings.skipped += 1,
            Landing::Indeterminate => landings.indeterminate += 1,
        }
        drop(done);
        let what = format!("{}: {what}: {landing:?}", kind.name());
        self.history.event("fault", &what);
    }

    /// A promise was broken while the round ran.
    pub(crate) fn broken(&self, violation: Violation) {
        self.history.event("violation", &violation.to_string());
        self.done.lock().violations.push(violation);
    }

    pub(crate) fn set_arming(&self, arming: bool) {
        self.arming.store(arming, Ordering::Relaxed);
    }

    pub(crate) fn arming(&self) -> bool {
        self.arming.load(Ordering::Relaxed)
    }
}
