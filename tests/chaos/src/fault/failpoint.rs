//! kill -9 at a named point, the how manyth time it is reached.

use std::time::Duration;

use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::{
    bank::{Bank, Engine},
    trial::Trial,
    unit::{Armed, Unit, UnitRole},
};

use super::{Kind, Landing, kill};

/// Where the coordinator can kill itself.
#[cfg(feature = "failpoints")]
const COORDINATOR: &[&str] = unanimity_coordinator::FAILPOINTS;
/// Where an agent can.
#[cfg(feature = "failpoints")]
const PARTICIPANT: &[&str] = unanimity_participant::FAILPOINTS;
#[cfg(not(feature = "failpoints"))]
const COORDINATOR: &[&str] = &[];
#[cfg(not(feature = "failpoints"))]
const PARTICIPANT: &[&str] = &[];

/// Parts of the names of points that are passed seldom: a high number would never be reached there.
const SELDOM: [&str; 20] = [
    "replay",
    "opened",
    "epoch",
    "session",
    "in-doubt",
    "prove",
    "proof",
    "settle",
    "rotated",
    "checkpoint",
    "trim",
    "detached",
    "bound",
    "undo",
    "read-only",
    "abort",
    "enlist",
    "execute",
    "step",
    "one-phase",
];

/// Whether this program has any.
pub(crate) fn are_built_in() -> bool {
    !COORDINATOR.is_empty()
}

/// Starts a process anew with a failpoint. It counts as landed only when the process dies of it.
pub(super) async fn arm(trial: &Trial, dice: u64) {
    let mut dice = StdRng::seed_from_u64(dice);
    let unit = kill::target(&trial.system, &mut dice);
    let Some(armed) = draw(&trial.system.banks, unit, &mut dice) else {
        return trial.landed(Kind::Failpoint, Landing::Skipped, &unit.name);
    };
    let what = format!("{} at {} of {}", unit.name, armed.hit, armed.point);
    match kill::one(trial, unit, Some(armed), Duration::ZERO).await {
        Landing::Installed => trial.history.event("armed", &what),
        landing => trial.landed(Kind::Failpoint, landing, &what),
    }
}

/// A point of the process, and a number.
pub(crate) fn draw(banks: &[Bank], unit: &Unit, dice: &mut StdRng) -> Option<Armed> {
    let points: Vec<_> = match unit.role {
        UnitRole::Coordinator => COORDINATOR.to_vec(),
        UnitRole::Agent(bank) => {
            let engine = banks[bank].engine;
            let points = PARTICIPANT.iter().copied();
            points.filter(|point| is_passed(point, engine)).collect()
        }
    };
    if points.is_empty() {
        return None;
    }
    let point = points[dice.random_range(0..points.len())];
    let hit = match SELDOM.iter().any(|part| point.contains(part)) {
        true => dice.random_range(1..=3),
        false => 2_u32.pow(dice.random_range(0..7)) + dice.random_range(0..8),
    };
    Some(Armed { point, hit })
}

/// Whether an agent of such a bank comes by.
fn is_passed(point: &str, engine: Engine) -> bool {
    let only = |part: &str, owner: Engine| !point.contains(part) || engine == owner;
    !point.contains(".http.")
        && only(".mysql.", Engine::Mariadb)
        && only(".sqlite.", Engine::Sqlite)
}
