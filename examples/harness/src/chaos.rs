//! Kills processes while there is work under way.
//!
//! A kill is SIGKILL: the process gets no chance to write or say anything. Then it is started again, on the same data, and it is measured how
//! long it takes until all is settled that it left unfinished.

use std::{collections::HashSet, ops::Range, time::Duration};

use anyhow::Result;
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use tokio::{
    select,
    time::{Instant, sleep},
};

use crate::{
    processes::{ProcessId, System},
    traffic::{Tally, Traffic},
};

/// At least so many kills hit work on its way.
const KILLS: u64 = 3;

/// Between two kills, in milliseconds.
const PAUSE: Range<u64> = 400..1_600;

/// Past this nothing settles by itself any more.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(60);

/// Between two looks at what is unfinished.
const POLL: Duration = Duration::from_millis(10);

/// What was done, and what came of it.
#[derive(Clone, Debug, Default)]
pub struct Kills {
    /// So many kills.
    pub count: u64,
    /// After each: how long until nothing was left unfinished, from when the killed process was back.
    pub recoveries: Vec<Duration>,
}

/// The one who pulls the plugs.
pub struct Chaos<'a, T> {
    /// Whom to kill; nobody where it is empty.
    pub victims: Vec<ProcessId>,
    /// The same one gives the same victims.
    pub seed: u64,
    /// The work.
    pub traffic: &'a Traffic<T>,
    /// So many pieces of it were asked for.
    pub work: u64,
    /// A piece of work may be that old when a kill comes.
    pub moment: Duration,
}

impl<T: Tally> Chaos<'_, T> {
    /// Kills and restarts until all work has ended. `unfinished` names what is in between just now.
    ///
    /// All the work may be over before a second has passed. So it is released by and by, a share for each of the first kills, and a kill
    /// comes early where all that is released has started. Where it was too fast for that, another piece is released.
    ///
    /// # Errors
    /// Where a process can't be restarted, or `unfinished` fails.
    pub async fn run(
        &self,
        system: &mut System,
        unfinished: &impl AsyncFn() -> Result<HashSet<String>>,
    ) -> Result<Kills> {
        let mut random = StdRng::seed_from_u64(self.seed);
        let mut kills = Kills::default();
        self.traffic.release(self.share(1));
        while let Some(victim) = self.victims.choose(&mut random) {
            let early = kills.count < KILLS;
            select! {
                () = self.traffic.finished() => return Ok(kills),
                () = self.traffic.exhausted(), if early => {}
                () = sleep(Duration::from_millis(random.random_range(PAUSE))) => {}
            }
            sleep(self.moment.mul_f64(random.random())).await;
            if self.traffic.in_flight() == 0 {
                if early {
                    self.traffic.release(self.traffic.released() + 1);
                }
                continue;
            }
            system.kill(*victim).await?;
            kills.count += 1;
            system.restart(*victim).await?;
            kills.recoveries.push(recovery(unfinished).await?);
            self.traffic.release(self.share(kills.count + 1));
            if kills.count == KILLS {
                self.traffic.close();
            }
        }
        // Nothing is to be killed.
        self.traffic.release(self.work);
        self.traffic.close();
        Ok(kills)
    }

    /// So much work may start before this kill; all before the one after the last.
    fn share(&self, kill: u64) -> u64 {
        let shares = KILLS + 1;
        (self.work * kill.min(shares) / shares).max(1)
    }
}

/// How long it takes until everything is finished that is not now.
async fn recovery(unfinished: &impl AsyncFn() -> Result<HashSet<String>>) -> Result<Duration> {
    let started = Instant::now();
    let mut left = unfinished().await?;
    while !left.is_empty() && started.elapsed() < SETTLE_TIMEOUT {
        sleep(POLL).await;
        let now = unfinished().await?;
        left.retain(|one| now.contains(one));
    }
    Ok(started.elapsed())
}

/// Waits until nothing is unfinished, and says how much still is.
///
/// # Errors
/// Where `unfinished` fails.
pub async fn settle(unfinished: &impl AsyncFn() -> Result<HashSet<String>>) -> Result<usize> {
    let deadline = Instant::now() + SETTLE_TIMEOUT;
    loop {
        let left = unfinished().await?.len();
        if left == 0 || Instant::now() > deadline {
            return Ok(left);
        }
        sleep(POLL).await;
    }
}
