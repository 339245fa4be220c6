//! What came of a run.

use std::{collections::BTreeMap, fmt, time::Duration};

use comfy_table::Table;
use example_harness::{
    chaos::Kills,
    table::{plain, right_align},
    traffic::Tally as _,
};
use serde::Serialize;

use crate::tally::Tally;

/// So many problems are told; the others are counted.
const PROBLEMS: usize = 20;

/// The result, as `--json` prints it.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    databases: BTreeMap<&'static str, String>,
    completed: u64,
    /// By the reason.
    compensated: BTreeMap<&'static str, u64>,
    /// Never begun, by the reason.
    aborted: BTreeMap<&'static str, u64>,
    /// Orders of which nobody could say what became of them.
    unknown: u64,
    /// Orders that went against what was decided.
    heuristic: u64,
    kills: u64,
    recovery_ms: Vec<u64>,
    /// Reservations and authorisations that were left over.
    held: usize,
    /// Promises that were broken.
    problems: Vec<String>,
    seconds: f64,
    orders_per_second: f64,
}

/// What was counted.
pub(crate) struct Findings {
    pub(crate) databases: Vec<(&'static str, String)>,
    pub(crate) tally: Tally,
    pub(crate) kills: Kills,
    pub(crate) held: usize,
    pub(crate) problems: Vec<String>,
    pub(crate) elapsed: Duration,
}

impl Report {
    pub(crate) fn new(findings: Findings) -> Self {
        let Findings { tally, kills, .. } = findings;
        let seconds = findings.elapsed.as_secs_f64();
        let milliseconds = |time: &Duration| time.as_millis().try_into().unwrap_or(u64::MAX);
        Self {
            databases: findings.databases.into_iter().collect(),
            completed: tally.completed,
            orders_per_second: tally.ended() as f64 / seconds,
            unknown: tally.unknown,
            heuristic: tally.heuristic,
            compensated: tally.compensated,
            aborted: tally.aborted,
            kills: kills.count,
            recovery_ms: kills.recoveries.iter().map(milliseconds).collect(),
            held: findings.held,
            problems: findings.problems,
            seconds,
        }
    }

    /// Whether every promise was kept.
    pub(crate) fn is_good(&self) -> bool {
        self.problems.is_empty() && self.held == 0 && self.unknown == 0 && self.heuristic == 0
    }

    fn table(&self) -> Table {
        let mut table = plain();
        let mut row = |name: String, value: String| {
            table.add_row([name, value]);
        };
        row("completed".into(), self.completed.to_string());
        for (reason, count) in &self.compensated {
            row(format!("undone: {reason}"), count.to_string());
        }
        for (reason, count) in &self.aborted {
            row(format!("never begun: {reason}"), count.to_string());
        }
        row("unknown".into(), self.unknown.to_string());
        if self.heuristic > 0 {
            row("against the decision".into(), self.heuristic.to_string());
        }
        row("kills".into(), self.kills.to_string());
        let times = (self.recovery_ms.iter().min(), self.recovery_ms.iter().max());
        if let (Some(shortest), Some(longest)) = times {
            let times = format!("{shortest} to {longest} ms");
            row("recovery after a kill".into(), times);
        }
        row("held at the end".into(), self.held.to_string());
        row("broken promises".into(), self.problems.len().to_string());
        row("seconds".into(), format!("{:.1}", self.seconds));
        row(
            "orders per second".into(),
            format!("{:.0}", self.orders_per_second),
        );
        right_align(&mut table, &[1]);
        table
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, url) in &self.databases {
            writeln!(f, "{name:<10} {url}")?;
        }
        writeln!(f, "\n{}", self.table())?;
        for problem in self.problems.iter().take(PROBLEMS) {
            writeln!(f, "{problem}")?;
        }
        f.write_str(match self.is_good() {
            true => "Every order is whole, or wholly undone, and each step was done once.",
            false => "A promise was broken: see above.",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings() -> Findings {
        Findings {
            databases: vec![("orders", "sqlite:orders.db".into())],
            tally: Tally::default(),
            kills: Kills::default(),
            held: 0,
            problems: vec![],
            elapsed: Duration::from_secs(1),
        }
    }

    #[test]
    fn a_run_is_good_only_if_every_promise_was_kept() {
        assert!(Report::new(findings()).is_good());
        let breaches: [fn(&mut Findings); 4] = [
            |findings| findings.held = 1,
            |findings| findings.problems.push("order 1".into()),
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
            "databases",
            "completed",
            "compensated",
            "aborted",
            "unknown",
            "heuristic",
            "kills",
            "recovery_ms",
            "held",
            "problems",
            "seconds",
            "orders_per_second",
        ];
        expected.sort_unstable();
        assert_eq!(keys, expected);
    }
}
