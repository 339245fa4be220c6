//! What a run came to, in numbers.

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;

use crate::{
    check::Evidence,
    expected::{Found, Rows, found},
    history::{Told, View},
    trial::Trial,
};

/// The figures; as JSON one line, by these names.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Figures {
    pub(crate) seed: u64,
    pub(crate) minutes: f64,
    pub(crate) rounds: u64,
    /// Those that ended, one way or the other; without those that were refused before they began.
    pub(crate) transactions: u64,
    pub(crate) outcomes: BTreeMap<&'static str, u64>,
    /// Clients could not tell at first, and the databases show the work done.
    pub(crate) unknown_committed: u64,
    /// Clients could not tell at first, and the databases show nothing.
    pub(crate) unknown_aborted: u64,
    pub(crate) kills: u64,
    pub(crate) kills_by_process: BTreeMap<String, u64>,
    pub(crate) kills_by_failpoint: BTreeMap<&'static str, u64>,
    pub(crate) faults: BTreeMap<String, Landed>,
    pub(crate) in_flight_at_kill: Spread,
    pub(crate) recovery_ms: Percentiles,
    pub(crate) longest_in_doubt_after_healing_ms: u64,
    pub(crate) heuristics_made: u64,
    pub(crate) heuristics_shown: u64,
    pub(crate) violations: u64,
}

/// Of a kind of fault.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Landed {
    pub(crate) installed: u64,
    pub(crate) skipped: u64,
    pub(crate) indeterminate: u64,
}

/// Of numbers.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Spread {
    pub(crate) min: u64,
    pub(crate) median: u64,
    /// How many of them are 0.
    pub(crate) none: u64,
}

/// Of times.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Percentiles {
    pub(crate) median: u64,
    pub(crate) p99: u64,
    pub(crate) max: u64,
    pub(crate) measured: u64,
}

impl Figures {
    /// Of a run that has ended.
    pub(crate) fn of(trial: &Trial, evidence: &Evidence<'_>) -> Self {
        let done = trial.done.lock().clone();
        let mut figures = Self {
            kills: done.kills.values().sum(),
            kills_by_process: done.kills,
            kills_by_failpoint: done.failpoints,
            in_flight_at_kill: spread(done.in_flight_at_kill),
            recovery_ms: percentiles(&trial.recovery.times()),
            longest_in_doubt_after_healing_ms: milliseconds(done.longest_in_doubt),
            ..Self::default()
        };
        for (kind, landings) in done.faults {
            let landed = Landed {
                installed: landings.installed,
                skipped: landings.skipped,
                indeterminate: landings.indeterminate,
            };
            figures.faults.insert(kind.name(), landed);
        }
        figures.count(&evidence.rows, evidence.history);
        let torn = evidence.torn_by_hand();
        figures.heuristics_made = torn.len() as u64;
        figures.heuristics_shown = torn.intersection(evidence.shown).count() as u64;
        figures
    }

    fn count(&mut self, rows: &Rows, history: &View) {
        for (request, asked) in &history.requests {
            let Some(told) = &asked.told else { continue };
            *self.outcomes.entry(told.name()).or_default() += 1;
            if *told != Told::NotTaken {
                self.transactions += 1;
            }
            if asked.was_unknown {
                match found(&asked.work, rows.get(request)) {
                    Found::Whole | Found::Torn => self.unknown_committed += 1,
                    Found::Nothing | Found::Undone => self.unknown_aborted += 1,
                }
            }
        }
    }

    /// For people.
    pub(crate) fn print(&self) {
        println!(
            "{:.1} minutes, {} rounds, seed {}",
            self.minutes, self.rounds, self.seed
        );
        println!(
            "{} transactions: {}",
            self.transactions,
            list(&self.outcomes)
        );
        println!(
            "unknown at first: {} committed, {} aborted",
            self.unknown_committed, self.unknown_aborted
        );
        println!("{} kills: {}", self.kills, list(&self.kills_by_process));
        println!("at failpoints: {}", list(&self.kills_by_failpoint));
        for (kind, landed) in &self.faults {
            println!(
                "fault {kind}: {} installed, {} skipped, {} indeterminate",
                landed.installed, landed.skipped, landed.indeterminate
            );
        }
        println!(
            "in flight at a kill: median {}, least {}",
            self.in_flight_at_kill.median, self.in_flight_at_kill.min
        );
        println!(
            "work again after a kill: median {} ms, p99 {} ms, longest {} ms",
            self.recovery_ms.median, self.recovery_ms.p99, self.recovery_ms.max
        );
        println!(
            "longest in doubt after healing: {} ms",
            self.longest_in_doubt_after_healing_ms
        );
        println!(
            "heuristic outcomes: {} made by hand, {} shown",
            self.heuristics_made, self.heuristics_shown
        );
        println!("violations: {}", self.violations);
    }
}

fn list<K: AsRef<str>>(numbers: &BTreeMap<K, u64>) -> String {
    let each = numbers.iter();
    let each: Vec<_> = each
        .map(|(name, number)| format!("{number} {}", name.as_ref()))
        .collect();
    each.join(", ")
}

fn spread(mut numbers: Vec<u64>) -> Spread {
    numbers.sort_unstable();
    Spread {
        min: numbers.first().copied().unwrap_or_default(),
        median: numbers.get(numbers.len() / 2).copied().unwrap_or_default(),
        none: numbers.iter().filter(|number| **number == 0).count() as u64,
    }
}

/// `times` are sorted.
fn percentiles(times: &[Duration]) -> Percentiles {
    let at = |part: f64| {
        let last = times.len().saturating_sub(1);
        // Rounding to a place is what percentiles do.
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss
        )]
        let place = (last as f64 * part).round() as usize;
        times.get(place).copied().map_or(0, milliseconds)
    };
    Percentiles {
        median: at(0.5),
        p99: at(0.99),
        max: at(1.0),
        measured: times.len() as u64,
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
