//! SIGSTOP, for longer than anybody waits, and SIGCONT: who comes back doesn't know that the world went on.

use std::time::Duration;

use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::trial::Trial;

use super::{Kind, Landing, kill};

/// Pauses one of our own processes.
pub(super) async fn any(trial: &Trial, dice: u64) {
    let mut dice = StdRng::seed_from_u64(dice);
    let unit = kill::target(&trial.system, &mut dice);
    // Mostly longer than a transaction's time; now and then longer than keep-alive waits, too.
    let time = Duration::from_millis(match dice.random_range(0..4) {
        0 => dice.random_range(10_500..12_000),
        _ => dice.random_range(500..6_500),
    });
    let what = format!("{} for {time:?}", unit.name);
    let Ok(mut running) = unit.running.try_lock() else {
        return trial.landed(Kind::Pause, Landing::Skipped, &what);
    };
    if running.process.ended().is_some() {
        return trial.landed(Kind::Pause, Landing::Skipped, &what);
    }
    running.process.pause();
    tokio::time::sleep(time).await;
    running.process.resume();
    trial.landed(Kind::Pause, Landing::Installed, &what);
}
