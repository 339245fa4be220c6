//! A round: traffic and faults, an end to all faults, and then the questions.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use anyhow::Result;
use tokio::task::JoinSet;
use unanimity_client::Error;

use crate::{
    arguments::Arguments,
    check::{self, Evidence, Violation},
    fault::{Kind, kill, schedule},
    history::{Outcome, View},
    settle,
    tables::Tables,
    traffic::Traffic,
    trial::Trial,
};

/// Transactions of earlier rounds that are looked at again.
const LOOKED_AT_AGAIN: usize = 200;

/// How long clients ask again about what is unknown.
const ASKING: Duration = Duration::from_secs(15);

/// Runs one, and gives what was broken.
///
/// # Errors
/// Where the harness itself fails.
pub(crate) async fn run(
    trial: &Arc<Trial>,
    traffic: &Traffic,
    arguments: &Arguments,
    round: u64,
) -> Result<Vec<Violation>> {
    let since = SystemTime::now();
    let kinds = arguments.kinds();
    trial.set_arming(kinds.contains(&Kind::Failpoint));
    traffic.set_open(true);
    hurt(trial, arguments, round).await?;
    trial.set_arming(false);
    match kinds.contains(&Kind::Kill) {
        true => kill::all(trial).await,
        false => kill::armed(trial).await,
    }
    trial.system.serves().await?;
    let healed = Instant::now();
    trial.history.event("healed", "");
    // A moment of traffic more, which shows that all works again.
    let close = async {
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        traffic.set_open(false);
    };
    let ((), settled) = tokio::join!(close, settle::settle(trial, healed));
    let mut violations = settled?;
    trial.recovery.give_up();
    traffic.settle(ASKING).await;
    violations.extend(settle::settle(trial, Instant::now()).await?);
    violations.extend(ask(trial, since).await?);
    violations.append(&mut trial.done.lock().violations);
    Ok(violations)
}

/// Makes the round's faults, and waits for the end of the last.
async fn hurt(trial: &Arc<Trial>, arguments: &Arguments, round: u64) -> Result<()> {
    let length = arguments.round_length();
    let begin = Instant::now();
    let mut faults = JoinSet::new();
    for fault in schedule::of(arguments.seed, round, length, &arguments.kinds()) {
        let trial = Arc::clone(trial);
        faults.spawn(async move {
            tokio::time::sleep(fault.at).await;
            fault.make(&trial).await;
        });
    }
    while let Some(fault) = faults.join_next().await {
        fault?;
    }
    tokio::time::sleep(length.saturating_sub(begin.elapsed())).await;
    Ok(())
}

/// Asks the databases, and the coordinator.
async fn ask(trial: &Arc<Trial>, since: SystemTime) -> Result<Vec<Violation>> {
    let client = trial.system.inspector()?;
    settle::look_at_all(trial, &client, since).await?;
    let shown = settle::shown(trial, &client).await?;
    let mut violations = look_again(trial, &client).await?;
    let tables = Tables::read(&trial.system.banks).await?;
    let history = trial.history.view();
    let by_hand: BTreeSet<String> = trial.done.lock().by_hand.clone();
    let evidence = Evidence::new(&trial.system.banks, &tables, &history, &by_hand, &shown);
    violations.extend(check::all(&evidence));
    for unit in trial.system.units() {
        if let Some(how) = unit.panicked() {
            let process = unit.name.clone();
            violations.push(Violation::Ended { process, how });
        }
    }
    Ok(violations)
}

/// Looks at some that were seen before, from anywhere in the run: what is committed stays known and committed.
async fn look_again(trial: &Trial, client: &unanimity_client::Client) -> Result<Vec<Violation>> {
    let View { seen, .. } = trial.history.view();
    let mut violations = Vec::new();
    let stride = (seen.len() / LOOKED_AT_AGAIN).max(1);
    for (id, before) in seen.iter().step_by(stride) {
        match client.lookup(id).await {
            Ok(snapshot) => trial.history.looked(&snapshot),
            Err(Error::NotFound { .. }) if before.outcome == Outcome::Aborted => {}
            Err(Error::NotFound { .. }) => violations.push(Violation::Forgotten {
                transaction: id.clone(),
                before: before.outcome,
            }),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(violations)
}
