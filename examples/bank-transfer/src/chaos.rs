//! Kills processes while transfers run.
//!
//! A kill is SIGKILL: the process gets no chance to write or say anything. Then it is started again, on the same data, and it is measured how
//! long it takes until every branch that it left prepared is committed or rolled back.

use std::{collections::HashSet, ops::Range, sync::Arc, time::Duration};

use anyhow::Result;
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use tokio::{
    select,
    time::{Instant, sleep},
};

use crate::{
    bank::Bank,
    processes::{Role, System},
    traffic::Traffic,
};

/// At least so many kills hit transfers on their way.
const KILLS: u64 = 3;

/// Between two kills, in milliseconds.
const PAUSE: Range<u64> = 400..1_600;

/// How far into a transfer a kill may come, in microseconds.
const MOMENT: Range<u64> = 0..2_000;

/// Past this nothing settles by itself any more.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(60);

/// Between two looks at the databases.
const POLL: Duration = Duration::from_millis(10);

/// What to kill.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Target {
    /// The coordinator.
    Coordinator,
    /// The agents of the banks.
    Participant,
    /// Whichever.
    All,
}

/// What was done, and what came of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Kills {
    /// So many kills.
    pub(crate) count: u64,
    /// After each: how long until nothing was left in doubt, from when the killed process was back.
    pub(crate) recoveries: Vec<Duration>,
}

/// The one who pulls the plugs.
pub(crate) struct Chaos {
    pub(crate) targets: Vec<Target>,
    pub(crate) seed: u64,
    pub(crate) traffic: Arc<Traffic>,
    /// So many transfers were asked for.
    pub(crate) transfers: u64,
}

impl Chaos {
    /// Kills and restarts until all transfers have ended.
    ///
    /// Few transfers may be over before a second has passed. So they are released by and by, a share for each of the first kills, and a kill
    /// comes early where all that are released have started. Where they were too fast for it, another one is released.
    pub(crate) async fn run(&self, system: &mut System, banks: &[Bank]) -> Result<Kills> {
        let victims = self.victims(system);
        let mut random = StdRng::seed_from_u64(self.seed);
        let mut kills = Kills::default();
        self.traffic.release(self.share(1));
        while let Some(victim) = victims.choose(&mut random) {
            let early = kills.count < KILLS;
            select! {
                () = self.traffic.finished() => return Ok(kills),
                () = self.traffic.exhausted(), if early => {}
                () = sleep(Duration::from_millis(random.random_range(PAUSE))) => {}
            }
            sleep(Duration::from_micros(random.random_range(MOMENT))).await;
            if self.traffic.in_flight() == 0 {
                if early {
                    self.traffic.release(self.traffic.released() + 1);
                }
                continue;
            }
            system.kill(*victim).await?;
            kills.count += 1;
            system.restart(*victim).await?;
            kills.recoveries.push(recovery(system, banks).await?);
            self.traffic.release(self.share(kills.count + 1));
            if kills.count == KILLS {
                self.traffic.close();
            }
        }
        // Nothing is to be killed.
        self.traffic.release(self.transfers);
        self.traffic.close();
        Ok(kills)
    }

    fn victims(&self, system: &System) -> Vec<Role> {
        let among =
            |targets: [Target; 2]| self.targets.iter().any(|target| targets.contains(target));
        let mut victims = Vec::new();
        if among([Target::Coordinator, Target::All]) {
            victims.push(Role::Coordinator);
        }
        if among([Target::Participant, Target::All]) {
            victims.extend((0..system.agents()).map(Role::Agent));
        }
        victims
    }

    /// So many transfers may start before this kill; all before the one after the last.
    fn share(&self, kill: u64) -> u64 {
        let shares = KILLS + 1;
        (self.transfers * kill.min(shares) / shares).max(1)
    }
}

/// How long it takes until every branch that is prepared now is committed or rolled back.
async fn recovery(system: &System, banks: &[Bank]) -> Result<Duration> {
    let started = Instant::now();
    let mut left = in_doubt(system, banks).await?;
    while !left.is_empty() && started.elapsed() < SETTLE_TIMEOUT {
        sleep(POLL).await;
        let now = in_doubt(system, banks).await?;
        left.retain(|branch| now.contains(branch));
    }
    Ok(started.elapsed())
}

/// Waits until nothing is in doubt, and says how many branches still are.
pub(crate) async fn settle(system: &System, banks: &[Bank]) -> Result<usize> {
    let deadline = Instant::now() + SETTLE_TIMEOUT;
    loop {
        let left = in_doubt(system, banks).await?.len();
        if left == 0 || Instant::now() > deadline {
            return Ok(left);
        }
        sleep(POLL).await;
    }
}

/// The branches of our coordinator that are prepared in any bank.
async fn in_doubt(system: &System, banks: &[Bank]) -> Result<HashSet<String>> {
    let ours = format!("u1.{}.", system.log_id());
    let mut found = HashSet::new();
    for bank in banks {
        found.extend(bank.prepared().await?);
    }
    found.retain(|branch| branch.starts_with(&ours));
    Ok(found)
}
