//! What is counted: of one life, and of many.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use unanimity_engine::{BranchKey, Event, Refusal, TransactionState, Vote};

use crate::fact::{Changed, Fact, What};

/// Counts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Figures {
    pub(crate) lives: u64,
    pub(crate) lived_ms: u64,
    pub(crate) events: u64,
    pub(crate) records: u64,
    pub(crate) answers: u64,
    pub(crate) coordinator_restarts: u64,
    pub(crate) deaths_while_syncing: u64,
    pub(crate) torn_batches: u64,
    pub(crate) stale_messages: u64,
    pub(crate) enlisted: u64,
    pub(crate) heuristics: u64,
    pub(crate) never_known: u64,
    /// How long the slowest took to come to rest.
    pub(crate) settled_ms: u64,
    pub(crate) longest_in_doubt_ms: u64,
    pub(crate) outcomes: BTreeMap<&'static str, u64>,
    pub(crate) unknown_then: BTreeMap<&'static str, u64>,
    pub(crate) votes: BTreeMap<&'static str, u64>,
    pub(crate) refusals: BTreeMap<&'static str, u64>,
    pub(crate) faults: BTreeMap<&'static str, u64>,
    pub(crate) log_hash: u64,
    in_doubt: BTreeMap<BranchKey, u64>,
    healed_at: Option<u64>,
}

impl Figures {
    /// A fault hit something.
    pub(crate) fn landed(&mut self, kind: &'static str) {
        *self.faults.entry(kind).or_default() += 1;
    }

    pub(crate) fn vote(&mut self, vote: &Vote) {
        let name = match vote {
            Vote::Yes { .. } => "yes",
            Vote::ReadOnly => "read_only",
            Vote::Committed => "committed",
            Vote::No(_) => "no",
            Vote::Duplicate(_) => "duplicate",
        };
        *self.votes.entry(name).or_default() += 1;
    }

    /// A client learned what became of its request. `unsure`: it had waited in vain before.
    pub(crate) fn outcome(&mut self, state: TransactionState, unsure: bool) {
        let name = match state {
            TransactionState::Committed => "committed",
            TransactionState::Aborted => "aborted",
            TransactionState::Heuristic => "heuristic",
            TransactionState::Compensated => "compensated",
            _ => return,
        };
        *self.outcomes.entry(name).or_default() += 1;
        if unsure {
            *self.unknown_then.entry(name).or_default() += 1;
        }
    }

    pub(crate) fn refused(&mut self, refusal: &Refusal) {
        let name = match refusal {
            Refusal::ParticipantUnavailable(_) => "participant_unavailable",
            Refusal::ParticipantBusy(_) => "participant_busy",
            Refusal::TooManyTransactions(_) => "too_many_transactions",
            Refusal::Draining => "draining",
            Refusal::Interrupted(_) => "interrupted",
            Refusal::TransactionUnknown(_) => "transaction_unknown",
            Refusal::TransactionForgotten(_) => "transaction_forgotten",
            Refusal::TransactionDecided(_) => "transaction_decided",
            Refusal::TransactionNotOpen(_) => "transaction_not_open",
            Refusal::TransactionAborted { .. } => "transaction_aborted",
            Refusal::OutcomePending { .. } => "outcome_pending",
            Refusal::RequestIdForgotten(_) => "request_id_forgotten",
            _ => "other",
        };
        *self.refusals.entry(name).or_default() += 1;
    }

    pub(crate) fn fact(&mut self, now: u64, fact: &Fact<'_>) {
        match fact {
            Fact::Healed => self.healed_at = Some(now),
            Fact::Reported(Event::Heuristic { .. }) => self.heuristics += 1,
            Fact::Changed(changed) => self.change(now, changed),
            _ => {}
        }
    }

    fn change(&mut self, now: u64, changed: &Changed<'_>) {
        match changed.what {
            What::Prepared => _ = self.in_doubt.insert(changed.key, now),
            What::Committed | What::RolledBack => {
                let since = self.in_doubt.remove(&changed.key);
                if let (Some(since), Some(healed)) = (since, self.healed_at) {
                    let waited = now - since.max(healed);
                    self.longest_in_doubt_ms = self.longest_in_doubt_ms.max(waited);
                }
            }
            What::OnePhase | What::Done | What::Undone => {}
        }
    }

    /// Takes those of another life in.
    pub(crate) fn add(&mut self, other: &Figures) {
        self.lives += 1;
        self.lived_ms += other.lived_ms;
        self.events += other.events;
        self.records += other.records;
        self.answers += other.answers;
        self.coordinator_restarts += other.coordinator_restarts;
        self.deaths_while_syncing += other.deaths_while_syncing;
        self.torn_batches += other.torn_batches;
        self.stale_messages += other.stale_messages;
        self.enlisted += other.enlisted;
        self.heuristics += other.heuristics;
        self.never_known += other.never_known;
        self.settled_ms = self.settled_ms.max(other.settled_ms);
        self.longest_in_doubt_ms = self.longest_in_doubt_ms.max(other.longest_in_doubt_ms);
        join(&mut self.outcomes, &other.outcomes);
        join(&mut self.unknown_then, &other.unknown_then);
        join(&mut self.votes, &other.votes);
        join(&mut self.refusals, &other.refusals);
        join(&mut self.faults, &other.faults);
    }

    /// As one object of numbers.
    pub(crate) fn to_json(&self, violations: usize, seconds: f64) -> Value {
        let mut all = json!({
            "seeds": self.lives,
            "simulated_hours": (self.lived_ms as f64 / 3_600_000.0).round(),
            "events": self.events,
            "records": self.records,
            "coordinator_restarts": self.coordinator_restarts,
            "deaths_while_syncing": self.deaths_while_syncing,
            "torn_batches": self.torn_batches,
            "stale_messages": self.stale_messages,
            "enlisted": self.enlisted,
            "heuristics": self.heuristics,
            "never_known": self.never_known,
            "longest_settling_ms": self.settled_ms,
            "longest_in_doubt_after_healing_ms": self.longest_in_doubt_ms,
            "violations": violations,
            "seconds": (seconds * 10.0).round() / 10.0,
        });
        let groups = [
            ("outcomes", &self.outcomes),
            ("unknown_then", &self.unknown_then),
            ("votes", &self.votes),
            ("refusals", &self.refusals),
            ("faults", &self.faults),
        ];
        for (name, counts) in groups {
            let counts: Map<String, Value> = counts
                .iter()
                .map(|(name, count)| ((*name).to_owned(), json!(count)))
                .collect();
            all[name] = Value::Object(counts);
        }
        all
    }
}

fn join(sum: &mut BTreeMap<&'static str, u64>, other: &BTreeMap<&'static str, u64>) {
    for (name, count) in other {
        *sum.entry(name).or_default() += count;
    }
}
