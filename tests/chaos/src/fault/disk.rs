//! A disk that fails under the coordinator's log.

use std::time::Duration;

use rand::{RngExt, SeedableRng, rngs::StdRng};
use unanimity_chaos::disk::{self, Fault, Victim};

use crate::trial::Trial;

use super::{Kind, Landing};

/// Hurts it once, or for a while. A coordinator that ends of it, with the code that says so, has done as it should.
pub(super) async fn any(trial: &Trial, kind: Kind, dice: u64) {
    let mut dice = StdRng::seed_from_u64(dice);
    let fault = draw(kind, &mut dice);
    let what = format!("{fault:?}");
    let unit = &trial.system.coordinator;
    let process = {
        let Ok(mut running) = unit.running.try_lock() else {
            return trial.landed(kind, Landing::Skipped, &what);
        };
        if running.process.ended().is_some() {
            return trial.landed(kind, Landing::Skipped, &what);
        }
        running.excused = true;
        running.process.id()
    };
    let report = trial
        .system
        .directory
        .join(format!("{}.strace", kind.name()));
    let limit = Duration::from_secs(4);
    // Whoever kills the coordinator meanwhile ends the fault with it.
    let landing = match disk::strike(Victim::log(process), fault, &report, limit).await {
        disk::Landing::Landed(_) => Landing::Installed,
        disk::Landing::Missed => Landing::Skipped,
        disk::Landing::NotInstalled(why) => {
            trial.history.event("no strace", &why);
            Landing::Skipped
        }
    };
    trial.landed(kind, landing, &what);
}

fn draw(kind: Kind, dice: &mut StdRng) -> Fault {
    let nth = dice.random_range(1..20);
    match kind {
        Kind::SyncSlow => Fault::SyncSlow {
            by: Duration::from_millis(dice.random_range(5..150)),
        },
        Kind::SyncHang => Fault::SyncHangs {
            nth,
            hang: Duration::from_millis(dice.random_range(1_500..7_000)),
        },
        Kind::DiskFull => Fault::NoSpace { nth },
        _ => Fault::SyncFails { nth },
    }
}
