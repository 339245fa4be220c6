//! kill -9 at a random instant.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::{
    system::System,
    trial::Trial,
    unit::{Armed, Unit},
};

use super::{Kind, Landing};

/// Kills one of our own processes, and starts it again.
pub(super) async fn any(trial: &Trial, dice: u64) {
    let mut dice = StdRng::seed_from_u64(dice);
    let unit = target(&trial.system, &mut dice);
    let down = match dice.random_range(0..4) {
        0 => Duration::from_millis(dice.random_range(200..2_000)),
        _ => Duration::ZERO,
    };
    let landing = one(trial, unit, None, down).await;
    trial.landed(Kind::Kill, landing, &unit.name);
}

/// The coordinator a third of the time.
pub(super) fn target<'a>(system: &'a System, dice: &mut StdRng) -> &'a Unit {
    match dice.random_range(0..3) {
        0 => &system.coordinator,
        _ => &system.agents[dice.random_range(0..system.agents.len())],
    }
}

/// Kills one, and starts it again after a time, perhaps armed.
pub(super) async fn one(
    trial: &Trial,
    unit: &Unit,
    armed: Option<Armed>,
    down: Duration,
) -> Landing {
    let Ok(mut running) = unit.running.try_lock() else {
        return Landing::Skipped;
    };
    if running.process.ended().is_some() {
        return Landing::Skipped;
    }
    trial.killed(unit, None);
    running.process.kill();
    tokio::time::sleep(down).await;
    unit.restart(&mut running, armed);
    Landing::Installed
}

/// Kills a database server, and starts it again.
pub(super) async fn database(trial: &Trial, dice: u64) {
    let mut dice = StdRng::seed_from_u64(dice);
    let servers = &trial.system.servers;
    let server = &servers[dice.random_range(0..servers.len())];
    let down = Duration::from_millis(dice.random_range(0..1_000));
    let mut banks = trial.system.banks.iter();
    let bank = banks.position(|bank| server.keeps(bank));
    let killing = || trial.process_killed(server.name, bank, Instant::now());
    let landing = match server.kill_and_restart(down, killing).await {
        true => Landing::Installed,
        false => Landing::Skipped,
    };
    trial.landed(Kind::Database, landing, server.name);
}

/// Pulls every plug at once, and starts all of it again, unarmed.
pub(crate) async fn all(trial: &Trial) {
    let units: Vec<_> = trial.system.units().collect();
    let kills = units.iter().map(|unit| async {
        let mut running = unit.running.lock().await;
        if running.process.ended().is_none() {
            trial.killed(unit, None);
            running.process.kill();
        }
        running
    });
    let killed = join_all(kills).await;
    for (unit, mut running) in units.iter().zip(killed) {
        unit.restart(&mut running, None);
        trial.landed(Kind::Kill, Landing::Installed, &unit.name);
    }
}

/// Starts anew those that wait to die at a failpoint.
pub(crate) async fn armed(trial: &Trial) {
    for unit in trial.system.units() {
        let mut running = unit.running.lock().await;
        if let Some(armed) = running.armed.take() {
            if running.process.ended().is_none() {
                let what = format!("{} never died at {}", unit.name, armed.point);
                trial.landed(Kind::Failpoint, Landing::Skipped, &what);
                trial.killed(unit, None);
                running.process.kill();
            }
            unit.restart(&mut running, None);
        }
    }
}
