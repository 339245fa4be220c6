//! After the faults: everything that is in doubt has to be settled, within the time that was promised, by itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use anyhow::Result;
use unanimity_client::{Client, TransactionState};
use unanimity_proto::v1;

use crate::{check::Violation, tables, trial::Trial};

/// "Once faults end, nothing stays in doubt for more than 10 s."
pub(crate) const PROMISED: Duration = Duration::from_secs(10);

/// How long to look on where the promise is broken.
const PATIENCE: Duration = Duration::from_secs(40);

const POLL: Duration = Duration::from_millis(50);

/// What was seen of a prepared branch: when first and when last.
type Sightings = BTreeMap<(usize, String), (Instant, Instant)>;

/// Waits until nothing is in flight, and nothing prepared. Gives the longest that any branch was in doubt since `healed`.
///
/// # Errors
/// Where a database can't be asked.
pub(crate) async fn settle(trial: &Trial, healed: Instant) -> Result<Vec<Violation>> {
    let mut sightings = Sightings::new();
    let left = loop {
        for branch in tables::prepared(&trial.system.banks).await? {
            let now = Instant::now();
            let seen = sightings.entry(branch).or_insert((now, now));
            seen.1 = now;
        }
        let now = Instant::now();
        let standing = sightings
            .values()
            .filter(|(_, last)| now - *last < POLL)
            .count();
        let left = in_flight(trial).await;
        if standing == 0 && left.is_empty() {
            break Vec::new();
        }
        if healed.elapsed() > PATIENCE {
            break left;
        }
        tokio::time::sleep(POLL).await;
    };
    let longest = sightings
        .values()
        .map(|(first, last)| *last - healed.max(*first))
        .max()
        .unwrap_or_default();
    let mut violations: Vec<_> = left
        .into_iter()
        .map(|what| Violation::InFlight { what })
        .collect();
    if longest > PROMISED {
        violations.push(Violation::InDoubtTooLong {
            milliseconds: u64::try_from(longest.as_millis()).unwrap_or(u64::MAX),
        });
    }
    let mut done = trial.done.lock();
    done.longest_in_doubt = done.longest_in_doubt.max(longest);
    Ok(violations)
}

/// What is in flight still, in the coordinator's words, or in the clients'.
async fn in_flight(trial: &Trial) -> Vec<String> {
    let clients = trial.in_flight.number();
    if clients > 0 {
        return vec![format!("{clients} requests")];
    }
    let mut admin = trial.system.admin();
    match admin.get_coordinator(v1::GetCoordinatorRequest {}).await {
        Ok(answer) if answer.get_ref().active_transactions == 0 => {}
        Ok(answer) => {
            let active = answer.get_ref().active_transactions;
            return vec![format!("{active} transactions at the coordinator")];
        }
        Err(status) => return vec![format!("the coordinator: {}", status.message())],
    }
    let request = v1::ListInDoubtBranchesRequest::default();
    match admin.list_in_doubt_branches(request).await {
        Ok(answer) => {
            let branches = answer.into_inner().branches.into_iter();
            branches.map(|branch| format!("{branch:?}")).collect()
        }
        Err(status) => vec![format!("the coordinator: {}", status.message())],
    }
}

/// Looks at all transactions that the coordinator knows and that began after `since`, and gives those that it shows as heuristic.
///
/// # Errors
/// Where it can't be asked.
pub(crate) async fn look_at_all(
    trial: &Trial,
    client: &Client,
    since: std::time::SystemTime,
) -> Result<()> {
    let mut next = None;
    loop {
        let mut listing = client.list().page_size(1_000);
        if let Some(next) = next {
            listing = listing.after(next);
        }
        let page = listing.page().await?;
        let old = |time: Option<std::time::SystemTime>| time.is_some_and(|time| time < since);
        for transaction in &page.transactions {
            trial.history.looked(transaction);
        }
        let ends = page
            .transactions
            .last()
            .is_none_or(|last| old(last.start_time));
        match page.next {
            Some(more) if !ends => next = Some(more),
            _ => return Ok(()),
        }
    }
}

/// Those that an operator is shown when asking for heuristic outcomes.
///
/// # Errors
/// Where the coordinator can't be asked.
pub(crate) async fn shown(trial: &Trial, client: &Client) -> Result<BTreeSet<String>> {
    let mut shown = BTreeSet::new();
    let mut next = None;
    loop {
        let mut listing = client.list().state(TransactionState::Heuristic);
        listing = listing.page_size(1_000);
        if let Some(next) = next {
            listing = listing.after(next);
        }
        let page = listing.page().await?;
        for transaction in page.transactions {
            trial.history.looked(&transaction);
            shown.insert(transaction.transaction_id);
        }
        match page.next {
            Some(more) => next = Some(more),
            None => return Ok(shown),
        }
    }
}
