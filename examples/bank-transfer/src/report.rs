//! What came of a run.

use std::{fmt, time::Duration};

use comfy_table::Table;
use example_harness::{
    chaos::Kills,
    table::{plain, right_align},
    traffic::Tally as _,
};
use serde::Serialize;

use crate::tally::Tally;

/// The result, as `--json` prints it.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) banks: Vec<BankReport>,
    committed: u64,
    aborted: u64,
    /// Transfers of which nobody could say what became of them.
    unknown: u64,
    kills: u64,
    in_doubt: usize,
    orphan_entries: usize,
    recovery_ms: Vec<u64>,
    conserved: bool,
    seconds: f64,
    transfers_per_second: f64,
    #[serde(skip)]
    tally: Tally,
}

/// A bank, before and after.
#[derive(Debug, Serialize)]
pub(crate) struct BankReport {
    pub(crate) name: String,
    pub(crate) url: String,
    pub(crate) total_before: i64,
    pub(crate) total_after: i64,
}

/// What was counted.
pub(crate) struct Findings {
    pub(crate) banks: Vec<BankReport>,
    pub(crate) tally: Tally,
    pub(crate) kills: Kills,
    pub(crate) in_doubt: usize,
    pub(crate) orphan_entries: usize,
    pub(crate) elapsed: Duration,
}

impl Report {
    pub(crate) fn new(findings: Findings) -> Self {
        let Findings { banks, tally, .. } = findings;
        let before: i64 = banks.iter().map(|bank| bank.total_before).sum();
        let after: i64 = banks.iter().map(|bank| bank.total_after).sum();
        let seconds = findings.elapsed.as_secs_f64();
        let milliseconds = |time: &Duration| time.as_millis().try_into().unwrap_or(u64::MAX);
        Self {
            conserved: before == after,
            banks,
            committed: tally.committed,
            aborted: tally.aborted(),
            unknown: tally.unknown,
            kills: findings.kills.count,
            in_doubt: findings.in_doubt,
            orphan_entries: findings.orphan_entries,
            recovery_ms: findings.kills.recoveries.iter().map(milliseconds).collect(),
            seconds,
            transfers_per_second: tally.ended() as f64 / seconds,
            tally,
        }
    }

    /// Whether every promise was kept.
    pub(crate) fn is_good(&self) -> bool {
        self.conserved
            && self.orphan_entries == 0
            && self.in_doubt == 0
            && self.unknown == 0
            && self.tally.heuristic == 0
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.bank_table())?;
        writeln!(f, "{}", self.outcome_table())?;
        f.write_str(match self.is_good() {
            true => "Money is conserved: every transfer happened in both banks or in neither.",
            false => "A promise was broken: see above.",
        })
    }
}

impl Report {
    fn bank_table(&self) -> Table {
        let mut table = plain();
        table.set_header(["bank", "database", "total before", "total after"]);
        for bank in &self.banks {
            let totals = [bank.total_before, bank.total_after];
            let [before, after] = totals.map(|total| total.to_string());
            table.add_row([bank.name.clone(), bank.url.clone(), before, after]);
        }
        let sum =
            |total: fn(&BankReport) -> i64| self.banks.iter().map(total).sum::<i64>().to_string();
        let (before, after) = (sum(|bank| bank.total_before), sum(|bank| bank.total_after));
        table.add_row(["all".to_owned(), String::new(), before, after]);
        right_align(&mut table, &[2, 3]);
        table
    }

    fn outcome_table(&self) -> Table {
        let mut table = plain();
        let mut row = |name: String, value: String| {
            table.add_row([name, value]);
        };
        row("committed".into(), self.committed.to_string());
        for (reason, count) in &self.tally.aborted {
            row(format!("aborted: {reason}"), count.to_string());
        }
        for (reason, count) in &self.tally.tried_again {
            row(format!("tried again: {reason}"), count.to_string());
        }
        row(
            "unknown for a while, then settled".into(),
            self.tally.settled.to_string(),
        );
        row("unknown still".into(), self.unknown.to_string());
        if self.tally.heuristic > 0 {
            row(
                "against the decision".into(),
                self.tally.heuristic.to_string(),
            );
        }
        row("kills".into(), self.kills.to_string());
        if let (Some(shortest), Some(longest)) =
            (self.recovery_ms.iter().min(), self.recovery_ms.iter().max())
        {
            row(
                "recovery after a kill".into(),
                format!("{shortest} to {longest} ms"),
            );
        }
        row("in doubt at the end".into(), self.in_doubt.to_string());
        row(
            "entries without their twin".into(),
            self.orphan_entries.to_string(),
        );
        row("seconds".into(), format!("{:.1}", self.seconds));
        row(
            "transfers per second".into(),
            format!("{:.0}", self.transfers_per_second),
        );
        right_align(&mut table, &[1]);
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings() -> Findings {
        let bank = |total_before, total_after| BankReport {
            name: "bank".into(),
            url: "sqlite:bank.db".into(),
            total_before,
            total_after,
        };
        Findings {
            banks: vec![bank(10, 7), bank(10, 13)],
            tally: Tally::default(),
            kills: Kills::default(),
            in_doubt: 0,
            orphan_entries: 0,
            elapsed: Duration::from_secs(1),
        }
    }

    #[test]
    fn a_run_is_good_only_if_every_promise_was_kept() {
        assert!(Report::new(findings()).is_good());
        let breaches: [fn(&mut Findings); 5] = [
            |findings| findings.banks[0].total_after += 1,
            |findings| findings.in_doubt = 1,
            |findings| findings.orphan_entries = 1,
            |findings| findings.tally.unknown = 1,
            |findings| findings.tally.heuristic = 1,
        ];
        for breach in breaches {
            let mut findings = findings();
            breach(&mut findings);
            assert!(!Report::new(findings).is_good());
        }
    }

    #[test]
    fn the_json_object_has_the_keys_that_are_documented() {
        let json = serde_json::to_value(Report::new(findings())).unwrap();
        let keys: Vec<&String> = json.as_object().unwrap().keys().collect();
        let mut expected = [
            "banks",
            "committed",
            "aborted",
            "unknown",
            "kills",
            "in_doubt",
            "orphan_entries",
            "recovery_ms",
            "conserved",
            "seconds",
            "transfers_per_second",
        ];
        expected.sort_unstable();
        assert_eq!(keys, expected);
    }
}
