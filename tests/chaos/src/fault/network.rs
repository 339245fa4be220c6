//! A network that fails between two processes.

use std::time::Duration;

use rand::{RngExt, SeedableRng, rngs::StdRng};
use unanimity_chaos::proxy::Fault;

use crate::trial::Trial;

use super::{Kind, Landing};

/// Hurts one of the links for a while.
pub(super) async fn any(trial: &Trial, kind: Kind, dice: u64) {
    let mut dice = StdRng::seed_from_u64(dice);
    let links = &trial.system.links;
    let first = dice.random_range(0..links.len());
    let fault = draw(kind, &mut dice);
    // Mostly longer than a transaction's time; now and then longer than keep-alive waits, too.
    let time = Duration::from_millis(match dice.random_range(0..4) {
        0 => dice.random_range(10_500..12_000),
        _ => dice.random_range(500..6_500),
    });
    let mut candidates = links.iter().cycle().skip(first).take(links.len());
    let free = candidates.find_map(|link| Some((link, link.held.try_lock().ok()?)));
    let Some((link, _held)) = free else {
        return trial.landed(kind, Landing::Skipped, "all links are hurt already");
    };
    let what = format!("{fault:?} at {} for {time:?}", link.name);
    trial.history.event("network", &what);
    link.proxy.set(fault);
    tokio::time::sleep(time).await;
    let landing = match link.proxy.heal().was_felt() {
        true => Landing::Installed,
        false => Landing::Skipped,
    };
    trial.landed(kind, landing, &what);
}

fn draw(kind: Kind, dice: &mut StdRng) -> Fault {
    match kind {
        Kind::LostReplies => Fault::LoseAnswers {
            patience: Duration::from_millis(dice.random_range(10..2_000)),
        },
        Kind::Reset => Fault::Reset,
        Kind::Delay => match dice.random_range(0..2) {
            0 => Fault::Delay {
                least: Duration::from_millis(1),
                most: Duration::from_millis(dice.random_range(20..400)),
            },
            _ => Fault::Drip {
                bytes: dice.random_range(16..200),
                pause: Duration::from_millis(2),
            },
        },
        _ => [Fault::Cut, Fault::CutUp, Fault::CutDown][dice.random_range(0..3)],
    }
}
