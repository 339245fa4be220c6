//! A disk that fails under the coordinator's log.

use std::time::Duration;

use rand::{RngExt, SeedableRng, rngs::StdRng};
use unanimity_chaos::disk::{self, Fault, Victim};

use crate::trial::Trial;

use super::{Kind, Landing};

/// How often to try where the coordinator is killed by another fault first.
const ATTEMPTS: u32 = 5;

/// For how long it is hurt.
const LIMIT: Duration = Duration::from_secs(4);

/// Hurts it once, or for a while. A coordinator that ends of it, with the code that says so, has done as it should.
pub(super) async fn any(trial: &Trial, kind: Kind, dice: u64) {
    let mut dice = StdRng::seed_from_u64(dice);
    let fault = draw(kind, &mut dice);
    let what = format!("{fault:?}");
    // Two tracers at once the system doesn't let near a process.
    let _held = trial.disk.lock().await;
    for _ in 0..ATTEMPTS {
        if strike(trial, kind, fault).await {
            return trial.landed(kind, Landing::Installed, &what);
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    trial.landed(kind, Landing::Skipped, &what);
}

/// Whether it landed. Whoever kills the coordinator meanwhile ends the fault with it.
async fn strike(trial: &Trial, kind: Kind, fault: Fault) -> bool {
    if trial.system.serves().await.is_err() {
        return false;
    }
    let process = {
        let mut running = trial.system.coordinator.running.lock().await;
        if running.process.ended().is_some() {
            return false;
        }
        running.excused = true;
        running.process.id()
    };
    let name = format!("{}.strace", kind.name());
    let report = trial.system.directory.join(name);
    match disk::strike(Victim::log(process), fault, &report, LIMIT).await {
        disk::Landing::Landed(_) => true,
        disk::Landing::Missed => false,
        disk::Landing::NotInstalled(why) => {
            trial.history.event("no strace", &why);
            false
        }
    }
}

fn draw(kind: Kind, dice: &mut StdRng) -> Fault {
    let nth = dice.random_range(1..10);
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
