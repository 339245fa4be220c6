//! A prepared branch that somebody rolls back by hand.
//!
//! Where its transaction is committed, the databases then differ, and nobody can mend that: but the coordinator has to show it. A commit by hand
//! is left out: before the decision, and with a crash after it, nobody is left who knows of the transaction.

use std::time::{Duration, Instant};

use crate::{bank::Engine, trial::Trial};

use super::{Kind, Landing};

/// How long to look for a prepared branch.
const PATIENCE: Duration = Duration::from_secs(5);

/// Rolls one back on PostgreSQL. MariaDB gives no prepared branch to anybody else while its agent is connected.
pub(super) async fn roll_back(trial: &Trial) {
    let banks = trial.system.banks.iter();
    let begin = Instant::now();
    for bank in banks.filter(|bank| bank.engine == Engine::Postgres) {
        while begin.elapsed() < PATIENCE {
            for branch in bank.prepared().await.unwrap_or_default() {
                let done = bank.execute(&format!("ROLLBACK PREPARED '{branch}'")).await;
                let Some((transaction, _)) = branch.rsplit_once('.') else {
                    continue;
                };
                if done.is_ok() {
                    trial.done.lock().by_hand.insert(transaction.to_owned());
                    return trial.landed(Kind::Hand, Landing::Installed, &branch);
                }
            }
        }
    }
    trial.landed(Kind::Hand, Landing::Skipped, "nothing was prepared");
}
