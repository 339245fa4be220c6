//! Who looks after the processes: one that ended by itself is started again, and its end is put down to what made it end, or reported.

use std::{sync::Arc, time::Duration};

use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::{
    check::Violation,
    fault::{Kind, Landing, failpoint},
    trial::Trial,
    unit::{End, Unit},
};

const POLL: Duration = Duration::from_millis(10);

/// Looks until it is aborted.
pub(crate) async fn watch(trial: Arc<Trial>, seed: u64) {
    let mut dice = StdRng::seed_from_u64(seed);
    loop {
        for unit in trial.system.units() {
            look(&trial, unit, &mut dice).await;
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn look(trial: &Trial, unit: &Unit, dice: &mut StdRng) {
    // Whoever holds it kills it, and starts it again.
    let Ok(mut running) = unit.running.try_lock() else {
        return;
    };
    let Some(end) = unit.ended(&mut running) else {
        return;
    };
    match end {
        End::Failpoint(point) => {
            trial.killed(unit, Some(point));
            trial.landed(Kind::Failpoint, Landing::Installed, point);
        }
        End::DiskFailed => trial.history.event("disk failed", &unit.name),
        End::Unexpected(how) => {
            let process = unit.name.clone();
            trial.broken(Violation::Ended { process, how });
            // Not too fast, should it end at every start.
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
    let again = trial.arming() && dice.random_range(0..2) == 0;
    let armed = match again {
        true => failpoint::draw(&trial.system.banks, unit, dice),
        false => None,
    };
    unit.restart(&mut running, armed);
}
